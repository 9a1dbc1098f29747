// SPDX-License-Identifier: Apache-2.0
// A rank that makes the fused calls of lamprey.h as row_arena.h describes them, with the plugin
// that ships.
#ifndef LAMPREY_TESTS_FUSED_RANK_H
#define LAMPREY_TESTS_FUSED_RANK_H

#include "tests/row_arena.h"
#include "tests/serving_world.h"

namespace serving_test {

using lamprey_test::Arena;
using lamprey_test::data_kind;
using lamprey_test::RowCall;
using lamprey_test::Span;
using lamprey_test::weights;

template <class F> F symbol(const char *name)
{
    void *library = dlopen(getenv("LAMPREY_TEST_PLUGIN"), RTLD_NOW);
    F function = library ? (F)dlsym(library, name) : nullptr;
    REQUIRE(function != nullptr);
    return function;
}

inline const char *last_error()
{
    return symbol<decltype(&lampreyGetLastError)>("lampreyGetLastError")();
}

enum class Function { all_reduce, moe_reduce, moe_finalize, custom };

// The operator whose epilogue that is.
inline lampreyFusionOp_t operator_of(const RowCall &call)
{
    if (!call.norm) {
        return lampreyFusionNone;
    }
    if (call.pre_norm) {
        return lampreyFusionResidualRmsPrePostNorm;
    }
    switch (call.quantisation) {
    case LAMPREY_QUANT_FP8_STATIC:
        return call.norm_out ? lampreyFusionResidualRmsNormOutQuantFp8
                             : lampreyFusionResidualRmsNormQuantFp8;
    case LAMPREY_QUANT_NVFP4:
        return call.norm_out ? lampreyFusionResidualRmsNormOutQuantNvfp4
                             : lampreyFusionResidualRmsNormQuantNvfp4;
    default:
        return call.residual ? lampreyFusionResidualRmsNorm : lampreyFusionRmsNorm;
    }
}

// The structs of a call whose arena lies at memory.
struct FusedCall {
    Function function;
    lampreyFusedArgs args = {};
    lampreyMoeReduceArgs reduce = {};
    lampreyMoeFinalizeArgs finalize = {};
    lampreyCustomArgs custom = {};

    FusedCall(Function which, const RowCall &call, const Arena &arena, CUdeviceptr memory)
        : function(which)
    {
        const auto at = [&](const Span &span) {
            return span.bytes ? (void *)(memory + span.at) : nullptr;
        };
        args.size = sizeof args;
        args.tokens = call.tokens;
        args.hidden = call.hidden;
        args.type = Rank::nccl_type(call.type);
        args.strategy =
            call.algorithm == LAMPREY_ONE_SHOT ? lampreyStrategyOneShot : lampreyStrategyTwoShot;
        args.flags = (call.norm ? LAMPREY_FUSED_RMS_NORM : 0) |
                     (call.stepwise ? LAMPREY_FUSED_ACCUMULATE_IN_TYPE : 0);
        args.in = at(arena.input);
        args.all_reduce_out = at(arena.sum_out);
        args.residual_in = at(arena.residual);
        args.residual_out = at(arena.residual_out);
        args.gamma = at(arena.gamma);
        args.gamma_type = Rank::nccl_type(lamprey_test::gamma_type_of(call));
        args.epsilon = call.epsilon;
        args.weight_bias = call.weight_bias;
        args.norm_out = at(arena.norm_out);
        args.quantize = (lampreyQuantize_t)call.quantisation; // in the same order
        args.layout = (lampreyScaleLayout_t)call.layout;
        args.group = call.group;
        args.scale_value = call.scale;
        args.scale = call.scale_in_memory ? (const float *)at(arena.scale) : nullptr;
        args.quant_out = at(arena.codes);
        args.scale_out = at(arena.scales);
        reduce = {sizeof reduce, call.experts, (const float *)at(arena.expert_scales),
                  at(arena.experts), at(arena.added)};
        finalize = {sizeof finalize,
                    call.experts,
                    (const int32_t *)at(arena.indices),
                    at(arena.expert_scales),
                    Rank::nccl_type(lamprey_test::scales_type_of(call)),
                    call.factor,
                    at(arena.experts),
                    at(arena.added)};
        custom = {sizeof custom, operator_of(call), at(arena.bias), at(arena.pre_gamma)};
    }

    ncclResult_t run(ncclComm_t comm, CUstream cu_stream) const
    {
        const cudaStream_t stream = (cudaStream_t)cu_stream;
        switch (function) {
        case Function::moe_reduce:
            return symbol<decltype(&lampreyMoeReduceAllReduceFused)>(
                "lampreyMoeReduceAllReduceFused")(&args, &reduce, comm, stream);
        case Function::moe_finalize:
            return symbol<decltype(&lampreyMoeFinalizeAllReduceFused)>(
                "lampreyMoeFinalizeAllReduceFused")(&args, &finalize, comm, stream);
        case Function::custom:
            return symbol<decltype(&lampreyCustomAllReduce)>("lampreyCustomAllReduce")(
                &args, &custom, comm, stream);
        default:
            return symbol<decltype(&lampreyAllReduceFused)>("lampreyAllReduceFused")(&args, comm,
                                                                                     stream);
        }
    }
};

// A call whose memory is laid out on this rank, and what that must hold afterwards.
class FusedRows {
  public:
    // memory: of this rank, where the call's arrays go; 0: its receive buffer.
    FusedRows(Rank &self, Function function, RowCall call, uint64_t seed, CUdeviceptr memory = 0)
        : self_(self), memory_(memory ? memory : self.recv), call_(with_source(function, call)),
          arenas_(lay_out(call_, (size_t)self.nranks, seed)),
          fused(function, call_, arenas_[(size_t)self.rank], memory_)
    {
        REQUIRE(memory_ + own().before.size() <= self.recv + Rank::bytes);
        expect(call_, arenas_);
    }

    void upload()
    {
        REQUIRE(cuMemcpyHtoDAsync(memory_, own().before.data(), own().before.size(),
                                  self_.stream) == CUDA_SUCCESS);
        REQUIRE(cuStreamSynchronize(self_.stream) == CUDA_SUCCESS);
    }

    ncclResult_t run() const
    {
        return fused.run(self_.comm, self_.stream);
    }

    void check()
    {
        const std::string wrong = difference(call_, (size_t)self_.rank, own(), download());
        if (!wrong.empty()) {
            fprintf(stderr, "function %d: %s\n", (int)fused.function, wrong.c_str());
            _exit(3);
        }
    }

    // Instead of check: nothing has been written.
    void check_untouched()
    {
        REQUIRE(download() == own().before);
    }

    // All of it.
    void round()
    {
        upload();
        const ncclResult_t result = run();
        if (result != ncclSuccess) {
            fprintf(stderr, "%d, %s\n", result, last_error());
            _exit(3);
        }
        check();
    }

  private:
    static RowCall with_source(Function function, RowCall call)
    {
        call.source = function == Function::moe_reduce     ? LAMPREY_ROWS_MOE_REDUCE
                      : function == Function::moe_finalize ? LAMPREY_ROWS_MOE_FINALIZE
                                                           : LAMPREY_ROWS_GIVEN;
        return call;
    }
    lamprey_test::bytes download() const
    {
        lamprey_test::bytes got(own().before.size());
        REQUIRE(cuStreamSynchronize(self_.stream) == CUDA_SUCCESS);
        REQUIRE(cuMemcpyDtoH(got.data(), memory_, got.size()) == CUDA_SUCCESS);
        return got;
    }
    const Arena &own() const
    {
        return arenas_[(size_t)self_.rank];
    }

    Rank &self_;
    CUdeviceptr memory_;
    RowCall call_;
    std::vector<Arena> arenas_;

  public:
    FusedCall fused;
};

} // namespace serving_test

#endif
