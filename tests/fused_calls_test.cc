// SPDX-License-Identifier: Apache-2.0
// Every fused function with every type, shape, world, quantisation and layout, against the
// reference, bit for bit, with every byte around the outputs.
#include "tests/fused_rank.h"

namespace {

using namespace serving_test;

constexpr element_type kTypes[] = {LAMPREY_REFERENCE_F16, LAMPREY_REFERENCE_BF16,
                                   LAMPREY_REFERENCE_F32};
constexpr Function kFunctions[] = {Function::all_reduce, Function::moe_reduce,
                                   Function::moe_finalize, Function::custom};

class FusedMatrix : public Serving {};

struct Shape {
    uint64_t tokens;
    uint32_t hidden;
    uint32_t group;
};
constexpr Shape kShapes[] = {{1, 768, 96}, {3, 515, 5}, {2, 2880, 64}, {9, 112, 16}, {1, 7, 7}};

struct Format {
    lamprey_quantisation quantisation;
    lamprey_scale_layout layout;
};
constexpr Format kFormats[] = {{LAMPREY_QUANT_NONE, LAMPREY_SCALES_LINEAR},
                               {LAMPREY_QUANT_FP8_STATIC, LAMPREY_SCALES_LINEAR},
                               {LAMPREY_QUANT_FP8_TOKEN, LAMPREY_SCALES_LINEAR},
                               {LAMPREY_QUANT_FP8_GROUP, LAMPREY_SCALES_LINEAR},
                               {LAMPREY_QUANT_NVFP4, LAMPREY_SCALES_128X4},
                               {LAMPREY_QUANT_NVFP4, LAMPREY_SCALES_8X4},
                               {LAMPREY_QUANT_NVFP4, LAMPREY_SCALES_LINEAR}};

// What else a call may have, by turns.
void vary(RowCall &call, unsigned turn, bool custom)
{
    constexpr weights kinds[] = {weights::of_type, weights::fp32, weights::none};
    call.sum_out = turn % 2;
    call.residual = turn % 5 != 1;
    call.residual_out = turn % 3 != 1;
    call.norm = turn % 7 != 3;
    call.norm_out = call.norm && turn % 4 != 2;
    call.gamma = call.norm ? kinds[turn % 3] : weights::none;
    call.weight_bias = turn % 2 ? 0.0f : 1.0f;
    call.stepwise = turn % 4 == 1;
    call.scale = call.quantisation == LAMPREY_QUANT_NVFP4 ? 300.0f : 0.37f;
    call.scale_in_memory = turn % 3 == 0;
    call.in_place = turn % 6 == 4 && call.residual_out;
    call.added = turn % 3 != 2;
    call.expert_scales = turn % 4 != 3;
    call.wide_scales = turn % 2;
    call.factor = turn % 5 == 0 ? 2.5f : 1.0f;
    call.kind = turn % 8 == 7 ? data_kind::specials : data_kind::numbers;
    if (custom) {
        const bool plain = call.quantisation == LAMPREY_QUANT_NONE;
        call.norm = !plain || turn % 4 != 3;
        call.residual = call.norm && (!plain || turn % 4 != 2);
        call.norm_out = call.norm && (plain || turn % 2);
        call.pre_norm = plain && call.residual && turn % 4 == 1;
        call.pre_gamma = call.pre_norm ? kinds[turn % 3] : weights::none;
        call.gamma = call.norm ? kinds[turn % 3] : weights::none;
        call.bias = turn % 3 != 1;
        call.residual_out = !call.norm || turn % 3;
    } else if (!call.sum_out && !call.norm_out && call.quantisation == LAMPREY_QUANT_NONE) {
        call.residual_out = true;
    }
}

bool takes(Function function, const Shape &shape, const Format &format)
{
    const bool operators = format.quantisation != LAMPREY_QUANT_FP8_TOKEN &&
                           format.quantisation != LAMPREY_QUANT_FP8_GROUP;
    return (function != Function::custom || operators) &&
           (format.quantisation != LAMPREY_QUANT_NVFP4 || shape.hidden % 16 == 0);
}

// one_of: of so many calls, spread over all that a call may have.
void matrix(int rank, int nranks, unsigned one_of)
{
    Rank self(rank, nranks);
    self.init();
    unsigned turn = 0;
    uint64_t calls = 0;
    for (Function function : kFunctions) {
        for (const Shape &shape : kShapes) {
            for (const Format &format : kFormats) {
                if (!takes(function, shape, format)) {
                    continue;
                }
                for (element_type type : kTypes) {
                    for (lamprey_algorithm algorithm : {LAMPREY_ONE_SHOT, LAMPREY_TWO_SHOT}) {
                        turn++;
                        if ((turn + turn / one_of) % one_of != 0) {
                            continue;
                        }
                        RowCall call = {type, shape.tokens, shape.hidden, algorithm};
                        call.quantisation = format.quantisation;
                        call.layout = format.layout;
                        call.group = shape.group;
                        call.experts = 2;
                        vary(call, turn, function == Function::custom);
                        call.wide_scales |= function == Function::moe_reduce;
                        call.in_place &=
                            function == Function::all_reduce || function == Function::custom;
                        FusedRows rows(self, function, call, turn);
                        rows.fused.args.flags |= (turn % 3 ? 0 : LAMPREY_FUSED_GAMMA_CONSTANT) |
                                                 (turn % 5 ? 0 : LAMPREY_FUSED_SIGNAL);
                        if (turn % 4 == 0) {
                            rows.fused.args.strategy = lampreyStrategyAuto;
                        }
                        rows.round();
                        calls++;
                    }
                }
            }
        }
    }
    REQUIRE(stats_of(self.comm).served == calls);
    REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
}

TEST_F(FusedMatrix, OverTwoProcesses)
{
    processes(2, [](int rank) { matrix(rank, 2, 1); });
}

TEST_F(FusedMatrix, OverThreeThreads)
{
    threads(3, [](int rank) { matrix(rank, 3, 2); });
}

TEST_F(FusedMatrix, OverEightThreads)
{
    threads(8, [](int rank) { matrix(rank, 8, 6); });
}

// The bits of a row don't depend on the rows around it, with whichever strategy their number goes.
TEST_F(FusedMatrix, GivesARowTheSameBitsInEveryBatch)
{
    processes(2, [](int rank) {
        constexpr uint64_t kRows = 64;
        constexpr uint32_t kColumns = 1536;
        Rank self(rank, 2);
        self.init();
        for (element_type type : kTypes) {
            RowCall call = {type, kRows, kColumns};
            call.sum_out = true;
            call.quantisation = LAMPREY_QUANT_FP8_TOKEN;
            FusedRows all(self, Function::all_reduce, call, 77);
            all.fused.args.strategy = lampreyStrategyAuto;
            all.round();
            const uint64_t row_bytes = kColumns * lamprey_test::bytes_of(type);
            CUdeviceptr alone = 0;
            REQUIRE(cuMemAlloc(&alone, 8 * row_bytes) == CUDA_SUCCESS);
            for (uint64_t row : {(uint64_t)0, (uint64_t)31, kRows - 1}) {
                lampreyFusedArgs args = all.fused.args;
                const auto input = [&](const void *matrix) {
                    return (const void *)((const char *)matrix + row * row_bytes);
                };
                const auto output = [&](uint64_t which) {
                    return (void *)(alone + which * row_bytes);
                };
                args.tokens = 1;
                args.in = input(args.in);
                args.residual_in = input(args.residual_in);
                args.all_reduce_out = output(0);
                args.residual_out = output(1);
                args.norm_out = output(2);
                args.quant_out = output(3);
                args.scale_out = output(4);
                REQUIRE(symbol<decltype(&lampreyAllReduceFused)>("lampreyAllReduceFused")(
                            &args, self.comm, (cudaStream_t)self.stream) == ncclSuccess);
                REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
                const lampreyFusedArgs &batch = all.fused.args;
                const struct {
                    const void *batch;
                    uint64_t stride;
                } outputs[] = {{batch.all_reduce_out, row_bytes},
                               {batch.residual_out, row_bytes},
                               {batch.norm_out, row_bytes},
                               {batch.quant_out, kColumns},
                               {batch.scale_out, sizeof(float)}};
                for (uint64_t i = 0; i < 5; i++) {
                    std::vector<uint8_t> one(outputs[i].stride);
                    std::vector<uint8_t> of_many(outputs[i].stride);
                    REQUIRE(cuMemcpyDtoH(one.data(), (CUdeviceptr)output(i), one.size()) ==
                            CUDA_SUCCESS);
                    REQUIRE(cuMemcpyDtoH(of_many.data(),
                                         (CUdeviceptr)outputs[i].batch + row * outputs[i].stride,
                                         one.size()) == CUDA_SUCCESS);
                    REQUIRE(one == of_many);
                }
            }
            REQUIRE(cuMemFree(alone) == CUDA_SUCCESS);
        }
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// More tokens than a 16-bit number has, and none at all.
TEST_F(FusedMatrix, TakesManyTokensAndNone)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        RowCall call = {LAMPREY_REFERENCE_F16, 70000, 8};
        call.in_place = true;
        for (lamprey_algorithm algorithm : {LAMPREY_ONE_SHOT, LAMPREY_TWO_SHOT}) {
            call.algorithm = algorithm;
            FusedRows(self, Function::all_reduce, call, 5).round();
        }
        FusedRows none(self, Function::all_reduce, {LAMPREY_REFERENCE_F16, 1, 8}, 6);
        none.fused.args.tokens = 0;
        REQUIRE(none.run() == ncclSuccess);
        REQUIRE(stats_of(self.comm).served == 2);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// Every function once, each in memory of its own.
std::vector<FusedRows> one_of_each(Rank &self, uint64_t seed)
{
    std::vector<FusedRows> calls;
    for (Function function : kFunctions) {
        RowCall call = {LAMPREY_REFERENCE_BF16, 4, 776,
                        calls.size() % 2 ? LAMPREY_TWO_SHOT : LAMPREY_ONE_SHOT};
        call.bias = call.pre_norm = function == Function::custom;
        call.experts = 2;
        calls.emplace_back(self, function, call, seed + calls.size(),
                           self.recv + ((calls.size() + 1) << 19));
        calls.back().upload();
    }
    return calls;
}

TEST_F(FusedMatrix, ReplaysAmongLiveAndPlainCalls)
{
    threads(3, [](int rank) {
        constexpr size_t kPlain = 1000;
        Rank self(rank, 3);
        CUgraph graph = nullptr;
        CUgraphExec executable = nullptr;
        const auto run = [&](const std::vector<FusedRows> &calls) {
            for (const FusedRows &call : calls) {
                REQUIRE(call.run() == ncclSuccess);
                REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, kPlain) == ncclSuccess);
            }
        };
        self.init();
        for (uint64_t seed = 0; seed < 12; seed++) {
            std::vector<FusedRows> calls = one_of_each(self, seed * 10);
            self.fill(LAMPREY_REFERENCE_F32, kPlain, seed);
            if (seed == 0) {
                REQUIRE(cuStreamBeginCapture(self.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) ==
                        CUDA_SUCCESS);
                run(calls);
                REQUIRE(cuStreamEndCapture(self.stream, &graph) == CUDA_SUCCESS);
                REQUIRE(cuGraphInstantiate(&executable, graph, 0) == CUDA_SUCCESS);
            }
            if (seed % 3 == 2) {
                run(calls);
            } else {
                REQUIRE(cuGraphLaunch(executable, self.stream) == CUDA_SUCCESS);
            }
            for (FusedRows &call : calls) {
                call.check();
            }
            self.check(LAMPREY_REFERENCE_F32, kPlain, seed, true);
        }
        REQUIRE(stats_of(self.comm).served_captured == 8);
        REQUIRE(cuGraphExecDestroy(executable) == CUDA_SUCCESS);
        REQUIRE(cuGraphDestroy(graph) == CUDA_SUCCESS);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

} // namespace
