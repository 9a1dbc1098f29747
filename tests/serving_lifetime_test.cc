// SPDX-License-Identifier: Apache-2.0
// Aborts, forks, failures on the way, and what is left behind.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

TEST_F(Serving, LeavesKernelsAndSetUpsOnAbort)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_BF16, 100, 1);
        if (rank == 0) { // its peer doesn't come
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_BF16, 100) == ncclSuccess);
            usleep(50000);
            REQUIRE(cuStreamQuery(self.stream) == CUDA_ERROR_NOT_READY);
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        }
        meet(2);
        if (rank == 1) {
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
        }
    });
    for (const bool grouped : {false, true}) {
        memset(shared, 0, sizeof *shared);
        processes(2, [grouped](int rank) {
            Rank self(rank, 2);
            self.init();
            if (rank == 0) {
                self.all_reduce_until_abort(100, grouped, [] {});
            }
            meet(2);
            if (rank == 1) {
                REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
            }
        });
    }
}

// The launch queue is full of calls whose peer doesn't come, and another thread waits in a launch:
// the abort frees both. Ten times what is promised of a machine that does nothing else.
TEST_F(Serving, AbortsWhileTheLaunchQueueIsFull)
{
    setenv("LAMPREY_EMULATOR_QUEUE", "8", 1);
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_BF16, 100, 1);
        if (rank == 0) {
            std::thread caller([&] {
                self.use();
                ncclResult_t result = ncclSuccess;
                for (int i = 0; i < 100 && result == ncclSuccess; i++) {
                    result = self.all_reduce(LAMPREY_REFERENCE_BF16, 100);
                }
                REQUIRE(result == ncclInternalError || result == ncclInvalidArgument);
            });
            usleep(100000);
            const auto start = std::chrono::steady_clock::now();
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
            REQUIRE(std::chrono::steady_clock::now() - start < std::chrono::seconds(2));
            caller.join();
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
            REQUIRE(std::chrono::steady_clock::now() - start < std::chrono::seconds(2));
        }
        meet(2);
        if (rank == 1) {
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
        }
    });
    unsetenv("LAMPREY_EMULATOR_QUEUE");
}

// The process that makes the id forks its ranks afterwards: they are served like any.
TEST_F(Serving, ServesRanksForkedAfterItWasLoaded)
{
    const std::string env = plugin_;
    processes(1, [&](int) {
        setenv("NCCL_ENV_PLUGIN", env.c_str(), 1);
        REQUIRE(ncclGetUniqueId(&shared->id) == ncclSuccess);
        shared->id_ready = 1;
        pid_t children[2];
        for (int rank = 0; rank < 2; rank++) {
            children[rank] = fork();
            if (children[rank] == 0) {
                Rank self(rank, 2);
                REQUIRE(ncclCommInitRank(&self.comm, 2, shared->id, rank) == ncclSuccess);
                self.round(LAMPREY_REFERENCE_BF16, 1000, 1);
                REQUIRE(stats_of(self.comm).served == 1);
                REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
                _exit(0);
            }
        }
        for (pid_t child : children) {
            int status = -1;
            REQUIRE(waitpid(child, &status, 0) == child && status == 0);
        }
    });
}

// A rank that can't enter the exchange, or drops out of it, must not run another collective into
// it.
TEST_F(Serving, FailsWhereTheExchangeCannotBeEntered)
{
    const struct {
        const char *variable;
        const char *fault;
        ncclResult_t result;
    } cases[] = {
        {"LAMPREY_EMULATOR_FAIL", "cuMemHostAlloc:1", ncclUnhandledCudaError},
        {"LAMPREY_EMULATOR_NCCL_FAIL", "ncclAllGather:1:2", ncclSystemError},
        {"LAMPREY_EMULATOR_NCCL_FAIL", "ncclAllGather:3:2", ncclSystemError},
    };
    for (const auto &c : cases) {
        SCOPED_TRACE(c.fault);
        memset(shared, 0, sizeof *shared);
        processes(2, [&c](int rank) {
            if (rank == 1) {
                setenv(c.variable, c.fault, 1);
            }
            Rank self(rank, 2);
            self.init();
            if (rank == 1) {
                REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 100) == c.result);
                REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 100) == c.result);
                self.fill(LAMPREY_REFERENCE_F32, 100, 1);
                REQUIRE(ncclGroupStart() == ncclSuccess);
                REQUIRE(ncclAllGather((void *)self.send, (void *)self.recv, 10, ncclFloat32,
                                      self.comm, (cudaStream_t)self.stream) == ncclSuccess);
                REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 100) == c.result);
                REQUIRE(ncclGroupEnd() == c.result);
                REQUIRE(cuStreamQuery(self.stream) == CUDA_SUCCESS); // nothing of it was started
                meet(2);
            } else {
                self.all_reduce_until_abort(100, false, [] { meet(2); });
            }
            meet(2);
            if (rank == 1) {
                REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
            }
        });
    }
}

TEST_F(Serving, ServesAfterAGpuWasReset)
{
    processes(2, [](int rank) {
        for (uint64_t i = 0; i < 3; i++) {
            if (rank == 0) {
                shared->id_ready = 0;
            }
            meet(2);
            Rank self(rank, 2);
            self.init();
            self.round(LAMPREY_REFERENCE_BF16, 1000, i);
            REQUIRE(stats_of(self.comm).served == 1);
            REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
            meet(2);
            REQUIRE(cuDevicePrimaryCtxReset(rank) == CUDA_SUCCESS);
        }
    });
}

TEST_F(Serving, LeaksNothingOverManyCommunicators)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        auto communicator = [&](uint64_t seed, bool with_graph) {
            if (rank == 0) {
                shared->id_ready = 0;
            }
            meet(2);
            self.init();
            self.round(LAMPREY_REFERENCE_BF16, 100, seed);
            if (with_graph) {
                CUgraphExec graph = capture(self, LAMPREY_REFERENCE_BF16, 100, 2);
                REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS);
                REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
                REQUIRE(cuGraphExecDestroy(graph) == CUDA_SUCCESS);
            }
            REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
            meet(2);
        };
        for (uint64_t i = 0; i < 4; i++) {
            communicator(i, false);
        }
        const Counts first;
        for (uint64_t i = 4; i < 12; i++) {
            communicator(i, true);
        }
        // A graph's references go in the background, and the next set-up cleans up.
        for (uint64_t i = 0;; i++) {
            REQUIRE(i < sizeof shared->settled / sizeof shared->settled[0]);
            communicator(i, false);
            const int settled = first == Counts();
            __atomic_fetch_add(&shared->settled[i], settled, __ATOMIC_SEQ_CST);
            meet(2);
            if (shared->settled[i] == 2) {
                break;
            }
            usleep(100000);
        }
    });
}

// Every set-up gets as far as one rank's fault lets it, and gives all of it back.
TEST_F(Serving, LeaksNothingWhereSetUpsFail)
{
    for (const char *fault : {"cuMemImportFromShareableHandle:0", "cuMemExportToShareableHandle:0",
                              "cuLibraryGetKernel:0"}) {
        SCOPED_TRACE(fault);
        memset(shared, 0, sizeof *shared);
        expect_refused_without_leaks(2, [&](int rank) {
            if (rank == 1) {
                setenv("LAMPREY_EMULATOR_FAIL", fault, 1);
            }
        });
    }
}

} // namespace
