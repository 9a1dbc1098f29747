// SPDX-License-Identifier: Apache-2.0
// Workspaces that ranks build from handles, and those of communicators: whole programs in the
// emulator, against the plugin that ships.
#include "tests/workspace_world.h"

namespace {

using namespace workspace_test;

void live(int rank, int nranks, uint32_t flags = 0)
{
    Rank self(rank, nranks);
    Member member(self, flags);
    member.join(nranks);
    member.rounds(0);
    member.leave();
}

TEST_F(Workspaces, ServeProcesses)
{
    for (int nranks : {2, 3, 8}) {
        memset(shared, 0, sizeof *shared);
        processes(nranks, [&](int rank) { live(rank, nranks); });
    }
}

TEST_F(Workspaces, ServeThreads)
{
    threads(4, [](int rank) { live(rank, 4); });
}

// A whole NVLink domain, if with several ranks on each of the emulator's GPUs.
TEST_F(Workspaces, TakeSeventyTwoRanks)
{
    constexpr int nranks = kSanitized ? 12 : 72;
    setenv("LAMPREY_SHARE_GPU", "1", 1);
    threads(nranks, [](int rank) {
        Rank self(rank, nranks);
        Member member(self);
        member.wanted.most_bytes = 2 << 20;
        member.args.tokens = 2;
        member.args.hidden = 64;
        member.join(nranks);
        member.args.strategy = lampreyStrategyTwoShot;
        member.round(1);
        member.leave();
    });
    unsetenv("LAMPREY_SHARE_GPU");
}

TEST_F(Workspaces, SetUpOnceMoreLeakNothing)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        Member member(self);
        Counts first;
        for (uint64_t i = 0; i < 5; i++) {
            member.join(2);
            member.round(i);
            meet(2);
            member.leave();
            meet(2);
            first = i == 1 ? Counts() : first; // what is kept is there by then
            REQUIRE(i <= 1 || first == Counts());
        }
        REQUIRE(member.offer() == ncclSuccess); // never completed
        member.leave();
        REQUIRE(first == Counts());
    });
}

// Worlds of other ranks, and a communicator's, in one process at a time.
TEST_F(Workspaces, LiveBesideEachOther)
{
    processes(4, [](int rank) {
        Rank all(rank, 4);
        Rank pair = all; // the same GPU and buffers, another world
        pair.rank = rank % 2;
        pair.nranks = 2;
        Member whole(all);
        Member part(pair);
        Member borrowed(all);
        all.init();
        REQUIRE(api().lampreyWorkspaceCreate(all.comm, &borrowed.args.workspace) == ncclSuccess);
        whole.join(4, 0);
        part.join(4, 1 + rank / 2);
        for (uint64_t seed = 0; seed < 3; seed++) {
            whole.rounds(seed);
            part.rounds(seed + 10);
            borrowed.rounds(seed + 20);
            all.round(LAMPREY_REFERENCE_F32, 1000 + seed, seed);
        }
        whole.leave();
        part.rounds(40);
        REQUIRE(stats_of(all.comm).served == 9 + 3);
        REQUIRE(ncclCommDestroy(all.comm) == ncclSuccess);
        REQUIRE(borrowed.run(all.stream) == ncclInvalidUsage);
        REQUIRE(last_error_says("workspace is finalized or revoked"));
        borrowed.leave();
        part.leave();
    });
}

// Each step doubles, in place: those that overlap, or run twice or never, show.
TEST_F(Workspaces, KeepCallsOfStreamsAndReplaysInOrder)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        Member member(self);
        CUstream other = make_stream();
        CUgraph graph = nullptr;
        CUgraphExec executable = nullptr;
        const std::vector<float> ones(256, 1.0f);
        member.join(2);
        member.args = [&] {
            lampreyFusedArgs args = {};
            args.size = sizeof args;
            args.workspace = member.args.workspace;
            args.tokens = 1;
            args.hidden = ones.size();
            args.type = ncclFloat32;
            args.in = args.all_reduce_out = member.at(0);
            return args;
        }();
        REQUIRE(cuMemcpyHtoD((CUdeviceptr)member.at(0), ones.data(), ones.size() * 4) ==
                CUDA_SUCCESS);
        REQUIRE(cuStreamBeginCapture(self.stream, CU_STREAM_CAPTURE_MODE_GLOBAL) == CUDA_SUCCESS);
        REQUIRE(member.run(self.stream) == ncclSuccess);
        REQUIRE(member.run(self.stream) == ncclSuccess);
        REQUIRE(cuStreamEndCapture(self.stream, &graph) == CUDA_SUCCESS);
        REQUIRE(cuGraphInstantiate(&executable, graph, 0) == CUDA_SUCCESS);
        for (int i = 0; i < 10; i++) {
            REQUIRE(member.run(other) == ncclSuccess);
            REQUIRE(cuGraphLaunch(executable, self.stream) == CUDA_SUCCESS);
            REQUIRE(member.run(self.stream) == ncclSuccess);
            REQUIRE(cuGraphLaunch(executable, other) == CUDA_SUCCESS);
        }
        REQUIRE(cuCtxSynchronize() == CUDA_SUCCESS);
        std::vector<float> got(ones.size());
        REQUIRE(cuMemcpyDtoH(got.data(), (CUdeviceptr)member.at(0), got.size() * 4) ==
                CUDA_SUCCESS);
        for (float value : got) {
            REQUIRE(value == exp2f(60));
        }
        member.leave(); // the graph's memory stays
        REQUIRE(cuGraphExecDestroy(executable) == CUDA_SUCCESS);
        REQUIRE(cuGraphDestroy(graph) == CUDA_SUCCESS);
    });
}

TEST_F(Workspaces, ServeTheNamesOfMnnvlPrograms)
{
    processes(3, [](int rank) {
        Rank self(rank, 3);
        Member member(self);
        member.join(3);
        const lampreyFusedArgs all = member.args;
        uint64_t seed = 0;
        for (lampreyStrategy_t strategy : {lampreyStrategyOneShot, lampreyStrategyTwoShot}) {
            member.args = all;
            member.args.strategy = strategy;
            member.args.residual_in = member.args.gamma = nullptr;
            member.args.residual_out = member.args.norm_out = nullptr;
            member.fill(++seed);
            REQUIRE(api().lampreyMnnvlAllReduce(&member.args, (cudaStream_t)self.stream) ==
                    ncclSuccess);
            member.check(seed);
            for (lampreyQuantize_t quantize : {lampreyQuantizeNone, lampreyQuantizeFp8,
                                               lampreyQuantizeFp8PerToken, lampreyQuantizeNvfp4}) {
                member.args = all;
                member.args.strategy = strategy;
                member.args.all_reduce_out = nullptr;
                member.args.quantize = quantize;
                if (quantize != lampreyQuantizeNone) {
                    member.args.quant_out = member.at(Member::codes);
                }
                if (quantize > lampreyQuantizeFp8) {
                    member.args.scale_out = member.at(Member::scales);
                    member.args.norm_out = nullptr;
                }
                member.fill(++seed);
                REQUIRE(api().lampreyMnnvlAllReduceRmsNorm(
                            &member.args, (cudaStream_t)self.stream) == ncclSuccess);
                member.check(seed);
            }
        }
        member.leave();
    });
}

// One expert of weight 1: the rows themselves.
TEST_F(Workspaces, ServeMixturesOfExperts)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        Member member(self);
        const std::vector<float> ones(member.args.tokens, 1.0f);
        void *scales = member.at(Member::scales);
        lampreyMoeReduceArgs moe = {};
        moe.size = sizeof moe;
        moe.experts = 1;
        moe.rows = member.args.in;
        moe.scales = (const float *)((char *)scales + Member::kRoom);
        member.join(2);
        member.args.in = nullptr;
        member.fill(1);
        REQUIRE(cuMemcpyHtoD((CUdeviceptr)moe.scales, ones.data(), ones.size() * sizeof ones[0]) ==
                CUDA_SUCCESS);
        REQUIRE(api().lampreyMoeReduceAllReduceFused(&member.args, &moe, nullptr,
                                                     (cudaStream_t)self.stream) == ncclSuccess);
        member.check(1);
        member.leave();
    });
}

TEST_F(Workspaces, TakeAnyShapeThroughLittleMemory)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        Member member(self);
        uint64_t bytes = 0;
        uint64_t handle_bytes = 0;
        member.wanted.most_bytes = 2 << 20;
        REQUIRE(api().lampreyWorkspaceSize(2, member.wanted.most_bytes, &bytes, &handle_bytes) ==
                ncclSuccess);
        REQUIRE(bytes == member.wanted.most_bytes &&
                handle_bytes == sizeof(lampreyWorkspaceHandle_t));
        for (uint64_t most : {(uint64_t)0, (uint64_t)5 << 20, (uint64_t)64 << 20}) {
            REQUIRE(api().lampreyWorkspaceSize(72, most, &bytes, nullptr) == ncclSuccess);
            REQUIRE(bytes % (2 << 20) == 0 && bytes <= (most ? most : 16 << 20));
        }
        member.join(2);
        member.args.tokens = 40;
        member.args.hidden = 100;
        member.rounds(0);
        member.args.hidden = 1 << 20;
        member.args.tokens = 1;
        member.args.residual_in = member.args.gamma = nullptr;
        member.args.residual_out = member.args.norm_out = nullptr;
        REQUIRE(member.run(self.stream) == ncclInvalidArgument);
        REQUIRE(last_error_says("hidden 1048576 is more than this GPU takes"));
        member.leave();
    });
}

class FabricWorkspaces : public Workspaces {
  protected:
    void SetUp() override
    {
        Workspaces::SetUp();
        std::string tray = getenv("LAMPREY_TOPOLOGY");
        tray.replace(tray.rfind('/'), std::string::npos, "/emulator-tray.xml");
        setenv("LAMPREY_TOPOLOGY", tray.c_str(), 1);
        setenv("LAMPREY_EMULATOR_IMEX", "0", 1);
        setenv("LAMPREY_EMULATOR_GPUS", "2", 1);
    }

    void TearDown() override
    {
        unsetenv("LAMPREY_EMULATOR_IMEX");
        Workspaces::TearDown();
    }

    static void sit(int host)
    {
        setenv("LAMPREY_EMULATOR_HOST", std::to_string(host).c_str(), 1);
        setenv("NCCL_HOSTID", ("host-" + std::to_string(host)).c_str(), 1);
    }
};

TEST_F(FabricWorkspaces, ServeRanksOfSeveralHosts)
{
    for (int hosts : {1, 2, 4}) {
        memset(shared, 0, sizeof *shared);
        processes(2 * hosts, [&](int rank) {
            sit(rank / 2);
            live(rank, 2 * hosts, LAMPREY_WORKSPACE_ACROSS_HOSTS);
        });
    }
}

TEST_F(FabricWorkspaces, ServeThreadsOfSeveralHosts)
{
    processes(2, [](int host) {
        sit(host);
        std::thread first([&] { live(2 * host, 4, LAMPREY_WORKSPACE_ACROSS_HOSTS); });
        live(2 * host + 1, 4, LAMPREY_WORKSPACE_ACROSS_HOSTS);
        first.join();
    });
}

TEST_F(FabricWorkspaces, SayWhatKeepsHostsApart)
{
    processes(2, [](int rank) { // all ranks find it in the handles
        sit(rank);
        Rank self(rank, 2);
        Member member(self);
        REQUIRE(member.offer() == ncclSuccess);
        meet(2);
        REQUIRE(member.complete() == ncclSystemError);
        REQUIRE(last_error_says("flags lacks LAMPREY_WORKSPACE_ACROSS_HOSTS"));
        member.leave();
    });
    memset(shared, 0, sizeof *shared);
    processes(2, [](int rank) { // the one that can't tells the other
        sit(rank);
        if (rank == 1) {
            unsetenv("LAMPREY_EMULATOR_IMEX");
        }
        Rank self(rank, 2);
        Member member(self, LAMPREY_WORKSPACE_ACROSS_HOSTS);
        if (rank == 1) {
            REQUIRE(member.offer() == ncclSystemError);
            const Counts before; // what is kept for the next one is there
            REQUIRE(member.offer() == ncclSystemError);
            REQUIRE(last_error_says("is there an IMEX channel?"));
            REQUIRE(member.args.workspace == nullptr);
            REQUIRE(before == Counts());
            meet(2);
        } else {
            REQUIRE(member.offer() == ncclSuccess);
            meet(2);
            REQUIRE(member.complete() == ncclSystemError);
            REQUIRE(last_error_says("rank 1: no staging memory for other hosts to map"));
            REQUIRE(member.run(self.stream) == ncclInvalidUsage);
            REQUIRE(last_error_says("workspace isn't served"));
            member.leave();
        }
    });
}

} // namespace
