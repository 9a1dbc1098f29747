// SPDX-License-Identifier: Apache-2.0
// All-reduces with an epilogue through the plugin that ships: whole programs in the emulator.
#include "kernels/fused_reference.h"
#include "tests/fused_rank.h"

namespace {

using namespace serving_test;

constexpr size_t kTokens = 5;
constexpr size_t kHidden = 768;

// A rank's arrays: the input in send, everything else in recv.
struct Fused {
    enum array { residual, gamma, sum_out, residual_out, norm_out, codes, scales, arrays };

    Rank &self;
    element_type type = LAMPREY_REFERENCE_BF16;
    lampreyFusedArgs args = {};

    explicit Fused(Rank &rank) : self(rank)
    {
        args.size = sizeof args;
        args.tokens = kTokens;
        args.hidden = kHidden;
        args.type = Rank::nccl_type(type);
        args.in = (const void *)self.send;
        args.all_reduce_out = at(sum_out);
        args.residual_in = at(residual);
        args.residual_out = at(residual_out);
        args.gamma = at(gamma);
        args.gamma_type = args.type;
        args.epsilon = 1e-6f;
        args.norm_out = at(norm_out);
        args.quantize = lampreyQuantizeNvfp4;
        args.scale_value = 300;
        args.quant_out = at(codes);
        args.scale_out = at(scales);
    }

    void *at(int which) const
    {
        return (void *)(self.recv + (size_t)which * (64 << 10));
    }

    void fill(uint64_t seed)
    {
        self.fill(type, kTokens * kHidden, seed);
        const std::vector<uint8_t> rows = self.input_of(100, type, kTokens * kHidden, seed);
        REQUIRE(cuMemsetD8Async(self.recv, 0x5a, arrays * (64 << 10), self.stream) == CUDA_SUCCESS);
        for (int which : {residual, gamma}) {
            REQUIRE(cuMemcpyHtoDAsync((CUdeviceptr)at(which), rows.data(), rows.size(),
                                      self.stream) == CUDA_SUCCESS);
        }
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
    }

    void expect(int which, const std::vector<uint8_t> &expected)
    {
        std::vector<uint8_t> got(expected.size() + 16);
        REQUIRE(cuMemcpyDtoH(got.data(), (CUdeviceptr)at(which), got.size()) == CUDA_SUCCESS);
        REQUIRE(memcmp(got.data(), expected.data(), expected.size()) == 0);
        REQUIRE(got[expected.size()] == 0x5a && got.back() == 0x5a);
    }

    void check(uint64_t seed)
    {
        const size_t elements = kTokens * kHidden;
        std::vector<std::vector<uint8_t>> inputs;
        for (int other = 0; other < self.nranks; other++) {
            inputs.push_back(self.input_of(other, type, elements, seed));
        }
        const std::vector<uint8_t> sum = lamprey_test::all_reduce_sum(type, inputs);
        const std::vector<uint8_t> rows = self.input_of(100, type, elements, seed);
        lamprey_reference_epilogue epilogue = {};
        epilogue.type = epilogue.gamma_type = type;
        epilogue.tokens = kTokens;
        epilogue.hidden = kHidden;
        epilogue.sum = sum.data();
        epilogue.residual = epilogue.gamma = rows.data();
        epilogue.norm = true;
        epilogue.epsilon = args.epsilon;
        epilogue.quantisation = {LAMPREY_REFERENCE_NVFP4, args.scale_value, 0,
                                 LAMPREY_REFERENCE_128X4};
        std::vector<uint8_t> residual_rows(sum.size());
        std::vector<uint8_t> norm(sum.size());
        std::vector<uint8_t> code_bytes(elements / 2);
        std::vector<uint8_t> scale_bytes(
            lamprey_reference_scale_bytes(&epilogue.quantisation, kTokens, kHidden), 0x5a);
        epilogue.residual_out = residual_rows.data();
        epilogue.norm_out = norm.data();
        epilogue.codes = code_bytes.data();
        epilogue.scales = scale_bytes.data();
        lamprey_reference_finish_rows(&epilogue);
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        expect(sum_out, sum);
        expect(residual_out, residual_rows);
        expect(norm_out, norm);
        expect(codes, code_bytes);
        expect(scales, scale_bytes);
    }

    ncclResult_t run() const
    {
        static const auto function =
            symbol<decltype(&lampreyAllReduceFused)>("lampreyAllReduceFused");
        return function(&args, self.comm, (cudaStream_t)self.stream);
    }
};

class FusedCalls : public Serving {};

void mix(int rank, int nranks)
{
    Rank self(rank, nranks);
    self.init();
    Fused fused(self);
    for (uint64_t seed = 0; seed < 6; seed++) {
        fused.args.strategy = (lampreyStrategy_t)(seed % 3);
        fused.fill(seed);
        REQUIRE(fused.run() == ncclSuccess);
        fused.check(seed);
        self.round(LAMPREY_REFERENCE_F32, 1000 + seed, seed);
    }
    const lampreyStats stats = stats_of(self.comm);
    REQUIRE(stats.served == 12);
    REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
}

TEST_F(FusedCalls, SetCommunicatorsUpAndMixWithPlainOnes)
{
    processes(2, [](int rank) { mix(rank, 2); });
}

TEST_F(FusedCalls, TakeAnyNumberOfRanks)
{
    processes(3, [](int rank) { mix(rank, 3); });
}

TEST_F(FusedCalls, TakeRanksThatAreThreads)
{
    threads(4, [](int rank) { mix(rank, 4); });
}

TEST_F(FusedCalls, ReplayInGraphs)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        Fused fused(self);
        CUgraph graph = nullptr;
        CUgraphExec executable = nullptr;
        fused.fill(0);
        REQUIRE(cuStreamBeginCapture(self.stream, CU_STREAM_CAPTURE_MODE_GLOBAL) == CUDA_SUCCESS);
        REQUIRE(fused.run() == ncclSuccess);
        REQUIRE(fused.run() == ncclSuccess);
        REQUIRE(cuStreamEndCapture(self.stream, &graph) == CUDA_SUCCESS);
        REQUIRE(cuGraphInstantiate(&executable, graph, 0) == CUDA_SUCCESS);
        for (uint64_t seed = 1; seed < 6; seed++) {
            fused.fill(seed);
            REQUIRE(cuGraphLaunch(executable, self.stream) == CUDA_SUCCESS);
            fused.check(seed);
            REQUIRE(fused.run() == ncclSuccess);
        }
        REQUIRE(stats_of(self.comm).served_captured == 2);
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        REQUIRE(cuGraphExecDestroy(executable) == CUDA_SUCCESS);
        REQUIRE(cuGraphDestroy(graph) == CUDA_SUCCESS);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// Threads that set their GPUs up at once load each of the two libraries once: the third load fails.
TEST_F(FusedCalls, LoadTheKernelsOnceForAllGpus)
{
    setenv("LAMPREY_EMULATOR_FAIL", "cuLibraryLoadData:3", 1);
    threads(8, [](int rank) { mix(rank, 8); });
    unsetenv("LAMPREY_EMULATOR_FAIL");
}

// One rank's GPU is enough: the ranks agree, and plain calls are served as ever.
TEST_F(FusedCalls, LeavePlainCallsAloneWhereAGpuCanNotRunThem)
{
    for (const char *fault : {"cuFuncSetAttribute:1", "cuLibraryLoadData:2"}) {
        memset(shared, 0, sizeof *shared);
        processes(2, [&](int rank) {
            if (rank == 1) {
                setenv("LAMPREY_EMULATOR_FAIL", fault, 1);
            }
            Rank self(rank, 2);
            self.init();
            Fused fused(self);
            fused.fill(0);
            REQUIRE(fused.run() == ncclInvalidUsage);
            self.round(LAMPREY_REFERENCE_F32, 1000, 1);
            REQUIRE(stats_of(self.comm).served == 1);
            REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
        });
    }
}

// The lanes are dead then: a call that did nothing must not look like one that worked.
TEST_F(FusedCalls, FailAfterCallsThatDiffered)
{
    setenv("LAMPREY_CHECK", "1", 1);
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        Fused fused(self);
        fused.fill(0);
        REQUIRE(fused.run() == ncclSuccess);
        fused.check(0);
        REQUIRE(self.all_reduce(fused.type, 100 + (size_t)rank) == ncclSuccess);
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        REQUIRE(fused.run() == ncclInvalidUsage);
        REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
    });
    unsetenv("LAMPREY_CHECK");
}

TEST_F(FusedCalls, AreComparedOverTheRanks)
{
    void (*const changes[])(lampreyFusedArgs &) = {
        [](lampreyFusedArgs &args) { args.tokens--; },
        [](lampreyFusedArgs &args) { args.hidden -= 16; },
        [](lampreyFusedArgs &args) { args.type = args.gamma_type = ncclFloat16; },
        [](lampreyFusedArgs &args) { args.strategy = lampreyStrategyTwoShot; },
        [](lampreyFusedArgs &args) { args.flags |= LAMPREY_FUSED_ACCUMULATE_IN_TYPE; },
        [](lampreyFusedArgs &args) {
            args.quantize = lampreyQuantizeFp8PerGroup;
            args.group = 256;
        },
    };
    setenv("LAMPREY_CHECK", "1", 1);
    for (const auto change : changes) {
        memset(shared, 0, sizeof *shared);
        processes(3, [change](int rank) {
            Rank self(rank, 3);
            self.init();
            Fused fused(self);
            fused.fill(0);
            fused.args.norm_out = rank == 1 ? nullptr : fused.args.norm_out; // a rank's own affair
            REQUIRE(fused.run() == ncclSuccess);
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
            ncclResult_t error = ncclInternalError;
            REQUIRE(ncclCommGetAsyncError(self.comm, &error) == ncclSuccess);
            REQUIRE(error == ncclSuccess);
            if (rank == 1) {
                change(fused.args);
            }
            REQUIRE(fused.run() == ncclSuccess);
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS); // our kernels don't hang
            REQUIRE(fused.run() == ncclInvalidUsage);
            REQUIRE(ncclCommGetAsyncError(self.comm, &error) == ncclSuccess);
            REQUIRE(error == ncclInvalidUsage);
            meet(3);
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
        });
    }
    unsetenv("LAMPREY_CHECK");
}

// The same rows, whether the outputs lie over the inputs or not.
TEST_F(FusedCalls, WriteOverTheirInputs)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        const auto rows_of = [&](Fused &fused) {
            std::vector<uint8_t> rows(2 * kTokens * kHidden * 2);
            fused.fill(0);
            REQUIRE(fused.run() == ncclSuccess);
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
            REQUIRE(cuMemcpyDtoH(rows.data(), (CUdeviceptr)fused.args.norm_out, rows.size() / 2) ==
                    CUDA_SUCCESS);
            REQUIRE(cuMemcpyDtoH(rows.data() + rows.size() / 2,
                                 (CUdeviceptr)fused.args.residual_out,
                                 rows.size() / 2) == CUDA_SUCCESS);
            return rows;
        };
        for (const lampreyStrategy_t strategy : {lampreyStrategyOneShot, lampreyStrategyTwoShot}) {
            Fused apart(self);
            Fused in_place(self);
            apart.args.strategy = in_place.args.strategy = strategy;
            in_place.args.all_reduce_out = in_place.at(Fused::residual);
            in_place.args.residual_out = (void *)self.send;
            const std::vector<uint8_t> expected = rows_of(apart);
            REQUIRE(rows_of(in_place) == expected);
            in_place.args.all_reduce_out = nullptr;
            in_place.args.residual_out = in_place.at(Fused::residual);
            in_place.args.norm_out = (void *)self.send;
            REQUIRE(rows_of(in_place) == expected);
        }
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

TEST_F(FusedCalls, TakeNoTokensWithoutMemory)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        Fused fused(self);
        self.round(LAMPREY_REFERENCE_F32, 100, 0);
        fused.args = {};
        fused.args.size = sizeof fused.args;
        fused.args.hidden = kHidden;
        fused.args.type = ncclFloat16;
        REQUIRE(fused.run() == ncclSuccess);
        REQUIRE(stats_of(self.comm).served == 1);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

} // namespace
