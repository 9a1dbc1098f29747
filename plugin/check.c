/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/check.h"

#include <stdio.h>

#include "kernels/check.h"
#include "plugin/config.h"
#include "plugin/log.h"

#define OPERATOR_SHIFT 8
#define OPERATOR_BITS 0xffu
#define USERS_OPERATOR 0xffu /* its number may differ by rank */
#define TRAITS_SHIFT 16      /* of rows */
#define TRAITS_BITS 0xffffu

struct lamprey_signature lamprey_check_signature(const struct lamprey_call *call)
{
    const bool users = (int)call->op < 0 || (int)call->op >= ncclNumOps;
    const uint32_t op = users ? USERS_OPERATOR : (uint32_t)call->op;
    return (struct lamprey_signature){
        .count = call->count,
        .kind = (uint32_t)call->type | op << OPERATOR_SHIFT,
    };
}

struct lamprey_signature lamprey_check_signature_of_rows(uint64_t tokens, uint32_t hidden,
                                                         ncclDataType_t type, uint32_t traits)
{
    return (struct lamprey_signature){
        .count = tokens,
        .kind = (uint32_t)type | (traits & TRAITS_BITS) << TRAITS_SHIFT,
        .hidden = hidden,
    };
}

static void describe(const atomic_uint *signature, char *text, size_t size)
{
    static const char *const types[] = {
        "int8",    "uint8",   "int32",   "uint32",   "int64",      "uint64",
        "float16", "float32", "float64", "bfloat16", "float8e4m3", "float8e5m2",
    };
    static const char *const operators[] = {"sum", "prod", "max", "min", "avg"};
    const uint64_t count = (uint64_t)atomic_load(&signature[1]) << 32 | atomic_load(&signature[0]);
    const uint32_t kind = atomic_load(&signature[2]);
    const uint32_t hidden = atomic_load(&signature[3]);
    const uint32_t type = kind & ((1u << OPERATOR_SHIFT) - 1);
    const uint32_t op = kind >> OPERATOR_SHIFT & OPERATOR_BITS;
    const char *type_name = type < sizeof types / sizeof types[0] ? types[type] : "another type";
    if (hidden != 0) {
        snprintf(text, size, "%llu rows of %u elements of %s, traits 0x%x",
                 (unsigned long long)count, hidden, type_name, kind >> TRAITS_SHIFT);
    } else {
        snprintf(text, size, "%llu elements of %s, %s", (unsigned long long)count, type_name,
                 op < sizeof operators / sizeof operators[0] ? operators[op]
                                                             : "an operator of its own");
    }
}

/* Behind each check on its stream, so that the line is there also where a graph makes the calls and
 * nobody asks. Runs on a thread of the driver's; may not call it. */
static void CUDA_CB report(void *context)
{
    struct lamprey_workspace *workspace = context;
    const atomic_uint *alarm = workspace->alarm;
    const uint32_t other = atomic_load(&alarm[LAMPREY_ALARM_MISMATCH]);
    if (other == 0 || atomic_exchange(&workspace->mismatch_told, true)) {
        return;
    }
    char own[96];
    char others[96];
    describe(&alarm[LAMPREY_ALARM_OWN], own, sizeof own);
    describe(&alarm[LAMPREY_ALARM_OTHER], others, sizeof others);
    const uint64_t number = (uint64_t)atomic_load(&alarm[LAMPREY_ALARM_NUMBER + 1]) << 32 |
                            atomic_load(&alarm[LAMPREY_ALARM_NUMBER]);
    lamprey_error("rank %u of %u called all-reduce number %llu of its communicator with %s; rank "
                  "%u with %s",
                  workspace->rank, workspace->nranks, (unsigned long long)number, own, other - 1,
                  others);
}

static void fill_params(const struct lamprey_workspace *workspace,
                        const struct lamprey_signature *signature,
                        struct lamprey_check_params *params)
{
    *params = (struct lamprey_check_params){
        .own = *signature,
        .state = (struct lamprey_check_state *)workspace->check_state,
        .lanes = (struct lamprey_lane *)workspace->lane_states,
        .alarm = (uint32_t *)workspace->device_alarm,
        .nlanes = workspace->lanes,
        .rank = workspace->rank,
        .nranks = workspace->nranks,
        .timeout_ms = (uint32_t)lamprey_config_get()->timeout * 1000,
    };
    const uint64_t offset = workspace->check_cells - workspace->own.address;
    for (uint32_t rank = 0; rank < workspace->nranks; rank++) {
        const struct lamprey_memory *memory =
            rank == workspace->rank ? &workspace->own : &workspace->peers[rank];
        params->cells[rank] = (unsigned char *)(memory->address + offset);
    }
}

enum lamprey_status lamprey_check_launch(struct lamprey_workspace *workspace,
                                         const struct lamprey_signature *signature, CUstream stream)
{
    const struct lamprey_device *device = workspace->device;
    struct lamprey_check_params params;
    void *arguments[] = {&params};
    const CUlaunchConfig config = {
        .gridDimX = 1,
        .gridDimY = 1,
        .gridDimZ = 1,
        .blockDimX = 1,
        .blockDimY = 1,
        .blockDimZ = 1,
        .hStream = stream,
    };
    fill_params(workspace, signature, &params);
    enum lamprey_status status = lamprey_driver_check(
        device->driver->LaunchKernelEx(&config, device->check, arguments, NULL),
        "cuLaunchKernelEx");
    if (!status) {
        status = lamprey_driver_check(device->driver->LaunchHostFunc(stream, report, workspace),
                                      "cuLaunchHostFunc");
    }
    return status;
}

ncclResult_t lamprey_check_call(struct lamprey_comm *comm, const struct lamprey_call *call)
{
    struct lamprey_workspace *workspace = atomic_load(&comm->workspace);
    struct lamprey_order_step step;
    bool pushed = false;
    if (atomic_load(&comm->state) != LAMPREY_COMM_SERVED || !workspace->checked ||
        lamprey_decide_kind(call->count, call->type, call->op) == LAMPREY_NOT_TYPE) {
        return ncclSuccess;
    }
    enum lamprey_status status = lamprey_device_enter(comm->device, &pushed);
    if (status) {
        return ncclUnhandledCudaError;
    }
    status = lamprey_order_before(&comm->order, workspace, call->stream, &step);
    if (!status) {
        const struct lamprey_signature signature = lamprey_check_signature(call);
        status = lamprey_check_launch(workspace, &signature, call->stream);
    }
    if (!status) {
        status = lamprey_order_after(&comm->order, workspace, call->stream, &step);
    }
    lamprey_device_leave(comm->device, pushed);
    return status ? ncclUnhandledCudaError : ncclSuccess;
}

bool lamprey_check_failed(const struct lamprey_workspace *workspace)
{
    return atomic_load(&workspace->alarm[LAMPREY_ALARM_MISMATCH]) != 0;
}
