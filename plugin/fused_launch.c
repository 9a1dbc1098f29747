/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "kernels/row_plan.h"
#include "plugin/api.h"
#include "plugin/check.h"
#include "plugin/config.h"
#include "plugin/fused.h"

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
    if (lamprey_launch_overlaps(workspace)) {
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

/* All that the ranks must have in common. */
static struct lamprey_signature signature_of(const struct lampreyFusedArgs *args)
{
    const uint32_t group = args->quantize == lampreyQuantizeFp8PerGroup ? args->group : 0;
    const uint32_t traits = (uint32_t)args->strategy |
                            (args->flags & LAMPREY_FUSED_ACCUMULATE_IN_TYPE ? 4u : 0) | group << 3;
    return lamprey_check_signature_of_rows(args->tokens, (uint32_t)args->hidden, args->type,
                                           traits);
}

ncclResult_t lamprey_fused_launch(struct lamprey_comm *comm, const struct lamprey_fused *call,
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
        if (!status && workspace->checked) {
            const struct lamprey_signature signature = signature_of(&call->args);
            status = lamprey_check_launch(workspace, &signature, stream);
        }
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
