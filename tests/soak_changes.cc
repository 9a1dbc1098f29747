// SPDX-License-Identifier: Apache-2.0
// What happens to a rank's streams and communicators between the phases.
#include <algorithm>
#include <thread>

#include "tests/soak_rank.h"

namespace soak {

void Rank::replace_a_stream()
{
    CUstream &stream = streams_[local_() % kStreams];
    MUST(cuStreamDestroy(stream) == CUDA_SUCCESS);
    MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
}

void Rank::change(const Change &change)
{
    if (rank_ == 0) {
        world_.changes[(int)change.event]++;
    }
    switch (change.event) {
    case Event::none:
        return;
    case Event::remake_child:
        destroy(change.comm, change.finalize_first);
        make_child(change.comm);
        break;
    case Event::remake_world:
        remake_world(change.finalize_first);
        return;
    case Event::abort_child:
        abort_child(change);
        break;
    case Event::revoke_child:
        revoke_child(change);
        break;
    }
    first_calls({change.comm}, change.way % 2);
}

void Rank::remake_world(bool finalize_first)
{
    int order[kComms] = {0, 1, 2};
    std::shuffle(std::begin(order), std::end(order), Random(world_.seed + (uint64_t)phase_));
    for (int comm : order) {
        destroy(comm, finalize_first);
    }
    make_world();
    first_calls({2, 0, 1}, finalize_first);
}

// One rank doesn't come to a call; another thread of the others ends it.
void Rank::abort_child(const Change &change)
{
    if (change.fresh) { // its first call: the others are stuck in the set-up
        destroy(change.comm, false);
        make_child(change.comm);
    }
    const std::vector<int> ranks = members(change.comm);
    const bool victim = ranks[(size_t)change.victim % ranks.size()] == rank_;
    if (victim || ranks.size() == 1) {
        meet();
        MUST(ncclCommAbort(comms_[change.comm]) == ncclSuccess);
    } else {
        get_stuck(change.comm, change.way, change.fresh);
        meet();
    }
    meet();
    make_child(change.comm);
}

void Rank::get_stuck(int comm, int way, bool fresh)
{
    CUstream stream = any_stream();
    CUgraph graph = nullptr;
    CUgraphExec executable = nullptr;
    auto call = [&] {
        return ncclAllReduce((void *)send_, (void *)recv_, 100, ncclBfloat16, ncclSum, comms_[comm],
                             (cudaStream_t)stream);
    };
    std::thread aborter;
    auto abort_soon = [&] {
        aborter = std::thread([&] {
            MUST(cuCtxSetCurrent(context_) == CUDA_SUCCESS);
            usleep(20000);
            MUST(ncclCommAbort(comms_[comm]) == ncclSuccess);
        });
    };
    if (fresh) { // blocks until the abort
        abort_soon();
        if (way % 2) {
            MUST(ncclGroupStart() == ncclSuccess && call() == ncclSuccess);
            MUST(ncclGroupEnd() != ncclSuccess);
        } else {
            MUST(call() != ncclSuccess);
        }
    } else if (way == 0) {
        MUST(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED) == CUDA_SUCCESS);
        MUST(call() == ncclSuccess);
        MUST(cuStreamEndCapture(stream, &graph) == CUDA_SUCCESS);
        MUST(cuGraphInstantiate(&executable, graph, 0) == CUDA_SUCCESS);
        MUST(cuGraphDestroy(graph) == CUDA_SUCCESS);
        MUST(cuGraphLaunch(executable, stream) == CUDA_SUCCESS);
        graphs_.push_back(executable);
    } else if (way == 1) {
        MUST(ncclAllGather((void *)send_, (void *)recv_, 100, ncclInt8, comms_[comm],
                           (cudaStream_t)stream) == ncclSuccess);
        MUST(call() == ncclSuccess);
    } else {
        MUST(ncclGroupStart() == ncclSuccess && call() == ncclSuccess && call() == ncclSuccess);
        MUST(ncclGroupEnd() == ncclSuccess);
    }
    if (!fresh) {
        abort_soon();
    }
    aborter.join();
    MUST(cuStreamSynchronize(stream) == CUDA_SUCCESS);
}

void Rank::revoke_child(const Change &change)
{
    ncclComm_t comm = comms_[change.comm];
    meet(); // nobody's work is in flight
    MUST(ncclCommRevoke(comm, 0) == ncclSuccess);
    MUST(ncclAllReduce((void *)send_, (void *)recv_, 8, ncclFloat32, ncclSum, comm,
                       (cudaStream_t)any_stream()) == ncclInvalidUsage);
    MUST(ncclCommDestroy(comm) == ncclSuccess);
    make_child(change.comm);
}

} // namespace soak
