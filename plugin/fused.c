/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/fused.h"

#include <string.h>

#include "kernels/row_plan.h"
#include "plugin/api.h"
#include "plugin/check.h"
#include "plugin/config.h"
#include "plugin/target.h"

/* By what is equal on all ranks alone. */
static struct lamprey_row_shape shape_of(const struct lamprey_agreed *agreed,
                                         const struct lamprey_fused *call)
{
    const struct lampreyFusedArgs *args = &call->args;
    const uint64_t bytes = args->tokens * args->hidden * call->element_bytes;
    const bool one_shot =
        args->strategy == lampreyStrategyOneShot ||
        (args->strategy == lampreyStrategyAuto && bytes <= agreed->one_shot_bytes);
    return (struct lamprey_row_shape){
        .algorithm = one_shot ? LAMPREY_ONE_SHOT : LAMPREY_TWO_SHOT,
        .nranks = agreed->nranks,
        .tokens = args->tokens,
        .hidden = (uint32_t)args->hidden,
        .vector_elements = LAMPREY_VECTOR_BYTES / call->element_bytes,
        .group = args->quantize == lampreyQuantizeFp8PerGroup ? args->group : 1,
    };
}

static void fill_params(const struct lamprey_comm *comm, const struct lamprey_workspace *workspace,
                        const struct lamprey_fused *call, const struct lamprey_row_shape *shape,
                        const struct lamprey_row_plan *plan, struct lamprey_row_params *params)
{
    const struct lampreyFusedArgs *args = &call->args;
    const bool norm =
        call->norm || args->gamma || args->norm_out || args->flags & LAMPREY_FUSED_RMS_NORM;
    const bool signal =
        args->flags & LAMPREY_FUSED_SIGNAL || lamprey_config_get()->pdl == LAMPREY_PDL_SIGNAL;
    *params = (struct lamprey_row_params){
        .rows =
            {
                .residual = args->residual_in,
                .gamma = args->gamma,
                .residual_out = args->residual_out,
                .norm_out = args->norm_out,
                .quant_out = args->quant_out,
                .scale_out = args->scale_out,
                .scale = args->scale,
                .scale_value = args->scale_value,
                .epsilon = args->epsilon,
                .weight_bias = args->weight_bias,
                .flags = (norm ? LAMPREY_ROW_NORM : 0) |
                         (call->pre_norm ? LAMPREY_ROW_PRE_NORM : 0) |
                         (args->gamma_type == ncclFloat32 ? LAMPREY_ROW_WIDE_GAMMA : 0) |
                         (args->flags & LAMPREY_FUSED_GAMMA_CONSTANT ? LAMPREY_ROW_EARLY_GAMMA : 0),
                .quantisation = (uint32_t)args->quantize, /* in the same order */
                .layout = (uint32_t)args->layout,
                .group = args->group,
            },
        .moe = call->moe,
        .prelude = call->prelude,
        .lane =
            {
                .send = args->in,
                .recv = args->all_reduce_out,
                .lanes = (struct lamprey_lane *)workspace->lane_states,
                .alarm = (uint32_t *)workspace->device_alarm,
                .rank = workspace->rank,
                .flags =
                    (lamprey_fused_is_wide(call) ? LAMPREY_FLAG_WIDE : 0) |
                    (signal ? LAMPREY_FLAG_SIGNAL : 0) |
                    (args->flags & LAMPREY_FUSED_ACCUMULATE_IN_TYPE ? LAMPREY_FLAG_STEPWISE : 0),
                .op = LAMPREY_SUM,
                .timeout_ms = (uint32_t)lamprey_config_get()->timeout * 1000,
            },
    };
    lamprey_row_plan_params(shape, plan, comm->agreed.slot_cells, &params->rows, &params->lane);
    for (uint32_t rank = 0; rank < workspace->nranks; rank++) {
        const CUdeviceptr address =
            rank == workspace->rank ? workspace->own.address : workspace->peers[rank].address;
        params->lane.staging[rank] = (unsigned char *)address;
    }
}

static enum lamprey_status launch_kernel(const struct lamprey_workspace *workspace,
                                         const struct lamprey_row_plan *plan, int kernel,
                                         struct lamprey_row_params *params, CUstream stream)
{
    const struct lamprey_device *device = workspace->device;
    struct lamprey_near_row_params near = {.rows = params->rows};
    memcpy(&near.lane, &params->lane, sizeof near.lane);
    void *arguments[] = {lamprey_row_kernel_is_near(kernel) ? (void *)&near : (void *)params};
    CUlaunchAttribute attributes[2];
    unsigned count = 0;
    if (plan->cluster > 1) {
        attributes[count++] = (CUlaunchAttribute){
            .id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            .value.clusterDim = {plan->cluster, 1, 1},
        };
    }
    if (lamprey_config_get()->pdl != LAMPREY_PDL_OFF && device->capability >= 90) {
        attributes[count++] = (CUlaunchAttribute){
            .id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            .value.programmaticStreamSerializationAllowed = 1,
        };
    }
    const CUlaunchConfig config = {
        .gridDimX = plan->clusters * plan->cluster,
        .gridDimY = 1,
        .gridDimZ = 1,
        .blockDimX = plan->threads,
        .blockDimY = 1,
        .blockDimZ = 1,
        .sharedMemBytes = plan->shared_bytes,
        .hStream = stream,
        .attrs = attributes,
        .numAttrs = count,
    };
    return lamprey_driver_check(
        device->driver->LaunchKernelEx(&config, device->row_kernels[kernel], arguments, NULL),
        "cuLaunchKernelEx");
}

/* In order with all other work of the communicator, as lamprey_launch. */
static ncclResult_t launch(struct lamprey_comm *comm, const struct lamprey_fused *call,
                           CUstream stream)
{
    struct lamprey_workspace *workspace = atomic_load(&comm->workspace);
    const struct lamprey_row_shape shape = shape_of(&comm->agreed, call);
    const struct lamprey_row_plan plan = lamprey_row_plan_of(
        &shape, comm->agreed.row_lanes, comm->agreed.row_cluster, comm->agreed.slot_cells);
    struct lamprey_row_params params;
    struct lamprey_order_step step;
    bool pushed = false;
    if (comm->agreed.row_lanes == 0) {
        return lamprey_api_fail(
            ncclInvalidUsage, "%s: the GPU of some rank can't run the kernels for it", call->name);
    }
    if (plan.cluster == 0) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: hidden %llu is more than this GPU takes",
                                call->name, (unsigned long long)call->args.hidden);
    }
    if (lamprey_check_failed(workspace)) {
        lamprey_count(&comm->counters, LAMPREY_COUNT_failed);
        return lamprey_api_fail(ncclInvalidUsage, "%s: an earlier call differed over the ranks",
                                call->name);
    }
    if (lamprey_workspace_timed_out(workspace)) {
        lamprey_count(&comm->counters, LAMPREY_COUNT_failed);
        return lamprey_api_fail(ncclRemoteError, "%s: an earlier call's peer didn't come",
                                call->name);
    }
    fill_params(comm, workspace, call, &shape, &plan, &params);
    const int kernel = lamprey_row_kernel_of(shape.algorithm, call->element, shape.nranks,
                                             lamprey_row_form_of(&shape, &plan, &params));
    enum lamprey_status status = lamprey_device_enter(comm->device, &pushed);
    if (!status) {
        status = lamprey_order_before(&comm->order, workspace, stream, &step);
        if (!status) {
            status = launch_kernel(workspace, &plan, kernel, &params, stream);
        }
        if (!status) {
            status = lamprey_order_after(&comm->order, workspace, stream, &step);
        }
        lamprey_device_leave(comm->device, pushed);
    }
    if (status) {
        lamprey_count(&comm->counters, LAMPREY_COUNT_failed);
        return lamprey_api_fail(ncclUnhandledCudaError, "%s: it can't be launched (%s)", call->name,
                                lamprey_status_name(status));
    }
    lamprey_count(&comm->counters, LAMPREY_COUNT_served);
    if (step.capture) {
        lamprey_count(&comm->counters, LAMPREY_COUNT_served_captured);
    }
    return ncclSuccess;
}

static ncclResult_t run(const struct lamprey_target *target, const struct lamprey_fused *call,
                        CUstream stream)
{
    ncclResult_t result = lamprey_target_admit(target);
    if (result != ncclSuccess || call->args.tokens == 0) {
        return result;
    }
    result = lamprey_target_ready(target);
    return result == ncclSuccess ? launch(target->comm, call, stream) : result;
}

ncclResult_t lamprey_fused_call(struct lamprey_fused *call, const struct lampreyFusedArgs *args,
                                ncclComm_t comm, cudaStream_t stream)
{
    if (!args) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: args is NULL", call->name);
    }
    if (args->size != sizeof *args) {
        return lamprey_api_fail(ncclInvalidArgument,
                                "%s: args->size isn't that of any version of struct "
                                "lampreyFusedArgs",
                                call->name);
    }
    if (!comm && !args->workspace) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: comm and workspace are NULL", call->name);
    }
    if (comm && args->workspace) {
        return lamprey_api_fail(ncclInvalidArgument,
                                "%s: both comm and workspace are given; it works on one",
                                call->name);
    }
    call->args = *args;
    struct lamprey_target target = {.function = call->name};
    ncclResult_t result = lamprey_fused_check(call);
    if (result == ncclSuccess) {
        result = comm ? lamprey_target_comm(&target, comm)
                      : lamprey_target_workspace(&target, args->workspace);
    }
    if (result == ncclSuccess) {
        result = run(&target, call, (CUstream)stream);
        lamprey_comm_release(target.comm);
    }
    return result;
}

ncclResult_t lampreyAllReduceFused(const struct lampreyFusedArgs *args, ncclComm_t comm,
                                   cudaStream_t stream)
{
    struct lamprey_fused call = {.name = "lampreyAllReduceFused",
                                 .moe = {.source = LAMPREY_ROWS_GIVEN}};
    lamprey_api_begin();
    return lamprey_fused_call(&call, args, comm, stream);
}

static ncclResult_t no_moe(const char *name, const void *moe)
{
    return lamprey_api_fail(ncclInvalidArgument, "%s: %s", name,
                            moe ? "moe->size isn't that of any version of its struct"
                                : "moe is NULL");
}

ncclResult_t lampreyMoeReduceAllReduceFused(const struct lampreyFusedArgs *args,
                                            const struct lampreyMoeReduceArgs *moe, ncclComm_t comm,
                                            cudaStream_t stream)
{
    struct lamprey_fused call = {.name = "lampreyMoeReduceAllReduceFused"};
    lamprey_api_begin();
    if (!moe || moe->size != sizeof *moe) {
        return no_moe(call.name, moe);
    }
    call.moe = (struct lamprey_moe){
        .source = LAMPREY_ROWS_MOE_REDUCE,
        .count = moe->experts,
        .inputs = moe->rows,
        .scales = moe->scales,
        .added = moe->added,
        .factor = 1,
        .wide_scales = 1,
    };
    return lamprey_fused_call(&call, args, comm, stream);
}

ncclResult_t lampreyMoeFinalizeAllReduceFused(const struct lampreyFusedArgs *args,
                                              const struct lampreyMoeFinalizeArgs *moe,
                                              ncclComm_t comm, cudaStream_t stream)
{
    struct lamprey_fused call = {.name = "lampreyMoeFinalizeAllReduceFused"};
    lamprey_api_begin();
    if (!moe || moe->size != sizeof *moe) {
        return no_moe(call.name, moe);
    }
    if (args && moe->scales && moe->scales_type != args->type && moe->scales_type != ncclFloat32) {
        return lamprey_api_fail(ncclInvalidArgument,
                                "%s: scales_type %d is neither type nor ncclFloat32", call.name,
                                moe->scales_type);
    }
    call.moe = (struct lamprey_moe){
        .source = LAMPREY_ROWS_MOE_FINALIZE,
        .count = moe->top_k,
        .inputs = moe->rows,
        .scales = moe->scales,
        .indices = moe->indices,
        .added = moe->added,
        .factor = moe->factor,
        .wide_scales = moe->scales_type == ncclFloat32,
    };
    return lamprey_fused_call(&call, args, comm, stream);
}

ncclResult_t lampreyFp4SwizzledScaleSize(uint64_t tokens, uint64_t columns, uint64_t *bytes)
{
    lamprey_api_begin();
    if (!bytes) {
        return lamprey_api_fail(ncclInvalidArgument, "lampreyFp4SwizzledScaleSize: bytes is NULL");
    }
    uint64_t rows;
    uint64_t padded;
    uint64_t size;
    if (__builtin_add_overflow(tokens, 127, &rows) || __builtin_add_overflow(columns, 3, &padded) ||
        __builtin_mul_overflow(rows / 128 * 128, padded / 4 * 4, &size)) {
        return lamprey_api_fail(ncclInvalidArgument,
                                "lampreyFp4SwizzledScaleSize: tokens x columns is more than memory "
                                "can be");
    }
    *bytes = size;
    return ncclSuccess;
}
