/* SPDX-License-Identifier: Apache-2.0 */
/* The env doors: NCCL asks them for every variable that it reads, from any thread at any time. The
 * answer is getenv's, as without an env plugin, or that of the plugin chained behind. */
#include "plugin/nccl_plugin_abi_env.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "plugin/chain.h"
#include "plugin/config.h"
#include "plugin/door_enter.h"

#define NAME "lamprey"

/* get_env has no context, so the chained plugin is one for the process. */
static pthread_mutex_t chain_lock = PTHREAD_MUTEX_INITIALIZER;
static bool chain_tried;
static const void *chain_table;
static int chain_version;
static int chain_users; /* NCCL images that initialised it and have not finalised it */
static const char *(*_Atomic chain_get_env)(const char *name);

static const void *find_chained(int newest)
{
    const char *name = lamprey_config_get()->env_plugin;
    void *handle = NULL;

    if (!chain_tried) {
        chain_tried = true;
        handle = lamprey_chain_open("env", "LAMPREY_ENV_PLUGIN", name);
        if (handle != NULL) {
            chain_table = lamprey_chain_find(handle, "ncclEnvPlugin_v", newest, 1, &chain_version);
            if (chain_table == NULL) {
                lamprey_warn("LAMPREY_ENV_PLUGIN=%s: no ncclEnvPlugin_v%d or older in it; going on "
                             "without it",
                             name, newest);
            }
        }
    }
    return chain_table;
}

/* The result is the chained plugin's: whether a variable is set must not depend on us. */
static ncclResult_t init_chained(uint8_t major, uint8_t minor, uint8_t patch, const char *suffix,
                                 lamprey_nccl_logger logger)
{
    const struct lamprey_abi_env_v2 *v2 = NULL;
    const struct lamprey_abi_env_v1 *v1 = NULL;
    const char *(*get_env)(const char *name) = NULL;
    ncclResult_t result = ncclSuccess;

    pthread_mutex_lock(&chain_lock);
    if (find_chained(logger != NULL ? 2 : 1) == NULL) {
        goto unlock;
    }
    if (chain_version == 2) {
        if (logger == NULL) {
            /* A second, older NCCL in this process: the plugin is running, and what v2 wants this
             * NCCL doesn't have. */
            goto unlock;
        }
        v2 = chain_table;
        result = v2->init(major, minor, patch, suffix, logger);
        get_env = v2->get_env;
    } else {
        v1 = chain_table;
        result = v1->init(major, minor, patch, suffix);
        get_env = v1->get_env;
    }
    if (result == ncclSuccess) {
        chain_users++;
        atomic_store_explicit(&chain_get_env, get_env, memory_order_release);
    }
unlock:
    pthread_mutex_unlock(&chain_lock);
    return result;
}

static ncclResult_t init_v2(uint8_t major, uint8_t minor, uint8_t patch, const char *suffix,
                            lamprey_nccl_logger logger)
{
    lamprey_door_enter(logger, __builtin_return_address(0), suffix, "env");
    return init_chained(major, minor, patch, suffix, logger);
}

static ncclResult_t init_v1(uint8_t major, uint8_t minor, uint8_t patch, const char *suffix)
{
    lamprey_door_enter(NULL, __builtin_return_address(0), suffix, "env");
    return init_chained(major, minor, patch, suffix, NULL);
}

/* NCCL calls this at exit and then reads no variable through us any more, but another NCCL of the
 * process still may. */
static ncclResult_t finalize(void)
{
    ncclResult_t result = ncclSuccess;
    const struct lamprey_abi_env_v2 *v2 = NULL;
    const struct lamprey_abi_env_v1 *v1 = NULL;
    ncclResult_t (*chained)(void) = NULL;

    pthread_mutex_lock(&chain_lock);
    if (chain_users > 0 && --chain_users == 0) {
        atomic_store_explicit(&chain_get_env, NULL, memory_order_release);
        if (chain_version == 2) {
            v2 = chain_table;
            chained = v2->finalize;
        } else {
            v1 = chain_table;
            chained = v1->finalize;
        }
        if (chained != NULL) {
            result = chained();
        }
    }
    pthread_mutex_unlock(&chain_lock);
    return result;
}

static const char *get_env(const char *name)
{
    const char *(*chained)(const char *) =
        atomic_load_explicit(&chain_get_env, memory_order_acquire);

    return chained != NULL ? chained(name) : getenv(name);
}

LAMPREY_DOOR_EXPORT const struct lamprey_abi_env_v2 ncclEnvPlugin_v2 = {NAME, init_v2, finalize,
                                                                        get_env};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_env_v1 ncclEnvPlugin_v1 = {NAME, init_v1, finalize,
                                                                        get_env};
