/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/fused.h"

#include "plugin/api.h"
#include "plugin/target.h"

static ncclResult_t run(const struct lamprey_target *target, const struct lamprey_fused *call,
                        CUstream stream)
{
    ncclResult_t result = lamprey_target_admit(target);
    if (result != ncclSuccess || call->args.tokens == 0) {
        return result;
    }
    result = lamprey_target_ready(target);
    return result == ncclSuccess ? lamprey_fused_launch(target->comm, call, stream) : result;
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
