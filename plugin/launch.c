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

bool lamprey_launch_overlaps(const struct lamprey_workspace *workspace)
{
    return lamprey_config_get()->pdl != LAMPREY_PDL_OFF && workspace->device->capability >= 90 &&
           !workspace->checked;
}

static enum lamprey_status launch(const struct lamprey_workspace *workspace, CUfunction kernel,
                                  uint32_t ctas, uint32_t threads, CUstream stream, void *params)
{
    const struct lamprey_device *device = workspace->device;
    void *arguments[] = {params};
    CUlaunchAttribute overlap = {
        .id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        .value.programmaticStreamSerializationAllowed = 1,
    };
    const bool pdl = lamprey_launch_overlaps(workspace);
    const CUlaunchConfig config = {
        .gridDimX = ctas,
        .gridDimY = 1,
        .gridDimZ = 1,
        .blockDimX = threads,
        .blockDimY = 1,
        .blockDimZ = 1,
        .hStream = stream,
        .attrs = pdl ? &overlap : NULL,
        .numAttrs = pdl ? 1 : 0,
    };
    return lamprey_driver_check(device->driver->LaunchKernelEx(&config, kernel, arguments, NULL),
                                "cuLaunchKernelEx");
}

enum lamprey_status lamprey_launch_kernel(const struct lamprey_workspace *workspace,
                                          const struct lamprey_call *call,
                                          const struct lamprey_way *way, uint32_t timeout_ms)
{
    struct lamprey_all_reduce_params params;
    fill_params(workspace, call, way, timeout_ms, &params);
    return launch(workspace, workspace->device->kernels[way->kernel], way->plan.ctas,
                  way->plan.threads, call->stream, &params);
}

static enum lamprey_status launch_fused(const struct lamprey_workspace *workspace,
                                        const struct lamprey_agreed *agreed,
                                        const struct lamprey_call *calls, size_t count,
                                        uint32_t timeout_ms)
{
    struct lamprey_fused_params params;
    struct lamprey_way way = {0};
    uint32_t ctas = 0;
    uint32_t threads = 0;
    params.message_count = count;
    for (size_t i = 0; i < count; i++) {
        const struct lamprey_call *call = &calls[i];
        way = lamprey_way_of(agreed, call->count, call->type, call->op);
        params.messages[i] = (struct lamprey_message){
            .send = call->send,
            .recv = call->recv,
            .count = call->count,
            .vectors = way.vectors,
            .lane_vectors = way.plan.lane_vectors,
            .flags =
                way.flags | lamprey_message_flags(&way.plan, call->send, call->recv, way.bytes),
            .op = way.op,
            .ctas = way.plan.ctas,
        };
        ctas = way.plan.ctas > ctas ? way.plan.ctas : ctas;
        threads = way.plan.threads > threads ? way.plan.threads : threads;
    }
    fill_params(workspace, &calls[0], &way, timeout_ms, &params.common);
    return launch(workspace, workspace->device->fused[way.fused], ctas, threads, calls[0].stream,
                  &params);
}

static enum lamprey_status launch_one(const struct lamprey_comm *comm,
                                      struct lamprey_workspace *workspace,
                                      const struct lamprey_call *call, uint32_t timeout_ms)
{
    const struct lamprey_way way = lamprey_way_of(&comm->agreed, call->count, call->type, call->op);
    enum lamprey_status status = LAMPREY_OK;
    if (workspace->checked) {
        const struct lamprey_signature signature = lamprey_check_signature(call);
        status = lamprey_check_launch(workspace, &signature, call->stream);
    }
    return status ? status : lamprey_launch_kernel(workspace, call, &way, timeout_ms);
}

/* One launch for all saves the host 3 us a call and costs the GPU 0.8 us a call, for the fence
 * between messages (measured on an H200): right where the host launches, wrong in a graph. Ranks
 * needn't do the same: on the wire both are alike. */
static enum lamprey_status launch_calls(const struct lamprey_comm *comm,
                                        struct lamprey_workspace *workspace,
                                        const struct lamprey_call *calls, size_t count,
                                        bool captured)
{
    const uint32_t timeout_ms = (uint32_t)lamprey_config_get()->timeout * 1000;
    if (count > 1 && !captured) {
        return launch_fused(workspace, &comm->agreed, calls, count, timeout_ms);
    }
    enum lamprey_status status = LAMPREY_OK;
    for (size_t i = 0; i < count && !status; i++) {
        status = launch_one(comm, workspace, &calls[i], timeout_ms);
    }
    return status;
}

static void count_calls(struct lamprey_comm *comm, enum lamprey_counter counter, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        lamprey_count(&comm->counters, counter);
    }
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

ncclResult_t lamprey_launch(struct lamprey_comm *comm, const struct lamprey_call *calls,
                            size_t count, bool grouped)
{
    const struct lamprey_device *device = comm->device;
    struct lamprey_workspace *workspace = atomic_load(&comm->workspace);
    const CUstream stream = calls->stream;
    struct lamprey_order_step step;
    bool pushed = false;

    /* The ranks are out of step: nothing that follows could be right. */
    if (lamprey_check_failed(workspace) || lamprey_workspace_timed_out(workspace)) {
        count_calls(comm, LAMPREY_COUNT_failed, count);
        return lamprey_check_failed(workspace) ? ncclInvalidUsage : ncclRemoteError;
    }
    enum lamprey_status status = lamprey_device_enter(device, &pushed);
    if (status) {
        goto failed;
    }
    status = lamprey_order_before(&comm->order, workspace, stream, &step);
    if (!status) {
        status = launch_calls(comm, workspace, calls, count, step.capture != NULL);
    }
    if (!status) {
        status = lamprey_order_after(&comm->order, workspace, stream, &step);
    }
    lamprey_device_leave(device, pushed);
    if (status) {
        goto failed;
    }
    count_calls(comm, LAMPREY_COUNT_served, count);
    if (step.capture) {
        count_calls(comm, LAMPREY_COUNT_served_captured, count);
    }
    if (grouped) {
        count_calls(comm, LAMPREY_COUNT_served_grouped, count);
    }
    return ncclSuccess;

failed:
    count_calls(comm, LAMPREY_COUNT_failed, count);
    if (is_foreign(device, stream)) { /* NCCL can't run it either, and says so in its words */
        return LAMPREY_ORIGINAL(comm->nccl, AllReduce)(calls->send, calls->recv, calls->count,
                                                       calls->type, calls->op, comm->handle,
                                                       (cudaStream_t)calls->stream);
    }
    lamprey_warn("communicator %p, rank %d: the all-reduce can't be launched (%s)",
                 (void *)comm->handle, comm->rank, lamprey_status_name(status));
    return ncclUnhandledCudaError;
}
