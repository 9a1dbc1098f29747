/* SPDX-License-Identifier: Apache-2.0 */
/* The names that MNNVL programs know: a part of lampreyAllReduceFused, on a workspace. */
#include "plugin/api.h"
#include "plugin/fused.h"

/* What the call needs or leaves to another one; args may still be anything. */
static ncclResult_t check(const char *name, const struct lampreyFusedArgs *args, bool norm)
{
    if (!args || args->size != sizeof *args) {
        return ncclSuccess; /* lamprey_fused_call's to refuse */
    }
    const struct {
        const char *name;
        bool needed;
        bool given;
    } arguments[] = {
        {"workspace", true, args->workspace},
        {"all_reduce_out", !norm, args->all_reduce_out},
        {"residual_in", norm, args->residual_in},
        {"gamma", norm, args->gamma},
        {"norm_out", false, args->norm_out},
        {"quant_out", false, args->quant_out},
        {"residual_out", false, args->residual_out},
    };
    for (size_t i = 0; i < sizeof arguments / sizeof arguments[0]; i++) {
        if (arguments[i].needed && !arguments[i].given) {
            return lamprey_api_fail(ncclInvalidArgument, "%s: %s is NULL", name, arguments[i].name);
        }
        if (!norm && !arguments[i].needed && arguments[i].given) {
            return lamprey_api_fail(ncclInvalidArgument,
                                    "%s: %s is given; lampreyMnnvlAllReduceRmsNorm takes it", name,
                                    arguments[i].name);
        }
    }
    if (norm && !args->norm_out && !args->quant_out) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: norm_out and quant_out are NULL", name);
    }
    return ncclSuccess;
}

static ncclResult_t call(const char *name, const struct lampreyFusedArgs *args, bool norm,
                         cudaStream_t stream)
{
    struct lamprey_fused fused = {.name = name, .moe = {.source = LAMPREY_ROWS_GIVEN}};
    lamprey_api_begin();
    ncclResult_t result = check(name, args, norm);
    return result == ncclSuccess ? lamprey_fused_call(&fused, args, NULL, stream) : result;
}

ncclResult_t lampreyMnnvlAllReduce(const struct lampreyFusedArgs *args, cudaStream_t stream)
{
    return call("lampreyMnnvlAllReduce", args, false, stream);
}

ncclResult_t lampreyMnnvlAllReduceRmsNorm(const struct lampreyFusedArgs *args, cudaStream_t stream)
{
    return call("lampreyMnnvlAllReduceRmsNorm", args, true, stream);
}
