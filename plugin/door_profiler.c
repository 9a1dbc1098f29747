/* SPDX-License-Identifier: Apache-2.0 */
/* The profiler doors. They ask for no event, so NCCL starts none and pays nothing; a NULL context
 * tells it that there is nothing to finalise. */
#include "plugin/nccl_plugin_abi_profiler.h"

#include "plugin/door_enter.h"

#define NAME "lamprey"

static ncclResult_t start_event(void *context, void **event, void *descriptor)
{
    (void)context;
    (void)descriptor;
    *event = NULL;
    return ncclSuccess;
}

static ncclResult_t stop_event(void *event)
{
    (void)event;
    return ncclSuccess;
}

static ncclResult_t record_event_state(void *event, int state, void *arguments)
{
    (void)event;
    (void)state;
    (void)arguments;
    return ncclSuccess;
}

static ncclResult_t finalize(void *context)
{
    (void)context;
    return ncclSuccess;
}

static ncclResult_t enter(void **context, int *mask, lamprey_nccl_logger logger,
                          const void *address)
{
    *context = NULL;
    *mask = 0;
    lamprey_door_enter(logger, address, NULL, "profiler");
    return ncclSuccess;
}

static ncclResult_t init_v6(void **context, uint64_t comm_id, int *mask, const char *comm_name,
                            int nnodes, int nranks, int rank, lamprey_nccl_logger logger)
{
    (void)comm_id;
    (void)comm_name;
    (void)nnodes;
    (void)nranks;
    (void)rank;
    return enter(context, mask, logger, __builtin_return_address(0));
}

static ncclResult_t init_v4(void **context, int *mask, const char *comm_name, uint64_t comm_hash,
                            int nnodes, int nranks, int rank, lamprey_nccl_logger logger)
{
    (void)comm_name;
    (void)comm_hash;
    (void)nnodes;
    (void)nranks;
    (void)rank;
    return enter(context, mask, logger, __builtin_return_address(0));
}

static ncclResult_t init_v3(void **context, int *mask)
{
    return enter(context, mask, NULL, __builtin_return_address(0));
}

LAMPREY_DOOR_EXPORT const struct lamprey_abi_profiler_v6 ncclProfiler_v6 = {
    NAME, init_v6, start_event, stop_event, record_event_state, finalize};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_profiler_v6 ncclProfiler_v5 = {
    NAME, init_v6, start_event, stop_event, record_event_state, finalize};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_profiler_v4 ncclProfiler_v4 = {
    NAME, init_v4, start_event, stop_event, record_event_state, finalize};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_profiler_v3 ncclProfiler_v3 = {
    NAME, init_v3, start_event, stop_event, record_event_state, finalize};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_profiler_v3 ncclProfiler_v2 = {
    NAME, init_v3, start_event, stop_event, record_event_state, finalize};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_profiler_v3 ncclProfiler_v1 = {
    NAME, init_v3, start_event, stop_event, record_event_state, finalize};
