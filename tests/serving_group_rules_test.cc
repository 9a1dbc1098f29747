// SPDX-License-Identifier: Apache-2.0
// What NCCL promises of groups: nesting, errors, any mixture of calls, any number of them.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

TEST_F(Serving, TakesNestedAndEmptyGroups)
{
    processes(3, [](int rank) {
        Rank self(rank, 3);
        REQUIRE(ncclGroupStart() == ncclSuccess); // the library comes in the middle of this one
        REQUIRE(ncclGroupEnd() == ncclSuccess);
        self.init();
        Chain chain(self);
        chain.step(true, self.stream);
        for (int i = 0; i < 3; i++) {
            REQUIRE(ncclGroupStart() == ncclSuccess);
            REQUIRE(ncclGroupEnd() == ncclSuccess);
            REQUIRE(ncclGroupEnd() == ncclInvalidUsage);
        }
        REQUIRE(ncclGroupStart() == ncclSuccess);
        REQUIRE(ncclGroupStart() == ncclSuccess);
        chain.step(true, self.stream);
        REQUIRE(ncclGroupEnd() == ncclSuccess);
        REQUIRE(stats_of(self.comm).served == 1); // not yet
        REQUIRE(ncclGroupStart() == ncclSuccess);
        REQUIRE(ncclGroupEnd() == ncclSuccess);
        REQUIRE(ncclGroupEnd() == ncclSuccess);
        REQUIRE(stats_of(self.comm).served == 2);
        chain.step(true, self.stream);
        chain.expect(3);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// Streams of a communicator in a group are in one capture, all of them or none.
TEST_F(Serving, RefusesAGroupThatIsHalfCaptured)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        Chain chain(self);
        chain.step(true, self.stream);
        CUstream live = make_stream();
        for (int i = 0; i < 8; i++) { // which call is NCCL's, and which comes first
            CUgraph graph = nullptr;
            CUgraphNode nodes[4];
            size_t count = 4;
            const CUstream streams[] = {i & 4 ? self.stream : live, i & 4 ? live : self.stream};
            REQUIRE(cuStreamBeginCapture(self.stream, CU_STREAM_CAPTURE_MODE_RELAXED) ==
                    CUDA_SUCCESS);
            REQUIRE(ncclGroupStart() == ncclSuccess);
            REQUIRE(chain.call(i & 1, streams[0]) == ncclSuccess);
            REQUIRE(chain.call(i & 2, streams[1]) == ncclInvalidUsage);
            REQUIRE(ncclGroupEnd() == ncclInvalidUsage);
            REQUIRE(cuStreamEndCapture(self.stream, &graph) == CUDA_SUCCESS);
            REQUIRE(cuGraphGetNodes(graph, nodes, &count) == CUDA_SUCCESS);
            for (size_t node = 0; node < count; node++) { // a wait for what came before, at most
                CUgraphNodeType type;
                REQUIRE(cuGraphNodeGetType(nodes[node], &type) == CUDA_SUCCESS);
                REQUIRE(type == CU_GRAPH_NODE_TYPE_WAIT_EVENT);
            }
            REQUIRE(cuGraphDestroy(graph) == CUDA_SUCCESS);
        }
        chain.step(true, live);
        chain.expect(2);
        REQUIRE(stats_of(self.comm).served == 2);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// All kinds of calls, from the first one of the communicator on.
TEST_F(Serving, MixesAllKindsOfCallsInAGroup)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        Chain chain(self);
        const cudaStream_t stream = (cudaStream_t)self.stream;
        std::vector<int> zeros(1024);
        CUdeviceptr data = 0;
        REQUIRE(cuMemAlloc(&data, 4096) == CUDA_SUCCESS);
        REQUIRE(cuMemcpyHtoD(data, zeros.data(), 4096) == CUDA_SUCCESS);
        int *words = (int *)data;
        for (int i = 0; i < 3; i++) {
            const int own = 10 * i + rank + 1;
            REQUIRE(cuMemcpyHtoD(data, &own, sizeof own) == CUDA_SUCCESS);
            self.fill(LAMPREY_REFERENCE_F32, 100, (uint64_t)i);
            REQUIRE(ncclGroupStart() == ncclSuccess);
            REQUIRE(ncclSend(words, 1, ncclInt32, 1 - rank, self.comm, stream) == ncclSuccess);
            chain.step(i % 2, self.stream);
            REQUIRE(ncclAllGather(words, words + 16, 1, ncclInt32, self.comm, stream) ==
                    ncclSuccess);
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 100) == ncclSuccess);
            REQUIRE(ncclRecv(words + 8, 1, ncclInt32, 1 - rank, self.comm, stream) == ncclSuccess);
            REQUIRE(ncclBroadcast(words, words + 32, 1, ncclInt32, 1, self.comm, stream) ==
                    ncclSuccess);
            REQUIRE(ncclGroupEnd() == ncclSuccess);
            self.check(LAMPREY_REFERENCE_F32, 100, (uint64_t)i, true);
            int got[33];
            REQUIRE(cuMemcpyDtoH(got, data, sizeof got) == CUDA_SUCCESS);
            REQUIRE(got[8] == 10 * i + 2 - rank);
            REQUIRE(got[16] == 10 * i + 1 && got[17] == 10 * i + 2);
            REQUIRE(got[32] == 10 * i + 2);
        }
        chain.expect(3);
        REQUIRE(stats_of(self.comm).served == 4);
        REQUIRE(stats_of(self.comm).served_grouped == 4);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// On one stream, from the first calls on: {X, Y} on one rank, {Y, X} on the other.
TEST_F(Serving, TakesTheCommunicatorsOfAGroupInAnyOrder)
{
    processes(3, [](int rank) {
        Rank self(rank, 3);
        self.init();
        Rank part = self;
        REQUIRE(ncclCommSplit(self.comm, 0, rank, &part.comm, nullptr) == ncclSuccess);
        Chain x(self);
        Chain y(part);
        for (int i = 0; i < 20; i++) {
            REQUIRE(ncclGroupStart() == ncclSuccess);
            for (int turn = 0; turn < 2; turn++) {
                ((turn + i) % 2 == rank % 2 ? x : y).step(true, self.stream);
            }
            REQUIRE(ncclGroupEnd() == ncclSuccess);
        }
        x.expect(20);
        y.expect(20);
        REQUIRE(stats_of(part.comm).served == 20);
        REQUIRE(ncclCommDestroy(part.comm) == ncclSuccess);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// Two threads with two GPUs each: groups, and first calls, of one thread wait for the other's.
TEST_F(Serving, DrivesSeveralGpusFromEachOfSeveralThreads)
{
    processes(1, [](int) {
        static constexpr int n = 4;
        std::vector<std::thread> threads;
        share_id(0);
        for (int t = 0; t < 2; t++) {
            threads.emplace_back([t] {
                std::vector<Rank> ranks;
                std::vector<Chain> chains;
                for (int r = t; r < n; r += 2) {
                    ranks.emplace_back(r, n);
                }
                REQUIRE(ncclGroupStart() == ncclSuccess);
                for (Rank &self : ranks) {
                    self.use();
                    REQUIRE(ncclCommInitRank(&self.comm, n, shared->id, self.rank) == ncclSuccess);
                }
                REQUIRE(ncclGroupEnd() == ncclSuccess);
                for (Rank &self : ranks) {
                    self.use();
                    chains.emplace_back(self);
                }
                for (int i = 0; i < 10; i++) {
                    REQUIRE(ncclGroupStart() == ncclSuccess);
                    for (size_t r = 0; r < ranks.size(); r++) {
                        chains[(r + (size_t)i) % 2].step(i % 4 != 3,
                                                         ranks[(r + (size_t)i) % 2].stream);
                    }
                    REQUIRE(ncclGroupEnd() == ncclSuccess);
                }
                for (size_t r = 0; r < ranks.size(); r++) {
                    ranks[r].use();
                    chains[r].expect(10);
                    REQUIRE(stats_of(ranks[r].comm).served == 8);
                }
                REQUIRE(ncclGroupStart() == ncclSuccess);
                for (Rank &self : ranks) {
                    REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
                }
                REQUIRE(ncclGroupEnd() == ncclSuccess);
            });
        }
        for (std::thread &thread : threads) {
            thread.join();
        }
    });
}

// More calls than any launch queue holds, a communicator's all before the next one's.
TEST_F(Serving, TakesGroupsLargerThanALaunchQueue)
{
    setenv("LAMPREY_EMULATOR_QUEUE", "64", 1);
    processes(1, [](int) {
        constexpr int n = 3;
        constexpr int calls = 5000;
        ncclComm_t comms[n];
        std::vector<Rank> ranks;
        std::vector<Chain> chains;
        REQUIRE(ncclCommInitAll(comms, n, nullptr) == ncclSuccess);
        ranks.reserve(n);
        for (int r = 0; r < n; r++) {
            ranks.emplace_back(r, n);
            ranks[r].comm = comms[r];
            chains.emplace_back(ranks[r]);
        }
        REQUIRE(ncclGroupStart() == ncclSuccess);
        for (int r = 0; r < n; r++) {
            for (int i = 0; i < calls; i++) {
                chains[r].step(true, ranks[r].stream);
            }
        }
        REQUIRE(ncclGroupEnd() == ncclSuccess);
        for (int r = 0; r < n; r++) {
            ranks[r].use();
            REQUIRE(stats_of(comms[r]).served == calls);
            chains[r].expect(calls);
            REQUIRE(ncclCommDestroy(comms[r]) == ncclSuccess);
        }
    });
    unsetenv("LAMPREY_EMULATOR_QUEUE");
}

} // namespace
