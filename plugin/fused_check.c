/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "plugin/api.h"
#include "plugin/fused.h"

#define MOST_HIDDEN (1u << 28) /* far beyond what fits; keeps 32-bit sums safe */
#define MOST_TOKENS (1ull << 40)
#define NVFP4_BLOCK LAMPREY_UNIT_ELEMENTS

#define FAIL(call, ...) lamprey_api_fail(ncclInvalidArgument, __VA_ARGS__)

/* Memory that a call writes or reads. */
struct span {
    const char *name;
    const void *start;
    uint64_t bytes;
    bool written;
    bool rows; /* of the call's type and shape: may be one with another such */
};

static uint64_t round_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static uint64_t scale_bytes(const struct lampreyFusedArgs *args)
{
    switch (args->quantize) {
    case lampreyQuantizeFp8PerToken:
        return args->tokens * sizeof(float);
    case lampreyQuantizeFp8PerGroup: {
        const uint64_t columns = (args->hidden / args->group + 3) / 4;
        return ((columns - 1) * round_up(args->tokens, 4) + args->tokens) * 4;
    }
    case lampreyQuantizeNvfp4: {
        const uint64_t columns = args->hidden / NVFP4_BLOCK;
        if (args->layout == lampreyScalesLinear) {
            return args->tokens * columns;
        }
        return round_up(args->tokens, args->layout == lampreyScales128x4 ? 128 : 8) *
               round_up(columns, 4);
    }
    default:
        return 0;
    }
}

/* Bytes of one of the experts' scales. */
static uint32_t scale_size(const struct lamprey_fused *call)
{
    return call->moe.wide_scales ? sizeof(float) : call->element_bytes;
}

static ncclResult_t check_overlaps(const struct lamprey_fused *call)
{
    const struct lampreyFusedArgs *args = &call->args;
    const struct lamprey_moe *moe = &call->moe;
    const uint64_t elements = args->tokens * args->hidden;
    const uint64_t bytes = elements * call->element_bytes;
    const uint64_t gamma_bytes = args->hidden * (args->gamma_type == ncclFloat32 ? 4 : 2);
    const bool given = moe->source == LAMPREY_ROWS_GIVEN;
    const uint64_t choices = moe->count * args->tokens;
    const struct span spans[] = {
        {"in", given ? args->in : NULL, bytes, false, true},
        {"residual_in", args->residual_in, bytes, false, true},
        {"gamma", args->gamma, gamma_bytes, false, false},
        {"pre_gamma", call->prelude.gamma, gamma_bytes, false, false},
        {"bias", call->prelude.bias, args->hidden * call->element_bytes, false, false},
        {"scale", args->scale, sizeof(float), false, false},
        {"added", moe->added, bytes, false, false},
        {"rows", moe->inputs,
         moe->source == LAMPREY_ROWS_MOE_REDUCE ? moe->count * bytes : call->element_bytes, false,
         false},
        {"scales", moe->scales, choices * scale_size(call), false, false},
        {"indices", moe->indices, choices * sizeof(int32_t), false, false},
        {"all_reduce_out", args->all_reduce_out, bytes, true, true},
        {"residual_out", args->residual_out, bytes, true, true},
        {"norm_out", args->norm_out, bytes, true, true},
        {"quant_out", args->quant_out,
         args->quantize == lampreyQuantizeNvfp4 ? elements / 2 : elements, true, false},
        {"scale_out", args->scale_out, scale_bytes(args), true, false},
    };
    const size_t count = sizeof spans / sizeof spans[0];
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < count; j++) {
            const struct span *a = &spans[i];
            const struct span *b = &spans[j];
            const uintptr_t at = (uintptr_t)a->start;
            const uintptr_t other = (uintptr_t)b->start;
            const bool same = at == other && a->rows && b->rows && !b->written;
            if (i != j && a->written && a->start && b->start && !same && at < other + b->bytes &&
                other < at + a->bytes) {
                return FAIL(call, "%s: %s overlaps %s", call->name, a->name, b->name);
            }
        }
    }
    return ncclSuccess;
}

static ncclResult_t check_quantisation(const struct lamprey_fused *call)
{
    const struct lampreyFusedArgs *args = &call->args;
    const bool scaled =
        args->quantize == lampreyQuantizeFp8 || args->quantize == lampreyQuantizeNvfp4;
    if ((unsigned)args->quantize > lampreyQuantizeNvfp4) {
        return FAIL(call, "%s: quantize %d is no kind of quantisation", call->name, args->quantize);
    }
    if (args->quantize == lampreyQuantizeNone) {
        return args->quant_out || args->scale_out
                   ? FAIL(call, "%s: %s is given, but quantize is lampreyQuantizeNone", call->name,
                          args->quant_out ? "quant_out" : "scale_out")
                   : ncclSuccess;
    }
    if (!args->quant_out) {
        return FAIL(call, "%s: quant_out is NULL", call->name);
    }
    if (!args->scale_out && args->quantize != lampreyQuantizeFp8) {
        return FAIL(call, "%s: scale_out is NULL", call->name);
    }
    if (args->quantize == lampreyQuantizeFp8PerToken && (uintptr_t)args->scale_out % 4 != 0) {
        return FAIL(call, "%s: scale_out isn't at a multiple of 4", call->name);
    }
    if (scaled && args->scale && (uintptr_t)args->scale % 4 != 0) {
        return FAIL(call, "%s: scale isn't at a multiple of 4", call->name);
    }
    if (scaled && !args->scale && !(isfinite(args->scale_value) && args->scale_value > 0)) {
        return FAIL(call, "%s: scale_value is %g, not a positive number, and scale is NULL",
                    call->name, (double)args->scale_value);
    }
    if (args->quantize == lampreyQuantizeFp8PerGroup &&
        (args->group == 0 || args->hidden % args->group != 0)) {
        return FAIL(call, "%s: group %u doesn't divide hidden %llu", call->name, args->group,
                    (unsigned long long)args->hidden);
    }
    if (args->quantize == lampreyQuantizeNvfp4 && args->hidden % NVFP4_BLOCK != 0) {
        return FAIL(call, "%s: hidden %llu isn't a multiple of 16, as NVFP4 needs", call->name,
                    (unsigned long long)args->hidden);
    }
    if (args->quantize == lampreyQuantizeNvfp4 && (unsigned)args->layout > lampreyScalesLinear) {
        return FAIL(call, "%s: layout %d is no layout of scales", call->name, args->layout);
    }
    return ncclSuccess;
}

static ncclResult_t check_moe(const struct lamprey_fused *call)
{
    const struct lamprey_moe *moe = &call->moe;
    const bool reduces = moe->source == LAMPREY_ROWS_MOE_REDUCE;
    if (moe->source == LAMPREY_ROWS_GIVEN) {
        return call->args.in ? ncclSuccess : FAIL(call, "%s: in is NULL", call->name);
    }
    if (moe->count == 0 || moe->count > 4096) {
        return FAIL(call, "%s: %s is %u, not 1 to 4096", call->name, reduces ? "experts" : "top_k",
                    moe->count);
    }
    if (!moe->inputs) {
        return FAIL(call, "%s: rows is NULL", call->name);
    }
    if (reduces && !moe->scales) {
        return FAIL(call, "%s: scales is NULL", call->name);
    }
    if (!reduces && !moe->indices) {
        return FAIL(call, "%s: indices is NULL", call->name);
    }
    if (!isfinite(moe->factor)) {
        return FAIL(call, "%s: factor is %g", call->name, (double)moe->factor);
    }
    const struct {
        const char *name;
        const void *pointer;
        uint32_t multiple;
    } arrays[] = {{"rows", moe->inputs, call->element_bytes},
                  {"added", moe->added, call->element_bytes},
                  {"scales", moe->scales, scale_size(call)},
                  {"indices", moe->indices, sizeof(int32_t)}};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        if ((uintptr_t)arrays[i].pointer % arrays[i].multiple != 0) {
            return FAIL(call, "%s: %s isn't at a multiple of its type", call->name, arrays[i].name);
        }
    }
    return ncclSuccess;
}

static ncclResult_t check_rows(struct lamprey_fused *call)
{
    const struct lampreyFusedArgs *args = &call->args;
    const struct {
        const char *name;
        const void *pointer;
    } rows[] = {{"in", args->in},
                {"all_reduce_out", args->all_reduce_out},
                {"residual_in", args->residual_in},
                {"residual_out", args->residual_out},
                {"norm_out", args->norm_out},
                {"bias", call->prelude.bias}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if ((uintptr_t)rows[i].pointer % call->element_bytes != 0) {
            return FAIL(call, "%s: %s isn't at a multiple of its type", call->name, rows[i].name);
        }
    }
    const struct {
        const char *name;
        const void *pointer;
    } gammas[] = {{"gamma", args->gamma}, {"pre_gamma", call->prelude.gamma}};
    if ((args->gamma || call->prelude.gamma) && args->gamma_type != args->type &&
        args->gamma_type != ncclFloat32) {
        return FAIL(call, "%s: gamma_type %d is neither type nor ncclFloat32", call->name,
                    args->gamma_type);
    }
    for (size_t i = 0; i < sizeof gammas / sizeof gammas[0]; i++) {
        if ((uintptr_t)gammas[i].pointer % (args->gamma_type == ncclFloat32 ? 4 : 2) != 0) {
            return FAIL(call, "%s: %s isn't at a multiple of its type", call->name, gammas[i].name);
        }
    }
    if (!(isfinite(args->epsilon) && args->epsilon >= 0)) {
        return FAIL(call, "%s: epsilon is %g", call->name, (double)args->epsilon);
    }
    if (!isfinite(args->weight_bias)) {
        return FAIL(call, "%s: weight_bias is %g", call->name, (double)args->weight_bias);
    }
    if (!args->all_reduce_out && !args->residual_out && !args->norm_out && !args->quant_out) {
        return FAIL(call,
                    "%s: no output (all_reduce_out, residual_out, norm_out and quant_out are NULL)",
                    call->name);
    }
    return ncclSuccess;
}

ncclResult_t lamprey_fused_check(struct lamprey_fused *call)
{
    const struct lampreyFusedArgs *args = &call->args;
    switch ((int)args->type) {
    case ncclFloat16:
        call->element = LAMPREY_F16;
        break;
    case ncclBfloat16:
        call->element = LAMPREY_BF16;
        break;
    case ncclFloat32:
        call->element = LAMPREY_F32;
        break;
    default:
        return FAIL(call, "%s: type %d is none of ncclFloat16, ncclBfloat16, ncclFloat32",
                    call->name, args->type);
    }
    call->element_bytes = lamprey_element_bytes(call->element);
    if (args->hidden == 0 || args->hidden > MOST_HIDDEN) {
        return FAIL(call, "%s: hidden is %llu", call->name, (unsigned long long)args->hidden);
    }
    if (args->tokens > MOST_TOKENS / args->hidden) {
        return FAIL(call, "%s: tokens is %llu", call->name, (unsigned long long)args->tokens);
    }
    if ((unsigned)args->strategy > lampreyStrategyTwoShot) {
        return FAIL(call, "%s: strategy %d is no strategy", call->name, args->strategy);
    }
    if (args->flags >= 2 * LAMPREY_FUSED_SIGNAL) {
        return FAIL(call, "%s: flags has bits that mean nothing (0x%x)", call->name, args->flags);
    }
    if (args->tokens == 0) { /* empty tensors have no addresses in many frameworks */
        return ncclSuccess;
    }
    ncclResult_t result = check_rows(call);
    if (result == ncclSuccess) {
        result = check_moe(call);
    }
    if (result == ncclSuccess) {
        result = check_quantisation(call);
    }
    return result == ncclSuccess ? check_overlaps(call) : result;
}

bool lamprey_fused_is_wide(const struct lamprey_fused *call)
{
    const struct lampreyFusedArgs *args = &call->args;
    const bool given = call->moe.source == LAMPREY_ROWS_GIVEN;
    const uintptr_t addresses =
        (uintptr_t)(given ? args->in : NULL) | (uintptr_t)args->all_reduce_out |
        (uintptr_t)args->residual_in | (uintptr_t)args->residual_out | (uintptr_t)args->gamma |
        (uintptr_t)args->norm_out | (uintptr_t)call->moe.inputs | (uintptr_t)call->moe.added |
        (uintptr_t)call->prelude.bias | (uintptr_t)call->prelude.gamma;
    return ((addresses | args->hidden * call->element_bytes) & (LAMPREY_VECTOR_BYTES - 1)) == 0;
}
