// SPDX-License-Identifier: Apache-2.0
// Streams of all kinds: a communicator's work is in call order on whatever streams it is.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

// Steps of ours and of NCCL's, each on the next of these streams.
void alternate(int rank, const std::vector<CUstream> &streams)
{
    Rank self(rank, 3);
    self.init();
    Chain chain(self);
    int steps = 0;
    for (int i = 0; i < 60; i++) {
        const CUstream stream =
            streams[(size_t)(i * 7 + rank) % streams.size()]; // each rank its own order
        chain.step(i % 4 != 3, stream ? stream : make_stream());
        steps++;
    }
    chain.expect(steps);
    REQUIRE(stats_of(self.comm).served == 45);
    REQUIRE(stats_of(self.comm).fallback_operator == 15);
    REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
}

TEST_F(Serving, KeepsOrderOnTheLegacyStream)
{
    processes(3, [](int rank) { alternate(rank, {CU_STREAM_LEGACY}); });
}

// The null stream as most programs name it, with blocking streams beside it.
TEST_F(Serving, KeepsOrderOnTheNullStream)
{
    processes(3, [](int rank) {
        Rank self(rank, 3);
        self.init();
        Chain chain(self);
        CUstream blocking = make_stream(CU_STREAM_DEFAULT);
        for (int i = 0; i < 40; i++) {
            chain.step(i % 3 != 0, i % 2 ? blocking : nullptr);
        }
        chain.expect(40);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

TEST_F(Serving, KeepsOrderOverStreamsOfAllKinds)
{
    processes(3, [](int rank) {
        // A null pointer here: a new stream each time.
        alternate(rank, {CU_STREAM_PER_THREAD, CU_STREAM_LEGACY, nullptr});
    });
}

// One handle, another stream in each thread.
TEST_F(Serving, TellsThePerThreadStreamsOfThreadsApart)
{
    processes(3, [](int rank) {
        Rank self(rank, 3);
        self.init();
        Chain chain(self);
        std::atomic<int> turn{0};
        std::vector<std::thread> threads;
        for (int t = 0; t < 3; t++) {
            threads.emplace_back([&, t] {
                self.use();
                for (int i = t; i < 60; i += 3) {
                    while (turn != i) { // one thread at a time uses the communicator
                        sched_yield();
                    }
                    chain.step(i % 4 != 3, CU_STREAM_PER_THREAD);
                    turn++;
                }
            });
        }
        for (std::thread &thread : threads) {
            thread.join();
        }
        chain.expect(60);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

TEST_F(Serving, TakesAForeignCurrentDevice)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        CUcontext other = nullptr;
        CUcontext now = nullptr;
        self.round(LAMPREY_REFERENCE_F32, 100, 1);
        self.fill(LAMPREY_REFERENCE_F32, 100, 2);
        REQUIRE(cuDevicePrimaryCtxRetain(&other, 5) == CUDA_SUCCESS);
        REQUIRE(cuCtxSetCurrent(other) == CUDA_SUCCESS);
        REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 100) == ncclSuccess);
        REQUIRE(cuCtxGetCurrent(&now) == CUDA_SUCCESS && now == other);
        self.use();
        self.check(LAMPREY_REFERENCE_F32, 100, 2, true);
        REQUIRE(stats_of(self.comm).served == 2);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// Any number of host threads, each with a communicator; first calls at once, in any order.
TEST_F(Serving, ServesAThreadForEachCommunicator)
{
    processes(2, [](int rank) {
        constexpr int n = 6;
        Rank self(rank, 2);
        self.init();
        std::vector<Rank> parts(n, self);
        for (Rank &part : parts) {
            REQUIRE(ncclCommSplit(self.comm, 0, rank, &part.comm, nullptr) == ncclSuccess);
            part.stream = make_stream();
        }
        std::vector<std::thread> threads;
        for (int i = 0; i < n; i++) {
            threads.emplace_back([&parts, rank, i] {
                Rank &part = parts[(size_t)(rank ? n - 1 - i : i)];
                part.use();
                Chain chain(part);
                usleep((useconds_t)(i * 500));
                for (int step = 0; step < 30; step++) {
                    chain.step(step % 5 != 0, part.stream);
                }
                REQUIRE(cuStreamSynchronize(part.stream) == CUDA_SUCCESS);
                chain.expect(30);
            });
        }
        for (std::thread &thread : threads) {
            thread.join();
        }
        for (Rank &part : parts) {
            REQUIRE(stats_of(part.comm).served == 24);
            REQUIRE(ncclCommDestroy(part.comm) == ncclSuccess);
        }
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

} // namespace
