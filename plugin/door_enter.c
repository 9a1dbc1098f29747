/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/door_enter.h"

#include <stdbool.h>
#include <stddef.h>

#include <nccl.h>

#include "plugin/attach.h"
#include "plugin/image.h"

/* Functions that forks export and NCCL doesn't. NCCLX has had a logger with one argument more and
 * others have renumbered its levels, so their loggers are left alone. */
static const char *const fork_functions[] = {
    "ncclCommDump", "ncclCommDumpAll", "ncclAllToAllv", "ncclAllToAll", "ncclSetHint",
};

static bool logger_is_stock(const void *logger, const char *suffix)
{
    struct lamprey_image image;
    ncclResult_t (*get_version)(int *version) = NULL;
    int version = 0;

    /* A stock release has no suffix; previews and forks do. */
    if (suffix != NULL && suffix[0] != '\0') {
        return false;
    }
    if (lamprey_image_of(logger, &image) != LAMPREY_OK) {
        return false;
    }
    for (size_t i = 0; i < sizeof(fork_functions) / sizeof(fork_functions[0]); i++) {
        if (lamprey_image_function(&image, fork_functions[i]) != NULL) {
            return false;
        }
    }
    get_version = (ncclResult_t(*)(int *))lamprey_image_function(&image, "ncclGetVersion");
    /* The logger's signature is that of log.h in all of NCCL 2. */
    return get_version != NULL && get_version(&version) == ncclSuccess && version / 10000 == 2;
}

void lamprey_door_enter(lamprey_nccl_logger logger, const void *address, const char *suffix,
                        const char *door)
{
    const void *inside = logger != NULL ? (const void *)logger : address;

    if (logger != NULL && logger_is_stock(inside, suffix)) {
        lamprey_log_set_nccl_logger(logger);
    }
    lamprey_attach(inside, door);
}
