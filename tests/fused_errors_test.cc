// SPDX-License-Identifier: Apache-2.0
// What the fused functions refuse: by the argument's name, on the rank that is wrong alone, with
// nothing launched and nothing written.
#include <cmath>

#include "tests/fused_rank.h"

namespace {

using namespace serving_test;

class FusedErrors : public Serving {};

constexpr Function kPlain = Function::all_reduce;
constexpr Function kReduce = Function::moe_reduce;
constexpr Function kFinalize = Function::moe_finalize;
constexpr Function kCustom = Function::custom;

const char *name_of(Function function)
{
    switch (function) {
    case kReduce:
        return "lampreyMoeReduceAllReduceFused: ";
    case kFinalize:
        return "lampreyMoeFinalizeAllReduceFused: ";
    case kCustom:
        return "lampreyCustomAllReduce: ";
    default:
        return "lampreyAllReduceFused: ";
    }
}

// A pointer moved on, of whatever type.
template <class T> void shift(T *&pointer, size_t bytes = 1)
{
    pointer = (T *)((uintptr_t)pointer + bytes);
}

// From a call that is right to one that isn't.
struct Refusal {
    Function function;
    const char *text; // of the error, after the function's name
    void (*change)(FusedCall &);
};

const Refusal kSizes[] = {
    {kPlain, "args->size", [](FusedCall &c) { c.args.size = 0; }},
    {kPlain, "args->size", [](FusedCall &c) { c.args.size += 8; }},
    {kReduce, "args->size", [](FusedCall &c) { c.args.size--; }},
    {kCustom, "args->size", [](FusedCall &c) { c.args.size--; }},
    {kReduce, "moe->size", [](FusedCall &c) { c.reduce.size = sizeof c.finalize; }},
    {kFinalize, "moe->size", [](FusedCall &c) { c.finalize.size = 0; }},
    {kCustom, "custom->size", [](FusedCall &c) { c.custom.size++; }},
};

const Refusal kNumbers[] = {
    {kPlain, "type 2 ", [](FusedCall &c) { c.args.type = ncclInt32; }},
    {kReduce, "type 8 ", [](FusedCall &c) { c.args.type = ncclFloat64; }},
    {kPlain, "hidden is 0", [](FusedCall &c) { c.args.hidden = 0; }},
    {kCustom, "hidden is ", [](FusedCall &c) { c.args.hidden = 1ull << 40; }},
    {kPlain, "tokens is ", [](FusedCall &c) { c.args.tokens = ~0ull / 2; }},
    {kPlain, "strategy 3 ", [](FusedCall &c) { c.args.strategy = (lampreyStrategy_t)3; }},
    {kFinalize, "strategy -1 ", [](FusedCall &c) { c.args.strategy = (lampreyStrategy_t)-1; }},
    {kPlain, "flags ", [](FusedCall &c) { c.args.flags |= 1u << 31; }},
    {kPlain, "epsilon is ", [](FusedCall &c) { c.args.epsilon = -1e-6f; }},
    {kPlain, "epsilon is ", [](FusedCall &c) { c.args.epsilon = NAN; }},
    {kPlain, "weight_bias is ", [](FusedCall &c) { c.args.weight_bias = INFINITY; }},
    {kPlain, "gamma_type 6 ", [](FusedCall &c) { c.args.gamma_type = ncclFloat16; }},
};

const Refusal kPointers[] = {
    {kPlain, "in is NULL", [](FusedCall &c) { c.args.in = nullptr; }},
    {kCustom, "in is NULL", [](FusedCall &c) { c.args.in = nullptr; }},
    {kPlain, "in isn't at", [](FusedCall &c) { shift(c.args.in); }},
    {kPlain, "all_reduce_out isn't at", [](FusedCall &c) { shift(c.args.all_reduce_out); }},
    {kPlain, "residual_in isn't at", [](FusedCall &c) { shift(c.args.residual_in); }},
    {kReduce, "residual_out isn't at", [](FusedCall &c) { shift(c.args.residual_out); }},
    {kPlain, "norm_out isn't at", [](FusedCall &c) { shift(c.args.norm_out); }},
    {kPlain, "gamma isn't at", [](FusedCall &c) { shift(c.args.gamma); }},
    {kPlain, "scale isn't at", [](FusedCall &c) { shift(c.args.scale); }},
    {kPlain, "no output",
     [](FusedCall &c) {
         c.args.all_reduce_out = c.args.residual_out = c.args.norm_out = nullptr;
         c.args.quant_out = c.args.scale_out = nullptr;
         c.args.quantize = lampreyQuantizeNone;
     }},
};

const Refusal kQuantisation[] = {
    {kPlain, "quantize 5 ", [](FusedCall &c) { c.args.quantize = (lampreyQuantize_t)5; }},
    {kPlain, "quant_out is NULL", [](FusedCall &c) { c.args.quant_out = nullptr; }},
    {kFinalize, "scale_out is NULL", [](FusedCall &c) { c.args.scale_out = nullptr; }},
    {kPlain, "quant_out is given", [](FusedCall &c) { c.args.quantize = lampreyQuantizeNone; }},
    {kPlain, "scale_out is given",
     [](FusedCall &c) {
         c.args.quantize = lampreyQuantizeNone;
         c.args.quant_out = nullptr;
     }},
    {kPlain, "scale_value is 0",
     [](FusedCall &c) {
         c.args.scale = nullptr;
         c.args.scale_value = 0;
     }},
    {kPlain, "scale_value is ",
     [](FusedCall &c) {
         c.args.scale = nullptr;
         c.args.quantize = lampreyQuantizeFp8;
         c.args.scale_value = NAN;
     }},
    {kPlain, "layout 3 ", [](FusedCall &c) { c.args.layout = (lampreyScaleLayout_t)3; }},
    {kPlain, "hidden 760 ", [](FusedCall &c) { c.args.hidden = 760; }},
    {kPlain, "group 0 ",
     [](FusedCall &c) {
         c.args.quantize = lampreyQuantizeFp8PerGroup;
         c.args.group = 0;
     }},
    {kPlain, "group 100 ",
     [](FusedCall &c) {
         c.args.quantize = lampreyQuantizeFp8PerGroup;
         c.args.group = 100;
     }},
    {kPlain, "scale_out isn't at",
     [](FusedCall &c) {
         c.args.quantize = lampreyQuantizeFp8PerToken;
         shift(c.args.scale_out, 2);
     }},
};

const Refusal kOverlaps[] = {
    {kPlain, "all_reduce_out overlaps residual_out",
     [](FusedCall &c) { c.args.residual_out = c.args.all_reduce_out; }},
    {kPlain, "all_reduce_out overlaps in",
     [](FusedCall &c) {
         c.args.all_reduce_out = (void *)c.args.in;
         shift(c.args.all_reduce_out, 16);
     }},
    {kPlain, "norm_out overlaps residual_in",
     [](FusedCall &c) {
         c.args.norm_out = (void *)c.args.residual_in;
         shift(c.args.norm_out, 32);
     }},
    {kPlain, "norm_out overlaps gamma",
     [](FusedCall &c) {
         c.args.tokens = 1;
         c.args.norm_out = (void *)c.args.gamma;
     }},
    {kPlain, "quant_out overlaps in", [](FusedCall &c) { c.args.quant_out = (void *)c.args.in; }},
    {kPlain, "quant_out overlaps scale_out",
     [](FusedCall &c) { c.args.scale_out = c.args.quant_out; }},
    {kPlain, "scale_out overlaps scale",
     [](FusedCall &c) {
         c.args.quantize = lampreyQuantizeFp8PerToken;
         c.args.scale_out = (void *)c.args.scale;
     }},
    {kReduce, "norm_out overlaps added",
     [](FusedCall &c) { c.args.norm_out = (void *)c.reduce.added; }},
    {kReduce, "residual_out overlaps rows",
     [](FusedCall &c) {
         c.args.residual_out = (void *)c.reduce.rows;
         shift(c.args.residual_out, 5 * 768 * 2); // the second expert's
     }},
    {kReduce, "scale_out overlaps scales",
     [](FusedCall &c) {
         c.args.quantize = lampreyQuantizeFp8PerToken;
         c.args.scale_out = (void *)c.reduce.scales;
     }},
    {kFinalize, "scale_out overlaps indices",
     [](FusedCall &c) {
         c.args.quantize = lampreyQuantizeFp8PerToken;
         c.args.scale_out = (void *)c.finalize.indices;
     }},
    {kCustom, "norm_out overlaps bias",
     [](FusedCall &c) {
         c.args.tokens = 1;
         c.args.norm_out = (void *)c.custom.bias;
     }},
};

const Refusal kMoe[] = {
    {kReduce, "experts is 0", [](FusedCall &c) { c.reduce.experts = 0; }},
    {kReduce, "experts is 4097", [](FusedCall &c) { c.reduce.experts = 4097; }},
    {kReduce, "rows is NULL", [](FusedCall &c) { c.reduce.rows = nullptr; }},
    {kReduce, "scales is NULL", [](FusedCall &c) { c.reduce.scales = nullptr; }},
    {kReduce, "rows isn't at", [](FusedCall &c) { shift(c.reduce.rows); }},
    {kReduce, "added isn't at", [](FusedCall &c) { shift(c.reduce.added); }},
    {kReduce, "scales isn't at", [](FusedCall &c) { shift(c.reduce.scales, 2); }},
    {kFinalize, "top_k is 0", [](FusedCall &c) { c.finalize.top_k = 0; }},
    {kFinalize, "rows is NULL", [](FusedCall &c) { c.finalize.rows = nullptr; }},
    {kFinalize, "indices is NULL", [](FusedCall &c) { c.finalize.indices = nullptr; }},
    {kFinalize, "indices isn't at", [](FusedCall &c) { shift(c.finalize.indices, 2); }},
    {kFinalize, "scales_type 6 ", [](FusedCall &c) { c.finalize.scales_type = ncclFloat16; }},
    {kFinalize, "factor is ", [](FusedCall &c) { c.finalize.factor = NAN; }},
};

void use(FusedCall &call, lampreyFusionOp_t op)
{
    call.custom.op = op;
    call.args.quantize = lampreyQuantizeNone;
    call.args.quant_out = call.args.scale_out = nullptr;
}

const Refusal kOperators[] = {
    {kCustom, "op 8 is no operator: MoE", [](FusedCall &c) { c.custom.op = (lampreyFusionOp_t)8; }},
    {kCustom, "op 10 is no operator", [](FusedCall &c) { c.custom.op = (lampreyFusionOp_t)10; }},
    {kCustom, "residual_in is NULL", [](FusedCall &c) { c.args.residual_in = nullptr; }},
    {kCustom, "norm_out is NULL", [](FusedCall &c) { c.args.norm_out = nullptr; }},
    {kCustom, "quantize is 4",
     [](FusedCall &c) { c.custom.op = lampreyFusionResidualRmsNormOutQuantFp8; }},
    {kCustom, "norm_out is given",
     [](FusedCall &c) { c.custom.op = lampreyFusionResidualRmsNormQuantNvfp4; }},
    {kCustom, "residual_in is given", [](FusedCall &c) { use(c, lampreyFusionRmsNorm); }},
    {kCustom, "gamma is given",
     [](FusedCall &c) {
         use(c, lampreyFusionNone);
         c.args.residual_in = c.args.norm_out = nullptr;
     }},
    {kCustom, "LAMPREY_FUSED_RMS_NORM in flags is given",
     [](FusedCall &c) {
         use(c, lampreyFusionNone);
         c.args.residual_in = c.args.norm_out = nullptr;
         c.args.gamma = nullptr;
     }},
    {kCustom, "residual_out is NULL",
     [](FusedCall &c) {
         use(c, lampreyFusionNone);
         c.args.residual_in = c.args.gamma = nullptr;
         c.args.norm_out = c.args.residual_out = nullptr;
         c.args.flags = 0;
     }},
    {kCustom, "pre_gamma is given", [](FusedCall &c) { c.custom.pre_gamma = c.args.gamma; }},
    {kCustom, "pre_gamma isn't at",
     [](FusedCall &c) {
         use(c, lampreyFusionResidualRmsPrePostNorm);
         c.custom.pre_gamma = c.args.gamma;
         shift(c.custom.pre_gamma);
     }},
    {kCustom, "gamma_type 6 ",
     [](FusedCall &c) {
         use(c, lampreyFusionResidualRmsPrePostNorm);
         c.custom.pre_gamma = c.args.gamma;
         c.args.gamma = nullptr;
         c.args.gamma_type = ncclFloat16;
     }},
    {kCustom, "bias isn't at", [](FusedCall &c) { shift(c.custom.bias); }},
};

FusedRows right_call(Rank &self, Function function)
{
    RowCall call = {LAMPREY_REFERENCE_BF16, 5, 768};
    call.sum_out = true;
    call.quantisation = LAMPREY_QUANT_NVFP4;
    call.bias = function == kCustom;
    return FusedRows(self, function, call, 3);
}

// All of a table on rank 0, which then makes its right calls with rank 1 as if nothing had been.
template <size_t N> void refuse(const Refusal (&table)[N], int rank)
{
    Rank self(rank, 2);
    self.init();
    right_call(self, kPlain).round();
    for (size_t i = 0; rank == 0 && i < N; i++) {
        const Refusal &one = table[i];
        FusedRows rows = right_call(self, one.function);
        const std::string text = name_of(one.function) + std::string(one.text);
        rows.upload();
        one.change(rows.fused);
        const ncclResult_t result = rows.run();
        if (result != ncclInvalidArgument ||
            strncmp(last_error(), text.c_str(), text.size()) != 0) {
            fprintf(stderr, "%s: %d, \"%s\"\n", text.c_str(), result, last_error());
            _exit(3);
        }
        rows.check_untouched();
    }
    for (Function function : {kPlain, kReduce, kFinalize, kCustom}) {
        right_call(self, function).round();
    }
    REQUIRE(strcmp(last_error(), "") == 0);
    const lampreyStats stats = stats_of(self.comm);
    REQUIRE(stats.served == 5 && stats.failed == 0);
    REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
}

TEST_F(FusedErrors, NameStructsOfOtherSizes)
{
    processes(2, [](int rank) { refuse(kSizes, rank); });
}

TEST_F(FusedErrors, NameShapesTypesAndNumbers)
{
    processes(2, [](int rank) { refuse(kNumbers, rank); });
}

TEST_F(FusedErrors, NamePointers)
{
    processes(2, [](int rank) { refuse(kPointers, rank); });
}

TEST_F(FusedErrors, NameWhatQuantisationLacks)
{
    processes(2, [](int rank) { refuse(kQuantisation, rank); });
}

TEST_F(FusedErrors, NameBothThatOverlap)
{
    processes(2, [](int rank) { refuse(kOverlaps, rank); });
}

TEST_F(FusedErrors, NameWhatExpertsLack)
{
    processes(2, [](int rank) { refuse(kMoe, rank); });
}

TEST_F(FusedErrors, NameWhatAnOperatorDoesNotTake)
{
    processes(2, [](int rank) { refuse(kOperators, rank); });
}

void expect_error(ncclResult_t result, ncclResult_t expected, const char *text)
{
    if (result != expected || !strstr(last_error(), text)) {
        fprintf(stderr, "%s: %d, \"%s\"\n", text, result, last_error());
        _exit(3);
    }
}

TEST_F(FusedErrors, NameWhatIsNull)
{
    processes(1, [](int) {
        lampreyFusedArgs args = {};
        lampreyCustomArgs custom = {};
        ncclComm_t comm = nullptr;
        custom.size = sizeof custom;
        const auto plain = symbol<decltype(&lampreyAllReduceFused)>("lampreyAllReduceFused");
        const auto reduce =
            symbol<decltype(&lampreyMoeReduceAllReduceFused)>("lampreyMoeReduceAllReduceFused");
        const auto finalize =
            symbol<decltype(&lampreyMoeFinalizeAllReduceFused)>("lampreyMoeFinalizeAllReduceFused");
        const auto by_operator =
            symbol<decltype(&lampreyCustomAllReduce)>("lampreyCustomAllReduce");
        const auto scale_size =
            symbol<decltype(&lampreyFp4SwizzledScaleSize)>("lampreyFp4SwizzledScaleSize");
        expect_error(plain(nullptr, comm, nullptr), ncclInvalidArgument, "args is NULL");
        expect_error(by_operator(nullptr, &custom, comm, nullptr), ncclInvalidArgument,
                     "args is NULL");
        expect_error(reduce(&args, nullptr, comm, nullptr), ncclInvalidArgument, "moe is NULL");
        expect_error(finalize(&args, nullptr, comm, nullptr), ncclInvalidArgument, "moe is NULL");
        expect_error(by_operator(&args, nullptr, comm, nullptr), ncclInvalidArgument,
                     "custom is NULL");
        const Rank self(0, 1);
        const Arena arena = lay_out(RowCall{LAMPREY_REFERENCE_F32, 1, 4}, 1, 1)[0];
        args = FusedCall(kPlain, RowCall{LAMPREY_REFERENCE_F32, 1, 4}, arena, self.recv).args;
        expect_error(plain(&args, nullptr, nullptr), ncclInvalidArgument, "comm");
        expect_error(scale_size(1, 1, nullptr), ncclInvalidArgument, "bytes is NULL");
        uint64_t bytes = 0;
        REQUIRE(scale_size(129, 5, &bytes) == ncclSuccess && bytes == 256 * 8);
        expect_error(scale_size(UINT64_MAX, 1, &bytes), ncclInvalidArgument, "more than memory");
        expect_error(scale_size(1, UINT64_MAX, &bytes), ncclInvalidArgument, "more than memory");
        expect_error(scale_size(1ull << 32, 1ull << 32, &bytes), ncclInvalidArgument,
                     "more than memory");
        REQUIRE(bytes == 256 * 8);
    });
}

// By what is so on all ranks.
TEST_F(FusedErrors, TellWhyACommunicatorDoesNotTakeThem)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        FusedRows rows = right_call(self, kCustom);
        rows.round();
        REQUIRE(ncclGroupStart() == ncclSuccess);
        expect_error(rows.run(), ncclInvalidUsage, "ncclGroupStart");
        REQUIRE(ncclGroupEnd() == ncclSuccess);
        rows.round();
        REQUIRE(ncclCommFinalize(self.comm) == ncclSuccess);
        expect_error(rows.run(), ncclInvalidUsage, "finalized");
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

TEST_F(FusedErrors, TellThatACommunicatorIsNotServed)
{
    processes(2, [](int rank) {
        setenv("LAMPREY_DISABLE", rank == 1 ? "1" : "0", 1);
        Rank self(rank, 2);
        self.init();
        FusedRows rows = right_call(self, kReduce);
        rows.upload();
        expect_error(rows.run(), ncclInvalidUsage, "isn't served");
        rows.check_untouched();
        self.round(LAMPREY_REFERENCE_F32, 1000, 1, false);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

} // namespace
