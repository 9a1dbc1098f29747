/* SPDX-License-Identifier: Apache-2.0 */
/* NCCL's profiler plugin tables, newest first: v1 from 2.23, v2 from 2.24, v3 from 2.26, v4 from
 * 2.27, v5 from 2.28, v6 from 2.29. They differ in init and in the event descriptors, which nobody
 * reads here: with no event asked for, NCCL starts none. */
#ifndef LAMPREY_PLUGIN_NCCL_PLUGIN_ABI_PROFILER_H
#define LAMPREY_PLUGIN_NCCL_PLUGIN_ABI_PROFILER_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include <nccl.h>

#include "plugin/log.h"

/* v5 and v6 */
struct lamprey_abi_profiler_v6 {
    const char *name;
    ncclResult_t (*init)(void **context, uint64_t comm_id, int *mask, const char *comm_name,
                         int nnodes, int nranks, int rank, lamprey_nccl_logger logger);
    ncclResult_t (*start_event)(void *context, void **event, void *descriptor);
    ncclResult_t (*stop_event)(void *event);
    ncclResult_t (*record_event_state)(void *event, int state, void *arguments);
    ncclResult_t (*finalize)(void *context);
};

static_assert(sizeof(struct lamprey_abi_profiler_v6) == 6 * sizeof(void *), "profiler v5, v6");
static_assert(offsetof(struct lamprey_abi_profiler_v6, finalize) == 5 * sizeof(void *),
              "profiler v5, v6");

struct lamprey_abi_profiler_v4 {
    const char *name;
    ncclResult_t (*init)(void **context, int *mask, const char *comm_name, uint64_t comm_hash,
                         int nnodes, int nranks, int rank, lamprey_nccl_logger logger);
    ncclResult_t (*start_event)(void *context, void **event, void *descriptor);
    ncclResult_t (*stop_event)(void *event);
    ncclResult_t (*record_event_state)(void *event, int state, void *arguments);
    ncclResult_t (*finalize)(void *context);
};

static_assert(sizeof(struct lamprey_abi_profiler_v4) == 6 * sizeof(void *), "profiler v4");
static_assert(offsetof(struct lamprey_abi_profiler_v4, finalize) == 5 * sizeof(void *),
              "profiler v4");

/* v1, v2 and v3 */
struct lamprey_abi_profiler_v3 {
    const char *name;
    ncclResult_t (*init)(void **context, int *mask);
    ncclResult_t (*start_event)(void *context, void **event, void *descriptor);
    ncclResult_t (*stop_event)(void *event);
    ncclResult_t (*record_event_state)(void *event, int state, void *arguments);
    ncclResult_t (*finalize)(void *context);
};

static_assert(sizeof(struct lamprey_abi_profiler_v3) == 6 * sizeof(void *), "profiler v1 to v3");
static_assert(offsetof(struct lamprey_abi_profiler_v3, finalize) == 5 * sizeof(void *),
              "profiler v1 to v3");

#endif
