/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/launch.h"

#include "plugin/check.h"
#include "plugin/config.h"
#include "plugin/log.h"

static void fill_params(const struct lamprey_workspace *workspace, const struct lamprey_call *call,
                        const struct lamprey_way *way, uint32_t timeout_ms,
                        struct lamprey_all_reduce_params *params)
{
    *params = (struct lamprey_all_reduce_params){
        .send = call->send,
        .recv = call->recv,
        .lanes = (struct lamprey_lane *)workspace->lane_states,
        .alarm = (uint32_t *)workspace->device_alarm,
        .rank = workspace->rank,
        .flags = way->flags |
                 lamprey_message_flags(&way->plan, call->send, call->recv, way->bytes) |
                 (lamprey_config_get()->pdl == LAMPREY_PDL_SIGNAL ? LAMPREY_FLAG_SIGNAL : 0),
        .op = way->op,
        .timeout_ms = timeout_ms,
    };
    lamprey_plan_params(&way->plan, workspace->nranks, workspace->slot_cells, call->count,
                        way->vectors, params);
    for (uint32_t rank = 0; rank < workspace->nranks; rank++) {
        CUdeviceptr address =
            rank == workspace->rank ? workspace->own.address : workspace->peers[rank].address;
        params->staging[rank] = (unsigned char *)address;
    }
}

enum lamprey_status lamprey_launch_kernel(const struct lamprey_workspace *workspace,
                                          const struct lamprey_call *call,
                                          const struct lamprey_way *way, uint32_t timeout_ms)
{
    const struct lamprey_device *device = workspace->device;
    struct lamprey_all_reduce_params params;
    void *arguments[] = {&params};
    CUlaunchAttribute overlap = {
        .id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        .value.programmaticStreamSerializationAllowed = 1,
    };
    /* A check's line of the log comes between the kernels, so there is nothing to overlap. */
    const bool pdl = lamprey_config_get()->pdl != LAMPREY_PDL_OFF && device->capability >= 90 &&
                     !workspace->checked;
    const CUlaunchConfig config = {
        .gridDimX = way->plan.ctas,
        .gridDimY = 1,
        .gridDimZ = 1,
        .blockDimX = way->plan.threads,
        .blockDimY = 1,
        .blockDimZ = 1,
        .hStream = call->stream,
        .attrs = pdl ? &overlap : NULL,
        .numAttrs = pdl ? 1 : 0,
    };
    fill_params(workspace, call, way, timeout_ms, &params);
    return lamprey_driver_check(
        device->driver->LaunchKernelEx(&config, device->kernels[way->kernel], arguments, NULL),
        "cuLaunchKernelEx");
}

/* The driver has refused a launch; was it for the stream? */
static bool is_foreign(const struct lamprey_device *device, CUstream stream)
{
    CUdevice owner = device->device;
    bool pushed = false;
    if (!device->driver->StreamGetDevice || lamprey_device_enter(device, &pushed) != LAMPREY_OK) {
        return false;
    }
    const CUresult result = device->driver->StreamGetDevice(stream, &owner);
    lamprey_device_leave(device, pushed);
    return result == CUDA_ERROR_INVALID_HANDLE ||
           (result == CUDA_SUCCESS && owner != device->device);
}

ncclResult_t lamprey_launch(struct lamprey_comm *comm, const struct lamprey_call *call,
                            bool grouped)
{
    const struct lamprey_device *device = comm->device;
    struct lamprey_workspace *workspace = atomic_load(&comm->workspace);
    const struct lamprey_way way = lamprey_way_of(&comm->agreed, call->count, call->type, call->op);
    struct lamprey_order_step step;
    bool pushed = false;

    /* The ranks are out of step: nothing that follows could be right. */
    if (lamprey_workspace_timed_out(workspace)) {
        lamprey_count(&comm->counters, LAMPREY_COUNT_failed);
        return ncclRemoteError;
    }
    if (lamprey_check_failed(workspace)) {
        lamprey_count(&comm->counters, LAMPREY_COUNT_failed);
        return ncclInvalidUsage;
    }
    enum lamprey_status status = lamprey_device_enter(device, &pushed);
    if (status) {
        goto failed;
    }
    status = lamprey_order_before(&comm->order, workspace, call->stream, &step);
    if (!status && workspace->checked) {
        status = lamprey_check_launch(workspace, call);
    }
    if (!status) {
        status = lamprey_launch_kernel(workspace, call, &way,
                                       (uint32_t)lamprey_config_get()->timeout * 1000);
    }
    if (!status) {
        status = lamprey_order_after(&comm->order, workspace, call->stream, &step);
    }
    lamprey_device_leave(device, pushed);
    if (status) {
        goto failed;
    }
    lamprey_count(&comm->counters, LAMPREY_COUNT_served);
    if (step.capture) {
        lamprey_count(&comm->counters, LAMPREY_COUNT_served_captured);
    }
    if (grouped) {
        lamprey_count(&comm->counters, LAMPREY_COUNT_served_grouped);
    }
    return ncclSuccess;

failed:
    lamprey_count(&comm->counters, LAMPREY_COUNT_failed);
    if (is_foreign(device, call->stream)) { /* NCCL can't run it either, and says so in its words */
        return LAMPREY_ORIGINAL(comm->nccl, AllReduce)(call->send, call->recv, call->count,
                                                       call->type, call->op, comm->handle,
                                                       (cudaStream_t)call->stream);
    }
    lamprey_warn("communicator %p, rank %d: the all-reduce can't be launched (%s)",
                 (void *)comm->handle, comm->rank, lamprey_status_name(status));
    return ncclUnhandledCudaError;
}
