/* SPDX-License-Identifier: Apache-2.0 */
/* The all-reduce whose epilogue an operator names. */
#include "plugin/api.h"
#include "plugin/fused.h"

#define NAME "lampreyCustomAllReduce"
#define FAIL(...) lamprey_api_fail(ncclInvalidArgument, NAME ": " __VA_ARGS__)

/* What an operator does with the sum. */
struct operator
{
    lampreyFusionOp_t op;
    bool residual;
    bool pre_norm;
    bool norm;
    bool norm_out;
    lampreyQuantize_t quantize;
};

static const struct operator operators[] = {
    {lampreyFusionNone, false, false, false, false, lampreyQuantizeNone},
    {lampreyFusionResidualRmsNorm, true, false, true, true, lampreyQuantizeNone},
    {lampreyFusionLastProcessForUb, true, false, true, true, lampreyQuantizeNone},
    {lampreyFusionResidualRmsPrePostNorm, true, true, true, true, lampreyQuantizeNone},
    {lampreyFusionResidualRmsNormQuantFp8, true, false, true, false, lampreyQuantizeFp8},
    {lampreyFusionResidualRmsNormQuantNvfp4, true, false, true, false, lampreyQuantizeNvfp4},
    {lampreyFusionResidualRmsNormOutQuantFp8, true, false, true, true, lampreyQuantizeFp8},
    {lampreyFusionResidualRmsNormOutQuantNvfp4, true, false, true, true, lampreyQuantizeNvfp4},
    {lampreyFusionRmsNorm, false, false, true, true, lampreyQuantizeNone},
};

static const struct operator* find(lampreyFusionOp_t op)
{
    for (size_t i = 0; i < sizeof operators / sizeof operators[0]; i++) {
        if (operators[i].op == op) {
            return &operators[i];
        }
    }
    return NULL;
}

/* What the operator needs is there, and nothing else. */
static ncclResult_t check(const struct operator* op, const struct lampreyCustomArgs *custom,
                          const struct lampreyFusedArgs *args)
{
    const struct {
        const char *name;
        bool given;
        bool needed;
        bool optional;
    } members[] = {
        {"residual_in", args->residual_in, op->residual, false},
        {"norm_out", args->norm_out, op->norm_out, false},
        {"gamma", args->gamma, false, op->norm},
        {"pre_gamma", custom->pre_gamma, false, op->pre_norm},
        {"LAMPREY_FUSED_RMS_NORM in flags", args->flags & LAMPREY_FUSED_RMS_NORM, false, op->norm},
    };
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        if (members[i].needed && !members[i].given) {
            return FAIL("%s is NULL, which op %d needs", members[i].name, custom->op);
        }
        if (members[i].given && !members[i].needed && !members[i].optional) {
            return FAIL("%s is given, which op %d has no use for", members[i].name, custom->op);
        }
    }
    if (args->quantize != op->quantize) {
        return FAIL("quantize is %d, but op %d goes with %d", args->quantize, custom->op,
                    op->quantize);
    }
    if (custom->bias && !op->norm && !args->residual_out) {
        return FAIL("residual_out is NULL, where op %d writes the sum with its bias", custom->op);
    }
    return ncclSuccess;
}

ncclResult_t lampreyCustomAllReduce(const struct lampreyFusedArgs *args,
                                    const struct lampreyCustomArgs *custom, ncclComm_t comm,
                                    cudaStream_t stream)
{
    lamprey_api_begin();
    if (!custom) {
        return FAIL("custom is NULL");
    }
    if (custom->size != sizeof *custom) {
        return FAIL("custom->size isn't that of any version of struct lampreyCustomArgs");
    }
    const struct operator* op = find(custom->op);
    if (!op) {
        return FAIL("op %d is no operator%s", custom->op,
                    custom->op == 8 || custom->op == 9 ? ": MoE's have functions of their own"
                                                       : "");
    }
    if (args && args->size == sizeof *args) {
        ncclResult_t result = check(op, custom, args);
        if (result != ncclSuccess) {
            return result;
        }
    }
    struct lamprey_fused call = {
        .name = NAME,
        .moe = {.source = LAMPREY_ROWS_GIVEN},
        .prelude = {.bias = custom->bias, .gamma = custom->pre_gamma},
        .norm = op->norm,
        .pre_norm = op->pre_norm,
    };
    return lamprey_fused_call(&call, args, comm, stream);
}
