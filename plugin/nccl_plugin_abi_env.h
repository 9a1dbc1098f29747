/* SPDX-License-Identifier: Apache-2.0 */
/* NCCL's env plugin tables, newest first: v1 from 2.28.7, v2 from 2.30.7. */
#ifndef LAMPREY_PLUGIN_NCCL_PLUGIN_ABI_ENV_H
#define LAMPREY_PLUGIN_NCCL_PLUGIN_ABI_ENV_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include <nccl.h>

#include "plugin/log.h"

struct lamprey_abi_env_v2 {
    const char *name;
    ncclResult_t (*init)(uint8_t major, uint8_t minor, uint8_t patch, const char *suffix,
                         lamprey_nccl_logger logger);
    ncclResult_t (*finalize)(void);
    const char *(*get_env)(const char *name);
};

static_assert(sizeof(struct lamprey_abi_env_v2) == 4 * sizeof(void *), "env v2");
static_assert(offsetof(struct lamprey_abi_env_v2, get_env) == 3 * sizeof(void *), "env v2");

struct lamprey_abi_env_v1 {
    const char *name;
    ncclResult_t (*init)(uint8_t major, uint8_t minor, uint8_t patch, const char *suffix);
    ncclResult_t (*finalize)(void);
    const char *(*get_env)(const char *name);
};

static_assert(sizeof(struct lamprey_abi_env_v1) == 4 * sizeof(void *), "env v1");
static_assert(offsetof(struct lamprey_abi_env_v1, get_env) == 3 * sizeof(void *), "env v1");

#endif
