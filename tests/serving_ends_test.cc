// SPDX-License-Identifier: Apache-2.0
// How programs end, in good order or not.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

Rank *at_exit;

// The program just ends, with kernels that may still run, communicators and graphs.
TEST_F(Serving, LetsAProgramEndWithoutDestroyingAnything)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_F32, 100, 1);
        CUgraphExec graph = capture(self, LAMPREY_REFERENCE_F32, 100, 2);
        REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS);
        REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 100) == ncclSuccess);
        meet(2);
        exit(0);
    });
}

// As static objects of programs do, long after everybody else has cleaned up.
TEST_F(Serving, LetsStaticDestructorsDestroyCommunicators)
{
    processes(2, [](int rank) {
        static Rank self(rank, 2);
        at_exit = &self;
        REQUIRE(atexit([] {
                    at_exit->use();
                    at_exit->round(LAMPREY_REFERENCE_F32, 100, 2);
                    REQUIRE(ncclCommDestroy(at_exit->comm) == ncclSuccess);
                }) == 0); // before NCCL and the plugin register theirs, so it runs after them
        self.init();
        self.round(LAMPREY_REFERENCE_F32, 100, 1);
        exit(0);
    });
}

// A launch that waits for room in its queue holds nothing that an abort needs.
TEST_F(Serving, AbortsWithAFullLaunchQueue)
{
    setenv("LAMPREY_EMULATOR_QUEUE", "16", 1);
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_F32, 100, 1);
        meet(2);
        if (rank == 0) {
            std::atomic<int> launched{0};
            std::thread caller([&] {
                self.use();
                for (ncclResult_t result = ncclSuccess; result == ncclSuccess; launched++) {
                    result = self.all_reduce(LAMPREY_REFERENCE_F32, 100);
                }
            });
            for (int before = -1; before != launched;) { // it is stuck
                before = launched;
                usleep(50000);
            }
            REQUIRE(launched > 0 && launched < 16);
            const auto start = std::chrono::steady_clock::now();
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
            caller.join();
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
            REQUIRE(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
            meet(2);
        } else {
            meet(2);
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
        }
    });
    unsetenv("LAMPREY_EMULATOR_QUEUE");
}

// The child of a fork may not use the parent's communicators; what it calls goes to NCCL as it is.
TEST_F(Serving, TouchesNothingInAChildOfAFork)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_BF16, 100, 1);
        const pid_t child = fork();
        if (child == 0) {
            ncclResult_t error = ncclInternalError;
            alarm(20);
            const bool good = ncclCommGetAsyncError(self.comm, &error) == ncclSuccess &&
                              ncclGroupStart() == ncclSuccess && ncclGroupEnd() == ncclSuccess &&
                              ncclAllReduce(nullptr, nullptr, 0, ncclFloat32, ncclSum, self.comm,
                                            nullptr) == ncclSuccess;
            kSanitized ? _exit(good ? 0 : 4) : exit(good ? 0 : 4); // its destructors run, too
        }
        int status = -1;
        REQUIRE(waitpid(child, &status, 0) == child && status == 0);
        self.round(LAMPREY_REFERENCE_BF16, 100, 2);
        REQUIRE(stats_of(self.comm).served == 2);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

} // namespace
