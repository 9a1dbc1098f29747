// SPDX-License-Identifier: Apache-2.0
// CUDA graphs: every way to capture, to make executables of a capture, and to run them among other
// work of the communicator.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

CUgraph captured(CUstream stream, const std::function<void()> &calls,
                 CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL)
{
    CUgraph graph = nullptr;
    REQUIRE(cuStreamBeginCapture(stream, mode) == CUDA_SUCCESS);
    calls();
    REQUIRE(cuStreamEndCapture(stream, &graph) == CUDA_SUCCESS);
    return graph;
}

CUgraphExec instantiated(CUgraph graph)
{
    CUgraphExec executable = nullptr;
    REQUIRE(cuGraphInstantiate(&executable, graph, 0) == CUDA_SUCCESS);
    return executable;
}

void launch(CUgraphExec executable, CUstream stream)
{
    REQUIRE(cuGraphLaunch(executable, stream) == CUDA_SUCCESS);
}

// A world of three ranks, warm; body works on its chain.
void in_a_world(int rank, const std::function<void(Rank &, Chain &)> &body)
{
    Rank self(rank, 3);
    self.init();
    Chain chain(self);
    body(self, chain);
    REQUIRE(stats_of(self.comm).communicators_served == 1);
    REQUIRE(stats_of(self.comm).failed == 0);
    REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
}

TEST_F(Serving, CapturesInAllModes)
{
    for (CUstreamCaptureMode mode :
         {CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
          CU_STREAM_CAPTURE_MODE_RELAXED}) {
        SCOPED_TRACE(mode);
        memset(shared, 0, sizeof *shared);
        processes(3, [mode](int rank) {
            in_a_world(rank, [&](Rank &self, Chain &chain) { // the first call is a captured one
                CUgraphExec graph = instantiated(captured(
                    self.stream,
                    [&] {
                        chain.step(true, self.stream);
                        chain.step(false, self.stream);
                        chain.step(true, self.stream);
                    },
                    mode));
                for (int i = 0; i < 10; i++) {
                    launch(graph, self.stream);
                    chain.step(true, self.stream);
                }
                chain.expect(40);
            });
        });
    }
}

TEST_F(Serving, KeepsOrderInACaptureOverSeveralStreams)
{
    processes(3, [](int rank) {
        in_a_world(rank, [rank](Rank &self, Chain &chain) {
            CUstream other = make_stream();
            CUevent fork = nullptr;
            CUevent join = nullptr;
            REQUIRE(cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING) == CUDA_SUCCESS);
            REQUIRE(cuEventCreate(&join, CU_EVENT_DISABLE_TIMING) == CUDA_SUCCESS);
            CUgraphExec graph = instantiated(captured(self.stream, [&] {
                REQUIRE(cuEventRecord(fork, self.stream) == CUDA_SUCCESS);
                REQUIRE(cuStreamWaitEvent(other, fork, 0) == CUDA_SUCCESS);
                for (int i = 0; i < 12; i++) { // the streams are each rank's own choice
                    chain.step(i % 3 != 2, (i * 5 + rank) % 4 < 2 ? self.stream : other);
                }
                REQUIRE(cuEventRecord(join, other) == CUDA_SUCCESS);
                REQUIRE(cuStreamWaitEvent(self.stream, join, 0) == CUDA_SUCCESS);
            }));
            for (int i = 0; i < 8; i++) {
                launch(graph, i % 2 ? self.stream : other);
                chain.step(true, i % 3 ? other : self.stream);
            }
            chain.expect(8 * 13);
        });
    });
}

// Two captures that are under way together, and run among live calls on other streams.
TEST_F(Serving, KeepsSeveralCapturesApart)
{
    processes(3, [](int rank) {
        in_a_world(rank, [](Rank &self, Chain &chain) {
            CUstream streams[] = {self.stream, make_stream(), make_stream()};
            CUgraph graphs[2];
            for (int i = 0; i < 2; i++) {
                REQUIRE(cuStreamBeginCapture(streams[i], CU_STREAM_CAPTURE_MODE_RELAXED) ==
                        CUDA_SUCCESS);
            }
            for (int i = 0; i < 9; i++) { // captured, captured, live
                chain.step(i % 2, streams[i % 3]);
            }
            for (int i = 0; i < 2; i++) {
                REQUIRE(cuStreamEndCapture(streams[i], &graphs[i]) == CUDA_SUCCESS);
            }
            CUgraphExec first = instantiated(graphs[0]);
            CUgraphExec second = instantiated(graphs[1]);
            for (int i = 0; i < 12; i++) {
                launch(i % 2 ? first : second, streams[i % 3]);
                chain.step(i % 4 == 0, streams[(i + 1) % 3]);
            }
            chain.expect(3 + 12 * 4);
        });
    });
}

TEST_F(Serving, RunsClonesAndChildren)
{
    processes(3, [](int rank) {
        in_a_world(rank, [](Rank &self, Chain &chain) {
            CUstream other = make_stream();
            CUgraph graph = captured(self.stream, [&] {
                chain.step(true, self.stream);
                chain.step(false, self.stream);
            });
            CUgraph clone = nullptr;
            CUgraph parent = nullptr;
            CUgraphNode first = nullptr;
            CUgraphNode second = nullptr;
            REQUIRE(cuGraphClone(&clone, graph) == CUDA_SUCCESS);
            REQUIRE(cuGraphCreate(&parent, 0) == CUDA_SUCCESS);
            REQUIRE(cuGraphAddChildGraphNode(&first, parent, nullptr, 0, graph) == CUDA_SUCCESS);
            REQUIRE(cuGraphAddChildGraphNode(&second, parent, &first, 1, clone) == CUDA_SUCCESS);
            CUgraphExec twice = instantiated(parent);
            CUgraphExec once = instantiated(clone);
            for (CUgraph done : {graph, clone, parent}) {
                REQUIRE(cuGraphDestroy(done) == CUDA_SUCCESS);
            }
            for (int i = 0; i < 6; i++) {
                launch(once, i % 2 ? self.stream : other);
                launch(twice, i % 3 ? self.stream : other);
                chain.step(true, i % 2 ? other : self.stream);
            }
            chain.expect(6 * 7);
        });
    });
}

// As frameworks do that capture anew and update what they have.
TEST_F(Serving, UpdatesGraphsInPlace)
{
    processes(3, [](int rank) {
        in_a_world(rank, [](Rank &self, Chain &chain) {
            CUgraphExecUpdateResultInfo info;
            Chain second(self);
            CUgraphExec executable = instantiated(captured(self.stream, [&] {
                chain.step(true, self.stream);
                chain.step(true, self.stream);
            }));
            launch(executable, self.stream); // runs while it is updated
            CUgraph same_shape = captured(self.stream, [&] {
                second.step(true, self.stream);
                chain.step(true, self.stream);
            });
            REQUIRE(cuGraphExecUpdate(executable, same_shape, &info) == CUDA_SUCCESS);
            REQUIRE(cuGraphDestroy(same_shape) == CUDA_SUCCESS);
            launch(executable, make_stream());
            second.step(true, self.stream);
            CUgraph longer = captured(self.stream, [&] {
                for (int i = 0; i < 3; i++) {
                    chain.step(true, self.stream);
                }
            });
            REQUIRE(cuGraphExecUpdate(executable, longer, &info) ==
                    CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
            launch(executable, self.stream);
            chain.expect(2 + 1 + 1);
            second.expect(1 + 1 + 1);
        });
    });
}

// An executable of one communicator becomes one of another, while the first one goes.
TEST_F(Serving, UpdatesAGraphToAnotherCommunicator)
{
    processes(3, [](int rank) {
        in_a_world(rank, [rank](Rank &self, Chain &chain) {
            CUgraphExecUpdateResultInfo info;
            Rank part = self;
            REQUIRE(ncclCommSplit(self.comm, 0, rank, &part.comm, nullptr) == ncclSuccess);
            Chain parts(part);
            CUgraphExec executable =
                instantiated(captured(self.stream, [&] { parts.step(true, self.stream); }));
            launch(executable, self.stream);
            CUgraph graph = captured(self.stream, [&] { chain.step(true, self.stream); });
            REQUIRE(cuGraphExecUpdate(executable, graph, &info) == CUDA_SUCCESS);
            REQUIRE(ncclCommDestroy(part.comm) == ncclSuccess);
            launch(executable, self.stream);
            chain.expect(1);
            parts.expect(1);
        });
    });
}

// What a capture adds to the graph: a kernel for each call, and one wait and one record for all.
// With the user's switch off only the kernels, which the body of a conditional node may hold.
TEST_F(Serving, AddsOneWaitAndOneRecordToAGraph)
{
    for (const char *mixing : {"1", "0"}) {
        setenv("NCCL_GRAPH_MIXING_SUPPORT", mixing, 1);
        memset(shared, 0, sizeof *shared);
        processes(3, [mixing](int rank) {
            in_a_world(rank, [&](Rank &self, Chain &chain) {
                chain.step(true, self.stream);
                CUgraph graph = captured(self.stream, [&] {
                    for (int i = 0; i < 20; i++) {
                        chain.step(true, self.stream);
                    }
                });
                CUgraphNode nodes[64];
                size_t count = 64;
                int of_type[32] = {};
                REQUIRE(cuGraphGetNodes(graph, nodes, &count) == CUDA_SUCCESS);
                for (size_t i = 0; i < count; i++) {
                    CUgraphNodeType type;
                    REQUIRE(cuGraphNodeGetType(nodes[i], &type) == CUDA_SUCCESS);
                    of_type[type]++;
                }
                const int events = atoi(mixing);
                REQUIRE(of_type[CU_GRAPH_NODE_TYPE_KERNEL] == 20);
                REQUIRE(of_type[CU_GRAPH_NODE_TYPE_WAIT_EVENT] == events);
                REQUIRE(of_type[CU_GRAPH_NODE_TYPE_EVENT_RECORD] == events);
                REQUIRE(count == (size_t)(20 + 2 * events));
                launch(instantiated(graph), self.stream);
                chain.expect(21);
            });
        });
    }
    unsetenv("NCCL_GRAPH_MIXING_SUPPORT");
}

// A capture that the program gives up, or spoils, changes nothing for what follows.
TEST_F(Serving, ForgetsCapturesThatAreGivenUp)
{
    processes(3, [](int rank) {
        in_a_world(rank, [](Rank &self, Chain &chain) {
            chain.step(true, self.stream);
            CUgraph graph = captured(self.stream, [&] { chain.step(true, self.stream); });
            REQUIRE(cuGraphDestroy(graph) == CUDA_SUCCESS);
            REQUIRE(cuStreamBeginCapture(self.stream, CU_STREAM_CAPTURE_MODE_GLOBAL) ==
                    CUDA_SUCCESS);
            chain.step(true, self.stream);
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
            REQUIRE(cuStreamEndCapture(self.stream, &graph) ==
                    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
            chain.step(true, self.stream);
            chain.step(true, make_stream());
            launch(instantiated(captured(self.stream, [&] { chain.step(true, self.stream); })),
                   self.stream);
            chain.expect(4);
        });
    });
}

// A graph may go before its communicator or after it; either way all memory comes back.
TEST_F(Serving, GivesMemoryBackWhicheverGoesFirst)
{
    for (const bool graph_first : {true, false}) {
        memset(shared, 0, sizeof *shared);
        processes(2, [graph_first](int rank) {
            Rank self(rank, 2);
            Counts before;
            Counts now;
            for (int i = 0; i < 15; i++) { // what graphs held comes back in the background
                if (rank == 0) {
                    shared->id_ready = 0;
                }
                meet(2);
                self.init();
                CUgraphExec graph = capture(self, LAMPREY_REFERENCE_BF16, 100, 2);
                launch(graph, self.stream);
                REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
                if (graph_first) {
                    REQUIRE(cuGraphExecDestroy(graph) == CUDA_SUCCESS);
                }
                REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
                if (!graph_first) {
                    REQUIRE(cuGraphExecDestroy(graph) == CUDA_SUCCESS);
                }
                meet(2);
                now = Counts();
                before = i == 2 ? now : before;
            }
            REQUIRE(now.allocations <= before.allocations + 2); // the latest may be on their way
        });
    }
}

} // namespace
