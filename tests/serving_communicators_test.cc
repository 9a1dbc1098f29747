// SPDX-License-Identifier: Apache-2.0
// The lives of communicators: every way to make them, to change them and to end them.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

// nccl.h may be older than these.
template <typename Function> Function newer(const char *name)
{
    auto function = (Function)dlsym(RTLD_DEFAULT, name);
    REQUIRE(function != nullptr);
    return function;
}

using Grow = ncclResult_t (*)(ncclComm_t, int, const ncclUniqueId *, int, ncclComm_t *,
                              ncclConfig_t *);
using Invite = ncclResult_t (*)(ncclComm_t, ncclUniqueId *);
using Suspend = ncclResult_t (*)(ncclComm_t, int);
using Resume = ncclResult_t (*)(ncclComm_t);

// A communicator works: two calls that are served, and then it goes.
void serves(Rank &self, bool destroy = true)
{
    self.round(LAMPREY_REFERENCE_BF16, 500, 1);
    self.round(LAMPREY_REFERENCE_F32, 40, 2);
    REQUIRE(stats_of(self.comm).served >= 2);
    REQUIRE(!destroy || ncclCommDestroy(self.comm) == ncclSuccess);
}

void new_id(int rank, int nranks)
{
    if (rank == 0) {
        shared->id_ready = 0;
    }
    meet(nranks);
    share_id(rank);
}

TEST_F(Serving, ServesCommunicatorsHoweverTheyAreMade)
{
    processes(3, [](int rank) {
        Rank self(rank, 3);
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        new_id(rank, 3);
        REQUIRE(ncclCommInitRankConfig(&self.comm, 3, shared->id, rank, &config) == ncclSuccess);
        serves(self);
        new_id(rank, 3);
        REQUIRE(ncclCommInitRankScalable(&self.comm, 3, rank, 1, &shared->id, &config) ==
                ncclSuccess);
        serves(self);
        new_id(rank, 3);
        REQUIRE(ncclGroupStart() == ncclSuccess); // in a group of its own
        REQUIRE(ncclCommInitRank(&self.comm, 3, shared->id, rank) == ncclSuccess);
        REQUIRE(ncclGroupEnd() == ncclSuccess);
        serves(self, false);

        Rank child = self;
        child.rank = 2 - rank;
        REQUIRE(ncclCommSplit(self.comm, 7, -rank, &child.comm, nullptr) == ncclSuccess);
        serves(child);
        Rank two = self;
        two.nranks = 2;
        if (rank < 2) {
            int excluded[] = {2};
            REQUIRE(ncclCommShrink(self.comm, excluded, 1, &two.comm, nullptr,
                                   NCCL_SHRINK_DEFAULT) == ncclSuccess);
            serves(two, false);
        }
        // Two ranks grow to three again.
        Rank grown = self;
        ncclUniqueId *invitation = &shared->id;
        if (rank == 0) {
            REQUIRE(newer<Invite>("ncclCommGetUniqueId")(two.comm, invitation) == ncclSuccess);
        }
        meet(3);
        REQUIRE(newer<Grow>("ncclCommGrow")(rank < 2 ? two.comm : nullptr, 3,
                                            rank == 1 ? nullptr : invitation, rank < 2 ? -1 : 2,
                                            &grown.comm, nullptr) == ncclSuccess);
        serves(grown);
        if (rank < 2) {
            serves(two); // old ones go on
        }
        serves(self);
    });
}

TEST_F(Serving, LeavesCommunicatorsOfOneRankAlone)
{
    processes(1, [](int) {
        Rank self(0, 1);
        self.init();
        const Counts before = Counts();
        for (uint64_t i = 0; i < 3; i++) {
            self.round(LAMPREY_REFERENCE_F32, 1000, i);
        }
        REQUIRE(stats_of(self.comm).fallback_communicator == 3);
        REQUIRE(Counts() == before);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// Memory is bounded, and comes back; who has no small all-reduce costs nothing.
TEST_F(Serving, BearsHundredsOfCommunicators)
{
    setenv("LAMPREY_MAX_BYTES", "1K", 1); // little staging memory here
    processes(2, [](int rank) {
        constexpr size_t n = 200;
        Rank self(rank, 2);
        self.init();
        serves(self, false);
        std::vector<Rank> parts(n, self);
        const Counts unused = Counts();
        size_t events = 0; // NCCL's
        for (Rank &part : parts) {
            const size_t before = Counts().events;
            REQUIRE(ncclCommSplit(self.comm, 0, rank, &part.comm, nullptr) == ncclSuccess);
            events = Counts().events - before;
            REQUIRE(ncclAllGather((void *)part.send, (void *)part.recv, 64, ncclInt32, part.comm,
                                  (cudaStream_t)part.stream) == ncclSuccess);
        }
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        Counts now;
        REQUIRE(now.events == unused.events + n * events);
        now.events = unused.events;
        REQUIRE(now == unused);
        for (Rank &part : parts) {
            part.round(LAMPREY_REFERENCE_F32, 50, 3);
            REQUIRE(stats_of(part.comm).served == 1);
        }
        now = Counts();
        REQUIRE(now.allocations <= unused.allocations + 2 * n); // its own, and the peer's
        REQUIRE(now.streams == unused.streams);
        for (Rank &part : parts) {
            REQUIRE(ncclCommDestroy(part.comm) == ncclSuccess);
        }
        REQUIRE(Counts() == unused);
        serves(self);
    });
    unsetenv("LAMPREY_MAX_BYTES");
}

TEST_F(Serving, SetsNothingUpForLargeCallsAlone)
{
    processes(2, [](int rank) {
        constexpr size_t bytes = 17 << 20;
        Rank self(rank, 2);
        CUdeviceptr large = 0;
        self.init();
        REQUIRE(cuMemAlloc(&large, bytes) == CUDA_SUCCESS);
        const Counts before = Counts();
        for (const bool grouped : {false, true}) {
            REQUIRE(!grouped || ncclGroupStart() == ncclSuccess);
            REQUIRE(ncclAllReduce((void *)large, (void *)large, bytes, ncclInt8, ncclMax, self.comm,
                                  (cudaStream_t)self.stream) == ncclSuccess);
            REQUIRE(!grouped || ncclGroupEnd() == ncclSuccess);
        }
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        REQUIRE(Counts() == before);
        REQUIRE(stats_of(self.comm).fallback_size == 2);
        serves(self);
    });
}

TEST_F(Serving, RecognisesAnAddressThatIsUsedAgain)
{
    processes(2, [](int rank) {
        std::vector<ncclComm_t> seen;
        Rank self(rank, 2);
        bool again = false;
        for (int i = 0; i < 12; i++) {
            new_id(rank, 2);
            REQUIRE(ncclCommInitRank(&self.comm, 2, shared->id, rank) == ncclSuccess);
            for (ncclComm_t old : seen) {
                again = again || old == self.comm;
            }
            seen.push_back(self.comm);
            self.round(LAMPREY_REFERENCE_F32, 100, (uint64_t)i);
            const lampreyStats stats = stats_of(self.comm);
            REQUIRE(stats.served == 1 && stats.communicators_served == 1);
            REQUIRE((i % 3 ? ncclCommDestroy : ncclCommAbort)(self.comm) == ncclSuccess);
            meet(2);
        }
        REQUIRE(again || kSanitized);
    });
}

TEST_F(Serving, FinalizesWhenTheWorkIsDone)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_F32, 64, 1);
        self.fill(LAMPREY_REFERENCE_F32, 64, 2);
        if (rank == 1) {
            meet(2);
            usleep(30000);
        }
        REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 64) == ncclSuccess);
        if (rank == 0) {
            meet(2);
        }
        REQUIRE(ncclCommFinalize(self.comm) == ncclSuccess);
        REQUIRE(cuStreamQuery(self.stream) == CUDA_SUCCESS);
        self.check(LAMPREY_REFERENCE_F32, 64, 2, true);
        REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 64) == ncclInvalidArgument);
        REQUIRE(ncclCommFinalize(self.comm) == ncclInvalidArgument);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// What hangs on a lost rank leaves, and the survivors go on.
TEST_F(Serving, RevokesAndShrinksWithALostRank)
{
    for (const bool revoke : {true, false}) {
        memset(shared, 0, sizeof *shared);
        processes(3, [revoke](int rank) {
            Rank self(rank, 3);
            self.init();
            self.round(LAMPREY_REFERENCE_F32, 64, 1);
            REQUIRE(ncclCommRevoke(self.comm, 1) == ncclInvalidArgument); // so it lives on
            self.round(LAMPREY_REFERENCE_F32, 64, 2);
            REQUIRE(stats_of(self.comm).served == 2);
            if (rank == 2) { // lost
                meet(3);
                REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
                return;
            }
            Rank two = self;
            int excluded[] = {2};
            two.nranks = 2;
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 64) == ncclSuccess);
            usleep(20000);
            REQUIRE(cuStreamQuery(self.stream) == CUDA_ERROR_NOT_READY);
            if (revoke) {
                REQUIRE(ncclCommRevoke(self.comm, 0) == ncclSuccess);
                REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
                REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 64) == ncclInvalidUsage);
            }
            REQUIRE(ncclCommShrink(self.comm, excluded, 1, &two.comm, nullptr, NCCL_SHRINK_ABORT) ==
                    ncclSuccess);
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
            serves(two);
            meet(3);
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
        });
    }
}

TEST_F(Serving, LetsNcclAnswerWhileSuspended)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        serves(self, false);
        REQUIRE(newer<Suspend>("ncclCommSuspend")(self.comm, 1) == ncclSuccess);
        REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 64) == ncclInvalidUsage);
        REQUIRE(newer<Resume>("ncclCommResume")(self.comm) == ncclSuccess);
        serves(self, false);
        REQUIRE(stats_of(self.comm).served == 4);
        REQUIRE(newer<Suspend>("ncclCommSuspend")(self.comm, 1) == ncclSuccess);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// The handle is busy until NCCL says otherwise: no call of ours may come too early.
TEST_F(Serving, LeavesNonBlockingCommunicatorsToNccl)
{
    for (const bool all : {true, false}) { // of the ranks; one is enough
        memset(shared, 0, sizeof *shared);
        processes(2, [all](int rank) {
            Rank self(rank, 2);
            ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
            config.blocking = !all && rank == 1;
            auto settle = [&](ncclResult_t result) {
                while (result == ncclInProgress) {
                    REQUIRE(ncclCommGetAsyncError(self.comm, &result) == ncclSuccess);
                }
                REQUIRE(result == ncclSuccess);
            };
            new_id(rank, 2);
            settle(ncclCommInitRankConfig(&self.comm, 2, shared->id, rank, &config));
            for (uint64_t i = 0; i < 6; i++) {
                const bool grouped = i % 3 == (uint64_t)rank; // from the first call on
                self.fill(LAMPREY_REFERENCE_F32, 100, i);
                REQUIRE(!grouped || ncclGroupStart() == ncclSuccess);
                const ncclResult_t result = self.all_reduce(LAMPREY_REFERENCE_F32, 100);
                settle(grouped ? ncclGroupEnd() : result);
                self.check(LAMPREY_REFERENCE_F32, 100, i, false);
            }
            REQUIRE(stats_of(self.comm).served == 0);
            REQUIRE(stats_of(self.comm).communicators_refused == 1);
            REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
        });
    }
}

} // namespace
