// SPDX-License-Identifier: Apache-2.0
// What workspaces refuse, and ranks that don't come or can't go on.
#include "tests/workspace_world.h"

namespace {

using namespace workspace_test;

using Clock = std::chrono::steady_clock;

TEST_F(Workspaces, NameTheArgumentThatMakesNoSense)
{
    processes(1, [](int) {
        Rank self(0, 2);
        const struct {
            const char *text;
            void (*change)(lampreyWorkspaceArgs &);
        } cases[] = {
            {"args->size", [](lampreyWorkspaceArgs &a) { a.size--; }},
            {"nranks is 1", [](lampreyWorkspaceArgs &a) { a.nranks = 1; }},
            {"nranks is 73", [](lampreyWorkspaceArgs &a) { a.nranks = 73; }},
            {"rank is 2", [](lampreyWorkspaceArgs &a) { a.rank = 2; }},
            {"device is -1", [](lampreyWorkspaceArgs &a) { a.device = -1; }},
            {"flags", [](lampreyWorkspaceArgs &a) { a.flags = 2; }},
            {"most_bytes is 1,", [](lampreyWorkspaceArgs &a) { a.most_bytes = 1; }},
            {"most_bytes", [](lampreyWorkspaceArgs &a) { a.most_bytes = (64 << 20) + 1; }},
            {"timeout_ms", [](lampreyWorkspaceArgs &a) { a.timeout_ms = ~0u; }},
        };
        const Counts before;
        const lampreyWorkspace_t untouched = (lampreyWorkspace_t)&self;
        lampreyWorkspaceHandle_t handle = {{0x5a}};
        lampreyWorkspace_t workspace = untouched;
        uint64_t bytes = 0;
        for (const auto &one : cases) {
            lampreyWorkspaceArgs args = export_args(0, 2);
            one.change(args);
            REQUIRE(api().lampreyWorkspaceExport(&args, &handle, &workspace) ==
                    ncclInvalidArgument);
            REQUIRE(last_error_says(one.text));
            REQUIRE(workspace == untouched && handle.internal[0] == 0x5a);
        }
        const lampreyWorkspaceArgs args = export_args(0, 2);
        REQUIRE(api().lampreyWorkspaceExport(nullptr, &handle, &workspace) == ncclInvalidArgument);
        REQUIRE(last_error_says("args is NULL"));
        REQUIRE(api().lampreyWorkspaceExport(&args, nullptr, &workspace) == ncclInvalidArgument);
        REQUIRE(last_error_says("handle is NULL"));
        REQUIRE(api().lampreyWorkspaceExport(&args, &handle, nullptr) == ncclInvalidArgument);
        REQUIRE(last_error_says("workspace is NULL"));
        REQUIRE(api().lampreyWorkspaceSize(2, 0, nullptr, nullptr) == ncclInvalidArgument);
        REQUIRE(last_error_says("bytes is NULL"));
        REQUIRE(api().lampreyWorkspaceSize(1, 0, &bytes, nullptr) == ncclInvalidArgument);
        REQUIRE(last_error_says("nranks is 1"));
        REQUIRE(api().lampreyWorkspaceCreate(nullptr, &workspace) == ncclInvalidArgument);
        REQUIRE(last_error_says("comm is NULL"));
        REQUIRE(api().lampreyWorkspaceCreate((ncclComm_t)&self, nullptr) == ncclInvalidArgument);
        REQUIRE(last_error_says("workspace is NULL"));
        REQUIRE(api().lampreyWorkspaceCreate((ncclComm_t)&self, &workspace) == ncclInvalidArgument);
        REQUIRE(last_error_says("comm is no communicator"));
        REQUIRE(api().lampreyWorkspaceDestroy(nullptr) == ncclSuccess);
        for (auto function : {api().lampreyWorkspaceDestroy, api().lampreyWorkspaceAbort,
                              api().lampreyLamportInitialize}) {
            REQUIRE(function(untouched) == ncclInvalidArgument);
            REQUIRE(last_error_says("workspace is none, or was destroyed"));
        }
        REQUIRE(api().lampreyLamportInitializeAll(nullptr, 1) == ncclInvalidArgument);
        REQUIRE(last_error_says("workspaces is NULL"));
        REQUIRE(api().lampreyLamportInitializeAll(nullptr, 0) == ncclSuccess);
        REQUIRE(before == Counts());
    });
}

TEST_F(Workspaces, RefuseHandlesThatAreNotTheirWorlds)
{
    processes(1, [](int) {
        Rank self(0, 2);
        Member member(self);
        lampreyWorkspaceHandle_t(&handles)[kRanks] = (*board)[0];
        lampreyWorkspaceArgs other = export_args(1, 3);
        lampreyWorkspace_t unused = nullptr;
        const auto refuses = [&](uint32_t count, const char *text) {
            return api().lampreyWorkspaceCreateFromHandles(member.args.workspace, handles, count) ==
                       ncclInvalidArgument &&
                   last_error_says(text);
        };
        REQUIRE(member.offer() == ncclSuccess);
        REQUIRE(member.run(self.stream) == ncclInvalidUsage);
        REQUIRE(last_error_says("workspace isn't complete"));
        REQUIRE(api().lampreyLamportInitialize(member.args.workspace) == ncclInvalidUsage);
        REQUIRE(refuses(3, "count is 3, but workspace's world has 2 ranks"));
        REQUIRE(refuses(2, "handles[1] is no handle"));
        REQUIRE(api().lampreyWorkspaceExport(&other, &handles[1], &unused) == ncclSuccess);
        REQUIRE(refuses(2, "handles[1] is of a world of 3 ranks, not 2"));
        handles[1] = handles[0];
        REQUIRE(refuses(2, "handles[1] is rank 0's"));
        handles[0].internal[900] ^= 1;
        REQUIRE(refuses(2, "handles[0] isn't what this workspace's export gave"));
        REQUIRE(api().lampreyWorkspaceCreateFromHandles(member.args.workspace, nullptr, 2) ==
                ncclInvalidArgument);
        REQUIRE(last_error_says("handles is NULL"));
        REQUIRE(api().lampreyWorkspaceDestroy(unused) == ncclSuccess);
        const lampreyWorkspace_t destroyed = member.args.workspace;
        member.leave();
        member.args.workspace = destroyed;
        REQUIRE(member.run(self.stream) == ncclInvalidArgument);
        REQUIRE(last_error_says("workspace is none, or was destroyed"));
    });
}

TEST_F(Workspaces, CallsNameTheArgument)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        Member member(self);
        member.join(2);
        const lampreyFusedArgs good = member.args;
        const struct {
            const char *text;
            void (*change)(lampreyFusedArgs &);
        } norms[] = {
            {"args->size", [](lampreyFusedArgs &a) { a.size -= sizeof a.workspace; }},
            {"workspace is NULL", [](lampreyFusedArgs &a) { a.workspace = nullptr; }},
            {"residual_in is NULL", [](lampreyFusedArgs &a) { a.residual_in = nullptr; }},
            {"gamma is NULL", [](lampreyFusedArgs &a) { a.gamma = nullptr; }},
            {"norm_out and quant_out are NULL", [](lampreyFusedArgs &a) { a.norm_out = nullptr; }},
            {": in is NULL", [](lampreyFusedArgs &a) { a.in = nullptr; }},
        };
        for (const auto &one : norms) {
            member.args = good;
            one.change(member.args);
            REQUIRE(api().lampreyMnnvlAllReduceRmsNorm(&member.args, (cudaStream_t)self.stream) ==
                    ncclInvalidArgument);
            REQUIRE(last_error_says(one.text));
        }
        const struct {
            const char *text;
            void (*change)(lampreyFusedArgs &);
        } plain[] = {
            {"all_reduce_out is NULL", [](lampreyFusedArgs &a) { a.all_reduce_out = nullptr; }},
            {"residual_in is given", [](lampreyFusedArgs &) {}},
            {"gamma is given", [](lampreyFusedArgs &a) { a.residual_in = nullptr; }},
        };
        for (const auto &one : plain) {
            member.args = good;
            one.change(member.args);
            REQUIRE(api().lampreyMnnvlAllReduce(&member.args, (cudaStream_t)self.stream) ==
                    ncclInvalidArgument);
            REQUIRE(last_error_says(one.text));
        }
        REQUIRE(api().lampreyMnnvlAllReduce(nullptr, nullptr) == ncclInvalidArgument);
        REQUIRE(last_error_says("args is NULL"));
        REQUIRE(api().lampreyAllReduceFused(&good, (ncclComm_t)&self, nullptr) ==
                ncclInvalidArgument);
        REQUIRE(last_error_says("both comm and workspace are given"));
        REQUIRE(member.complete() == ncclInvalidUsage);
        REQUIRE(last_error_says("waits for handles"));
        member.args = good;
        member.round(1);
        member.leave();
    });
}

// Rank 1 fails or stays away; the others find out, and nobody keeps anything.
void expect_failure(int rank, ncclResult_t own, const std::string &reason, bool comes = true)
{
    Rank self(rank, 2);
    Member member(self);
    member.wanted.timeout_ms = 700;
    Counts first;
    for (int i = 0; i < 3; i++) {
        REQUIRE(member.offer() == ncclSuccess);
        meet(2);
        const auto start = Clock::now();
        if (rank == 0) {
            REQUIRE(member.complete() == ncclRemoteError);
            REQUIRE(last_error_says("a rank didn't come within 700 ms"));
            REQUIRE(Clock::now() - start > std::chrono::milliseconds(500));
        } else if (comes) {
            REQUIRE(member.complete() == own);
            REQUIRE(last_error_says(reason));
        }
        meet(2);
        member.leave();
        meet(2);
        first = i == 0 ? Counts() : first;
        REQUIRE(first == Counts());
        meet(2);
    }
}

TEST_F(Workspaces, FailEverywhereWhereOneRankCannotMap)
{
    processes(2, [](int rank) {
        if (rank == 1) {
            setenv("LAMPREY_EMULATOR_FAIL", "cuMemImportFromShareableHandle:0", 1);
        }
        expect_failure(rank, ncclSystemError, "rank 0's staging memory can't be mapped");
    });
}

TEST_F(Workspaces, TellOfARankThatStaysAway)
{
    threads(2, [](int rank) { expect_failure(rank, ncclSuccess, "", false); });
}

TEST_F(Workspaces, TellOfARankThatIsSwitchedOff)
{
    processes(2, [](int rank) {
        if (rank == 1) {
            setenv("LAMPREY_DISABLE", "1", 1);
        }
        Rank self(rank, 2);
        Member member(self);
        REQUIRE(member.offer() == (rank == 1 ? ncclSystemError : ncclSuccess));
        REQUIRE(rank == 0 || last_error_says("LAMPREY_DISABLE is set"));
        meet(2);
        if (rank == 0) {
            REQUIRE(member.complete() == ncclSystemError);
            REQUIRE(last_error_says("rank 1: LAMPREY_DISABLE is set"));
            member.leave();
        }
    });
}

TEST_F(Workspaces, CompareWhatMustBeEqual)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        Member member(self);
        member.wanted.most_bytes = rank == 0 ? 2 << 20 : 4 << 20;
        REQUIRE(member.offer() == ncclSuccess);
        meet(2);
        REQUIRE(member.complete() == ncclSystemError);
        REQUIRE(last_error_says("ranks 0 and 1 exported with different most_bytes"));
        member.leave();
    });
}

TEST_F(Workspaces, LeaveACreationThatIsAborted)
{
    const auto body = [](int rank) {
        Rank self(rank, 2);
        Member member(self);
        REQUIRE(member.offer() == ncclSuccess);
        meet(2);
        if (rank == 0) {
            std::thread aborter([&] {
                usleep(100000);
                REQUIRE(api().lampreyWorkspaceAbort(member.args.workspace) == ncclSuccess);
            });
            REQUIRE(member.complete() == ncclInternalError);
            REQUIRE(last_error_says("it was aborted"));
            aborter.join();
            REQUIRE(api().lampreyLamportInitialize(member.args.workspace) == ncclInternalError);
        }
        meet(2);
        member.leave();
    };
    threads(2, body);   // in its self-test
    processes(2, body); // at its mailbox
}

TEST_F(Workspaces, LeaveCallsThatAreAbortedAndStartAgain)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        Member member(self);
        member.join(2);
        member.round(1);
        if (rank == 0) {
            REQUIRE(member.run(self.stream) == ncclSuccess); // of which rank 1 knows nothing
            usleep(50000);
            REQUIRE(cuStreamQuery(self.stream) == CUDA_ERROR_NOT_READY);
            REQUIRE(api().lampreyWorkspaceAbort(member.args.workspace) == ncclSuccess);
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
            REQUIRE(member.run(self.stream) == ncclInternalError);
            REQUIRE(last_error_says("workspace is aborted"));
        }
        meet(2);
        REQUIRE(api().lampreyLamportInitialize(member.args.workspace) == ncclSuccess);
        meet(2);
        member.rounds(2);
        member.leave();
    });
}

// Of a communicator too, which stays NCCL's to abort.
TEST_F(Workspaces, StartAgainAfterATimeOut)
{
    setenv("LAMPREY_TIMEOUT", "1", 1);
    processes(2, [](int rank) {
        Rank self(rank, 2);
        Member built(self);
        Member borrowed(self);
        built.args.tokens = borrowed.args.tokens = 1; // each row would wait
        built.join(2);
        self.init();
        REQUIRE(api().lampreyWorkspaceCreate(self.comm, &borrowed.args.workspace) == ncclSuccess);
        REQUIRE(api().lampreyWorkspaceAbort(borrowed.args.workspace) == ncclInvalidUsage);
        REQUIRE(last_error_says("ncclCommAbort"));
        for (Member *member : {&built, &borrowed}) {
            member->round(1);
            if (rank == 0) {
                REQUIRE(member->run(self.stream) == ncclSuccess);
                REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
                REQUIRE(member->run(self.stream) == ncclRemoteError);
                REQUIRE(last_error_says("peer didn't come"));
            }
            meet(2);
        }
        const lampreyWorkspace_t both[] = {built.args.workspace, borrowed.args.workspace};
        const lampreyWorkspace_t wrong[] = {both[0], (lampreyWorkspace_t)&self};
        REQUIRE(api().lampreyLamportInitializeAll(wrong, 2) == ncclInvalidArgument);
        REQUIRE(rank == 1 || built.run(self.stream) == ncclRemoteError); // nothing was done
        REQUIRE(api().lampreyLamportInitializeAll(both, 2) == ncclSuccess);
        meet(2);
        built.rounds(2);
        borrowed.rounds(5);
        self.round(LAMPREY_REFERENCE_F32, 1000, 7);
        built.leave();
        borrowed.leave();
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
    unsetenv("LAMPREY_TIMEOUT");
}

} // namespace
