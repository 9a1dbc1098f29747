// SPDX-License-Identifier: Apache-2.0
// How a rank issues its calls: live or captured, alone or in groups, on whatever streams.
#include <algorithm>

#include "tests/soak_rank.h"

namespace soak {

CUstream Rank::any_stream()
{
    return streams_[local_() % kStreams];
}

CUdeviceptr Rank::place(CUdeviceptr base, int index) const
{
    return base + (size_t)index * kOpBytes;
}

void Rank::issue(const Op &op, int index, CUstream stream)
{
    const ncclDataType_t type = nccl_type(op.type);
    void *send = (void *)place(op.in_place ? recv_ : send_, index);
    void *recv = (void *)place(recv_, index);
    ncclComm_t comm = comms_[op.comm];
    cudaStream_t where = (cudaStream_t)stream;
    ncclResult_t result = ncclSuccess;
    switch (op.kind) {
    case Kind::all_reduce:
        result = ncclAllReduce(send, recv, op.count, type, nccl_op(op.op), comm, where);
        expected_[op.comm] += served(op);
        break;
    case Kind::scaled_sum: {
        ncclRedOp_t scaled;
        float scale = kScale;
        MUST(ncclRedOpCreatePreMulSum(&scaled, &scale, type, ncclScalarHostImmediate, comm) ==
             ncclSuccess);
        result = ncclAllReduce(send, recv, op.count, type, scaled, comm, where);
        MUST(ncclRedOpDestroy(scaled, comm) == ncclSuccess);
        break;
    }
    case Kind::all_gather:
        result = ncclAllGather(send, recv, op.count, type, comm, where);
        break;
    case Kind::broadcast:
        result = ncclBroadcast(send, recv, op.count, type, 0, comm, where);
        break;
    }
    if (result != ncclSuccess) {
        fprintf(stderr, "%s: %s\n", ncclGetErrorString(result), ncclGetLastError(comm));
    }
    MUST(result == ncclSuccess);
    __atomic_fetch_add(&world_.calls, 1, __ATOMIC_RELAXED);
}

void Rank::issue_group(const Segment &segment, int first, CUstream only)
{
    // The order of the communicators is this rank's own where each has its stream; on one stream,
    // an order of its own would be a deadlock with NCCL alone. The order of one communicator's
    // calls is always the program's.
    int order[kComms] = {0, 1, 2};
    const uint64_t turn = local_();
    const bool nested = local_() % 4 == 0;
    if (!only) {
        std::shuffle(std::begin(order), std::end(order), local_);
    }
    MUST(ncclGroupStart() == ncclSuccess);
    for (int comm : order) {
        MUST(!nested || ncclGroupStart() == ncclSuccess);
        for (size_t i = 0; i < segment.ops.size(); i++) {
            if (segment.ops[i].comm == comm) {
                issue(segment.ops[i], first + (int)i,
                      only ? only : streams_[(turn + (uint64_t)comm) % kStreams]);
            }
        }
        MUST(!nested || ncclGroupEnd() == ncclSuccess);
    }
    MUST(ncclGroupEnd() == ncclSuccess);
}

// On either of two streams in a capture (both may be the same), on any live.
void Rank::issue_ungrouped(const Segment &segment, int first, CUstream one, CUstream other)
{
    for (size_t i = 0; i < segment.ops.size(); i++) {
        const bool alone = local_() % 4 == 0;
        MUST(!alone || ncclGroupStart() == ncclSuccess);
        issue(segment.ops[i], first + (int)i, !one ? any_stream() : local_() % 2 ? one : other);
        MUST(!alone || ncclGroupEnd() == ncclSuccess);
    }
}

// A capture over two streams.
void Rank::issue_forked(const Segment &segment, int first, CUstream stream)
{
    CUstream other = any_stream();
    if (other == stream) {
        issue_ungrouped(segment, first, stream, stream);
        return;
    }
    MUST(cuEventRecord(fork_, stream) == CUDA_SUCCESS);
    MUST(cuStreamWaitEvent(other, fork_, 0) == CUDA_SUCCESS);
    issue_ungrouped(segment, first, stream, other);
    MUST(cuEventRecord(join_, other) == CUDA_SUCCESS);
    MUST(cuStreamWaitEvent(stream, join_, 0) == CUDA_SUCCESS);
}

void Rank::run_segment(const Segment &segment, int first)
{
    if (local_() % 2) {
        capture(segment, first);
        return;
    }
    for (int i = 0; i < segment.repeats; i++) {
        if (segment.grouped) {
            issue_group(segment, first, nullptr);
        } else {
            issue_ungrouped(segment, first, nullptr, nullptr);
        }
    }
}

// Instantiated as it is, cloned or as another one's child, or in the place of the latest one.
CUgraphExec Rank::executable_of(CUgraph graph)
{
    CUgraphExec executable = nullptr;
    CUgraphExecUpdateResultInfo info = {};
    CUgraph copy = nullptr;
    CUgraphNode child = nullptr;
    switch (local_() % 4) {
    case 0:
        MUST(cuGraphClone(&copy, graph) == CUDA_SUCCESS);
        break;
    case 1:
        MUST(cuGraphCreate(&copy, 0) == CUDA_SUCCESS);
        MUST(cuGraphAddChildGraphNode(&child, copy, nullptr, 0, graph) == CUDA_SUCCESS);
        break;
    case 2:
        if (!graphs_.empty() && cuGraphExecUpdate(graphs_.back(), graph, &info) == CUDA_SUCCESS) {
            MUST(cuGraphDestroy(graph) == CUDA_SUCCESS);
            return graphs_.back();
        }
        break;
    default:
        break;
    }
    MUST(cuGraphInstantiate(&executable, copy ? copy : graph, 0) == CUDA_SUCCESS);
    MUST(!copy || cuGraphDestroy(copy) == CUDA_SUCCESS);
    MUST(cuGraphDestroy(graph) == CUDA_SUCCESS);
    graphs_.push_back(executable);
    return executable;
}

void Rank::capture(const Segment &segment, int first)
{
    static const CUstreamCaptureMode modes[] = {CU_STREAM_CAPTURE_MODE_RELAXED,
                                                CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                                                CU_STREAM_CAPTURE_MODE_GLOBAL};
    CUgraph graph = nullptr;
    CUstream stream = any_stream();
    // Global mode forbids things to every thread of the process.
    const CUstreamCaptureMode mode = modes[local_() % (world_.as_processes ? 3 : 2)];
    MUST(cuStreamBeginCapture(stream, mode) == CUDA_SUCCESS);
    if (segment.grouped) {
        issue_group(segment, first, stream);
    } else {
        issue_forked(segment, first, stream);
    }
    MUST(cuStreamEndCapture(stream, &graph) == CUDA_SUCCESS);
    const CUgraphExec executable = executable_of(graph);
    for (int i = 0; i < segment.repeats; i++) {
        MUST(cuGraphLaunch(executable, any_stream()) == CUDA_SUCCESS);
    }
    if (graphs_.size() > 4 && local_() % 2) { // perhaps still running
        MUST(cuGraphExecDestroy(graphs_.front()) == CUDA_SUCCESS);
        graphs_.erase(graphs_.begin());
    }
}

} // namespace soak
