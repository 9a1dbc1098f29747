/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/door_attach.h"

#include <pthread.h>
#include <stdlib.h>

#include "plugin/attach.h"
#include "plugin/config.h"
#include "plugin/door_enter.h"
#include "plugin/log.h"

/* NCCL opens other plugins itself then: ours has no slot from which it could chain to them. */
static void warn_of_chains(void)
{
    const struct lamprey_config *config = lamprey_config_get();
    if (config->tuner_plugin != NULL && getenv("NCCL_TUNER_PLUGIN") == NULL) {
        lamprey_warn("LAMPREY_TUNER_PLUGIN has no effect through NCCL_PLUGIN: set "
                     "NCCL_TUNER_PLUGIN=lamprey, or name your tuner there");
    }
    if (config->env_plugin != NULL && getenv("NCCL_ENV_PLUGIN") == NULL) {
        lamprey_warn("LAMPREY_ENV_PLUGIN has no effect through NCCL_PLUGIN: set "
                     "NCCL_ENV_PLUGIN=lamprey, or name your plugin there");
    }
}

LAMPREY_DOOR_EXPORT int lampreyAttachLoaded(const char *door)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, warn_of_chains);
    return lamprey_attach_loaded(door);
}
