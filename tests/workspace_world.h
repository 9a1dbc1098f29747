// SPDX-License-Identifier: Apache-2.0
// Ranks that meet by handles, without NCCL, and their all-reduces with an epilogue.
#ifndef LAMPREY_TESTS_WORKSPACE_WORLD_H
#define LAMPREY_TESTS_WORKSPACE_WORLD_H

#include "tests/fused_call.h"
#include "tests/serving_world.h"

namespace workspace_test {

using namespace serving_test;
using lamprey_test::bytes;

template <class F> F symbol(const char *name)
{
    void *library = dlopen(getenv("LAMPREY_TEST_PLUGIN"), RTLD_NOW);
    F function = library ? (F)dlsym(library, name) : nullptr;
    REQUIRE(function != nullptr);
    return function;
}

struct Api {
#define LAMPREY_SYMBOL(name) decltype(&::name) name = symbol<decltype(&::name)>(#name)
    LAMPREY_SYMBOL(lampreyAllReduceFused);
    LAMPREY_SYMBOL(lampreyGetLastError);
    LAMPREY_SYMBOL(lampreyLamportInitialize);
    LAMPREY_SYMBOL(lampreyLamportInitializeAll);
    LAMPREY_SYMBOL(lampreyMnnvlAllReduce);
    LAMPREY_SYMBOL(lampreyMnnvlAllReduceRmsNorm);
    LAMPREY_SYMBOL(lampreyMoeReduceAllReduceFused);
    LAMPREY_SYMBOL(lampreyWorkspaceAbort);
    LAMPREY_SYMBOL(lampreyWorkspaceCreate);
    LAMPREY_SYMBOL(lampreyWorkspaceCreateFromHandles);
    LAMPREY_SYMBOL(lampreyWorkspaceDestroy);
    LAMPREY_SYMBOL(lampreyWorkspaceExport);
    LAMPREY_SYMBOL(lampreyWorkspaceSize);
#undef LAMPREY_SYMBOL
};

inline const Api &api()
{
    static const Api loaded;
    return loaded;
}

inline bool last_error_says(const std::string &text)
{
    if (strstr(api().lampreyGetLastError(), text.c_str())) {
        return true;
    }
    fprintf(stderr, "\"%s\" doesn't say \"%s\"\n", api().lampreyGetLastError(), text.c_str());
    return false;
}

constexpr int kWorlds = 4;
constexpr int kRanks = 72;

// Where the ranks lay their handles.
using Board = lampreyWorkspaceHandle_t[kWorlds][kRanks];
inline Board *board;

inline lampreyWorkspaceArgs export_args(int rank, int nranks)
{
    CUdevice device = -1;
    lampreyWorkspaceArgs args = {};
    REQUIRE(cuCtxGetDevice(&device) == CUDA_SUCCESS);
    args.size = sizeof args;
    args.rank = (uint32_t)rank;
    args.nranks = (uint32_t)nranks;
    args.device = device;
    args.timeout_ms = 1000 * kDeadlineSeconds;
    return args;
}

// A workspace and a call on it, with the memory of both in a rank's buffers.
struct Member {
    enum array { residual, gamma, sum_out, residual_out, norm_out, codes, scales, arrays };
    static constexpr size_t kRoom = 64 << 10;
    static constexpr uint8_t kUntouched = 0xaa; // what fused_call.h's outputs are before a call

    Rank &self; // of the world's ranks
    element_type type = LAMPREY_REFERENCE_BF16;
    lampreyWorkspaceArgs wanted;
    lampreyFusedArgs args = {};

    explicit Member(Rank &rank, uint32_t flags = 0)
        : self(rank), wanted(export_args(rank.rank, rank.nranks))
    {
        wanted.flags = flags;
        args.size = sizeof args;
        args.tokens = 5;
        args.hidden = 768;
        args.type = args.gamma_type = Rank::nccl_type(type);
        args.in = (const void *)self.send;
        args.all_reduce_out = at(sum_out);
        args.residual_in = at(residual);
        args.residual_out = at(residual_out);
        args.gamma = at(gamma);
        args.epsilon = 1e-6f;
        args.norm_out = at(norm_out);
        args.scale_value = 300;
    }

    void *at(int which) const
    {
        return (void *)(self.recv + (size_t)which * kRoom);
    }

    ncclResult_t offer(int world = 0)
    {
        return api().lampreyWorkspaceExport(&wanted, &(*board)[world][self.rank], &args.workspace);
    }

    ncclResult_t complete(int world = 0)
    {
        return api().lampreyWorkspaceCreateFromHandles(args.workspace, (*board)[world],
                                                       (uint32_t)self.nranks);
    }

    // meeting: ranks that come to it.
    void join(int meeting, int world = 0)
    {
        REQUIRE(offer(world) == ncclSuccess);
        meet(meeting);
        REQUIRE(complete(world) == ncclSuccess);
    }

    void leave()
    {
        REQUIRE(api().lampreyWorkspaceDestroy(args.workspace) == ncclSuccess);
        args.workspace = nullptr;
    }

    void fill(uint64_t seed)
    {
        const size_t elements = args.tokens * args.hidden;
        const bytes rows = self.input_of(100, type, elements, seed);
        self.fill(type, elements, seed);
        REQUIRE(cuMemsetD8Async(self.recv, kUntouched, arrays * kRoom, self.stream) ==
                CUDA_SUCCESS);
        for (int which : {residual, gamma}) {
            REQUIRE(cuMemcpyHtoDAsync((CUdeviceptr)at(which), rows.data(), rows.size(),
                                      self.stream) == CUDA_SUCCESS);
        }
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
    }

    ncclResult_t run(CUstream stream) const
    {
        return api().lampreyAllReduceFused(&args, nullptr, (cudaStream_t)stream);
    }

    // Untouched where it isn't an output.
    void expect(const void *output, int which, const bytes &expected) const
    {
        bytes got(expected.size() + 16);
        REQUIRE(cuMemcpyDtoH(got.data(), (CUdeviceptr)at(which), got.size()) == CUDA_SUCCESS);
        const bytes untouched(got.size(), kUntouched);
        if (output) {
            REQUIRE(memcmp(got.data(), expected.data(), expected.size()) == 0);
            REQUIRE(memcmp(got.data() + expected.size(), untouched.data(), 16) == 0);
        } else {
            REQUIRE(got == untouched);
        }
    }

    void check(uint64_t seed) const
    {
        static const lamprey_reference_format formats[] = {
            LAMPREY_REFERENCE_UNQUANTISED, LAMPREY_REFERENCE_FP8, LAMPREY_REFERENCE_FP8_TOKEN,
            LAMPREY_REFERENCE_FP8_GROUP, LAMPREY_REFERENCE_NVFP4};
        const size_t elements = args.tokens * args.hidden;
        std::vector<bytes> inputs;
        for (int other = 0; other < self.nranks; other++) {
            inputs.push_back(self.input_of(other, type, elements, seed));
        }
        lamprey_test::call expected(type, args.tokens, args.hidden,
                                    lamprey_test::all_reduce_sum(type, inputs));
        if (args.residual_in) {
            expected.residual = self.input_of(100, type, elements, seed);
        }
        if (args.gamma) {
            expected.gamma = self.input_of(100, type, elements, seed);
            expected.gamma_type = type;
            expected.norm = true;
            expected.epsilon = args.epsilon;
        }
        expected.quantisation = {formats[args.quantize], args.scale_value, args.group,
                                 LAMPREY_REFERENCE_128X4};
        expected.run();
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        expect(args.all_reduce_out, sum_out, expected.sum);
        expect(args.residual_out, residual_out, expected.residual_out);
        expect(args.norm_out, norm_out, expected.norm_out);
        expect(args.quant_out, codes, expected.codes);
        expect(args.scale_out, scales, expected.scales);
    }

    void round(uint64_t seed)
    {
        fill(seed);
        REQUIRE(run(self.stream) == ncclSuccess);
        check(seed);
    }

    // Every strategy.
    void rounds(uint64_t first)
    {
        for (uint64_t seed = first; seed < first + 3; seed++) {
            args.strategy = (lampreyStrategy_t)(seed % 3);
            round(seed);
        }
    }
};

class Workspaces : public Serving {
  protected:
    void SetUp() override
    {
        Serving::SetUp();
        board = (Board *)mmap(nullptr, sizeof *board, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        ASSERT_NE(board, MAP_FAILED);
    }

    void TearDown() override
    {
        munmap(board, sizeof *board);
        Serving::TearDown();
    }
};

} // namespace workspace_test

#endif
