// SPDX-License-Identifier: Apache-2.0
// Captures, replays and streams: the order that NCCL keeps is kept.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

TEST_F(Serving, SetsUpInsideACaptureOnOneRankOnly)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.fill(LAMPREY_REFERENCE_BF16, 777, 9);
        if (rank == 0) {
            CUgraphExec graph = capture(self, LAMPREY_REFERENCE_BF16, 777, 1);
            REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS);
        } else {
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_BF16, 777) == ncclSuccess);
        }
        self.check(LAMPREY_REFERENCE_BF16, 777, 9, true);
        REQUIRE(stats_of(self.comm).served == 1);
        REQUIRE(stats_of(self.comm).served_captured == (rank == 0 ? 1u : 0u));
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

TEST_F(Serving, OrdersReplaysWithLiveCallsAndOtherReplays)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        CUstream other = nullptr;
        REQUIRE(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
        self.fill(LAMPREY_REFERENCE_F32, 2048, 3);
        CUgraphExec a = capture(self, LAMPREY_REFERENCE_F32, 2048, 5);
        { // NCCL's own calls in a capture; Bcast calls Broadcast, an empty one adds nothing
            CUgraph graph = nullptr;
            REQUIRE(cuStreamBeginCapture(self.stream, CU_STREAM_CAPTURE_MODE_RELAXED) ==
                    CUDA_SUCCESS);
            REQUIRE(ncclBcast((void *)(self.recv + (2 << 20)), 64, ncclFloat32, 0, self.comm,
                              (cudaStream_t)self.stream) == ncclSuccess);
            REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 0, ncclFloat32, ncclSum,
                                  self.comm, (cudaStream_t)self.stream) == ncclSuccess);
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 64) == ncclSuccess);
            REQUIRE(cuStreamEndCapture(self.stream, &graph) == CUDA_SUCCESS);
            REQUIRE(cuGraphDestroy(graph) == CUDA_SUCCESS);
        }
        CUgraphExec b = capture(self, LAMPREY_REFERENCE_F32, 512, 3);
        for (int i = 0; i < 40; i++) { // nothing joins the two streams but the communicator
            REQUIRE(cuGraphLaunch(a, i % 2 ? self.stream : other) == CUDA_SUCCESS);
            REQUIRE(cuGraphLaunch(b, i % 2 ? other : self.stream) == CUDA_SUCCESS);
            REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 2048, ncclFloat32, ncclSum,
                                  self.comm,
                                  (cudaStream_t)(i % 3 ? self.stream : other)) == ncclSuccess);
            if (i % 5 == 0) { // NCCL's own, on either stream
                REQUIRE(ncclAllGather((void *)self.send, (void *)(self.recv + (1 << 20)), 128,
                                      ncclFloat32, self.comm,
                                      (cudaStream_t)(i % 2 ? other : self.stream)) == ncclSuccess);
            }
        }
        REQUIRE(cuStreamSynchronize(other) == CUDA_SUCCESS);
        self.check(LAMPREY_REFERENCE_F32, 2048, 3, true);
        REQUIRE(cuGraphExecDestroy(a) == CUDA_SUCCESS);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
        REQUIRE(cuGraphExecDestroy(b) == CUDA_SUCCESS); // after the communicator
    });
}

TEST_F(Serving, KeepsOrderOverChangingAndDestroyedStreams)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.fill(LAMPREY_REFERENCE_BF16, 3000, 4);
        for (int i = 0; i < 60; i++) {
            CUstream stream = nullptr;
            REQUIRE(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
            REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 3000, ncclBfloat16, ncclSum,
                                  self.comm, (cudaStream_t)stream) == ncclSuccess);
            REQUIRE(cuStreamDestroy(stream) == CUDA_SUCCESS); // its work goes on
        }
        REQUIRE(self.all_reduce(LAMPREY_REFERENCE_BF16, 3000) == ncclSuccess);
        self.check(LAMPREY_REFERENCE_BF16, 3000, 4, true);
        REQUIRE(stats_of(self.comm).served == 61);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// More streams joined than a piece of work has ends: each is one more dependency of the next call.
TEST_F(Serving, CapturesBehindManyJoinedStreams)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_BF16, 100, 1);
        self.fill(LAMPREY_REFERENCE_BF16, 100, 2);
        CUstream joined = nullptr;
        CUevent event = nullptr;
        CUgraph graph = nullptr;
        CUgraphExec executable = nullptr;
        REQUIRE(cuStreamCreate(&joined, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
        REQUIRE(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING) == CUDA_SUCCESS);
        REQUIRE(cuStreamBeginCapture(self.stream, CU_STREAM_CAPTURE_MODE_RELAXED) == CUDA_SUCCESS);
        REQUIRE(self.all_reduce(LAMPREY_REFERENCE_BF16, 100) == ncclSuccess);
        REQUIRE(cuEventRecord(event, self.stream) == CUDA_SUCCESS);
        std::vector<CUstream> forks(12);
        for (CUstream &fork : forks) {
            REQUIRE(cuStreamCreate(&fork, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
            REQUIRE(cuEventRecord(event, self.stream) == CUDA_SUCCESS);
            REQUIRE(cuStreamWaitEvent(fork, event, 0) == CUDA_SUCCESS);
            REQUIRE(cuMemsetD8Async(self.recv + (1 << 20), 1, 16, fork) == CUDA_SUCCESS);
            REQUIRE(cuEventRecord(event, fork) == CUDA_SUCCESS);
            REQUIRE(cuStreamWaitEvent(joined, event, 0) == CUDA_SUCCESS);
        }
        REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 100, ncclBfloat16, ncclSum,
                              self.comm, (cudaStream_t)joined) == ncclSuccess);
        REQUIRE(cuEventRecord(event, joined) == CUDA_SUCCESS);
        REQUIRE(cuStreamWaitEvent(self.stream, event, 0) == CUDA_SUCCESS);
        REQUIRE(cuStreamEndCapture(self.stream, &graph) == CUDA_SUCCESS);
        REQUIRE(cuGraphInstantiate(&executable, graph, 0) == CUDA_SUCCESS);
        REQUIRE(cuGraphDestroy(graph) == CUDA_SUCCESS);
        REQUIRE(cuGraphLaunch(executable, self.stream) == CUDA_SUCCESS);
        self.check(LAMPREY_REFERENCE_BF16, 100, 2, true);
        REQUIRE(stats_of(self.comm).served_captured == 2);
        REQUIRE(cuGraphExecDestroy(executable) == CUDA_SUCCESS);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

} // namespace
