// SPDX-License-Identifier: Apache-2.0
#include "tests/soak_rank.h"

#include <dlfcn.h>
#include <stdlib.h>

#include "plugin/lamprey.h"

namespace soak {
namespace {

lampreyStats stats_of(ncclComm_t comm)
{
    using function = ncclResult_t (*)(ncclComm_t, lampreyStats *);
    static const function get = [] {
        void *library = dlopen(getenv("NCCL_TUNER_PLUGIN"), RTLD_NOW | RTLD_NOLOAD);
        return library ? (function)dlsym(library, "lampreyGetStats") : nullptr;
    }();
    lampreyStats stats = {};
    stats.size = sizeof stats;
    MUST(get && get(comm, &stats) == ncclSuccess);
    return stats;
}

} // namespace

Rank::Rank(World &world, int rank)
    : world_(world), rank_(rank), max_bytes_(settings_of(world.seed).max_bytes),
      local_(world.seed * 1000003 + (uint64_t)rank)
{
    CUdevice device;
    int count = 0;
    MUST(cuInit(0) == CUDA_SUCCESS && cuDeviceGetCount(&count) == CUDA_SUCCESS && count > 0);
    MUST(cuDeviceGet(&device, rank % count) == CUDA_SUCCESS);
    MUST(cuDevicePrimaryCtxRetain(&context_, device) == CUDA_SUCCESS);
    MUST(cuCtxSetCurrent(context_) == CUDA_SUCCESS);
    for (CUstream &stream : streams_) {
        MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
    }
    MUST(cuEventCreate(&fork_, CU_EVENT_DISABLE_TIMING) == CUDA_SUCCESS);
    MUST(cuEventCreate(&join_, CU_EVENT_DISABLE_TIMING) == CUDA_SUCCESS);
    MUST(cuMemAlloc(&send_, kOps * kOpBytes) == CUDA_SUCCESS);
    MUST(cuMemAlloc(&recv_, kOps * kOpBytes) == CUDA_SUCCESS);
}

void Rank::run()
{
    Random shared(world_.seed);
    make_world();
    first_calls({0, 1, 2}, shared() % 2);
    for (phase_ = 0; phase_ < world_.phases; phase_++) {
        const Phase program = random_phase(shared, max_bytes_);
        const uint64_t data = shared();
        fill(program, data);
        int first = 0;
        for (const Segment &segment : program) {
            run_segment(segment, first);
            first += (int)segment.ops.size();
        }
        synchronize();
        check(program, data);
        check_counts();
        replace_a_stream();
        change(random_change(shared));
    }
    for (int comm = kComms - 1; comm >= 0; comm--) {
        destroy(comm, false);
    }
    for (CUgraphExec graph : graphs_) {
        MUST(cuGraphExecDestroy(graph) == CUDA_SUCCESS);
    }
    if (world_.as_processes || rank_ == 0) { // counted by process
        const lampreyStats total = stats_of(nullptr);
        MUST(total.failed == 0);
        __atomic_fetch_add(&world_.served, total.served, __ATOMIC_SEQ_CST);
    }
}

void Rank::meet()
{
    const int ticket = __atomic_fetch_add(&world_.arrived, 1, __ATOMIC_SEQ_CST);
    const int target = (ticket / world_.nranks + 1) * world_.nranks;
    while (__atomic_load_n(&world_.arrived, __ATOMIC_SEQ_CST) < target) {
        usleep(200);
    }
}

std::vector<int> Rank::members(int comm) const
{
    std::vector<int> ranks;
    for (int rank = 0; rank < world_.nranks; rank++) {
        if (comm != 2 || rank % 2 == rank_ % 2) {
            ranks.push_back(rank);
        }
    }
    return ranks;
}

bool Rank::served(const Op &op) const
{
    return op.kind == Kind::all_reduce && op.bytes() <= max_bytes_ && members(op.comm).size() > 1;
}

void Rank::make_world()
{
    meet();
    if (rank_ == 0) {
        MUST(ncclGetUniqueId(&world_.id) == ncclSuccess);
    }
    meet();
    MUST(ncclCommInitRank(&comms_[0], world_.nranks, world_.id, rank_) == ncclSuccess);
    expected_[0] = 0;
    make_child(1);
    make_child(2);
}

void Rank::make_child(int comm)
{
    const int color = comm == 1 ? 0 : rank_ % 2;
    MUST(ncclCommSplit(comms_[0], color, rank_, &comms_[comm], nullptr) == ncclSuccess);
    expected_[comm] = 0;
}

void Rank::destroy(int comm, bool finalize_first)
{
    if (finalize_first) {
        MUST(ncclCommFinalize(comms_[comm]) == ncclSuccess);
    }
    MUST(ncclCommDestroy(comms_[comm]) == ncclSuccess);
    comms_[comm] = nullptr;
}

// The first all-reduce of communicators, captured on some ranks and live on others. Not in the
// random part: with other captured work of the communicator before it, its set-up would overtake
// that work.
void Rank::first_calls(const std::vector<int> &comms, bool grouped)
{
    Segment segment = {grouped, 1, {}};
    for (int comm : comms) {
        segment.ops.push_back(
            {Kind::all_reduce, comm, LAMPREY_REFERENCE_F32, LAMPREY_REFERENCE_SUM, 8, false});
    }
    run_segment(segment, 0);
    synchronize(); // the buffers are the random part's too
    for (int comm : comms) {
        MUST(members(comm).size() == 1 || stats_of(comms_[comm]).communicators_served == 1);
    }
}

void Rank::fill(const Phase &phase, uint64_t data)
{
    MUST(cuMemsetD8(recv_, 0x5a, kOps * kOpBytes) == CUDA_SUCCESS);
    int index = 0;
    for (const Segment &segment : phase) {
        for (const Op &op : segment.ops) {
            const lamprey_test::bytes own = input_of(op, served(op), data, index, rank_);
            MUST(cuMemcpyHtoD(place(op.in_place ? recv_ : send_, index), own.data(), own.size()) ==
                 CUDA_SUCCESS);
            index++;
        }
    }
    MUST(cuCtxSynchronize() == CUDA_SUCCESS);
}

void Rank::check(const Phase &phase, uint64_t data)
{
    int index = 0;
    for (const Segment &segment : phase) {
        for (const Op &op : segment.ops) {
            check_op(op, data, index++);
        }
    }
}

void Rank::check_op(const Op &op, uint64_t data, int index)
{
    std::vector<lamprey_test::bytes> inputs;
    for (int rank : members(op.comm)) {
        inputs.push_back(input_of(op, served(op), data, index, rank));
    }
    const lamprey_test::bytes expected = expected_of(op, inputs);
    lamprey_test::bytes got(expected.size());
    MUST(cuMemcpyDtoH(got.data(), place(recv_, index), got.size()) == CUDA_SUCCESS);
    const bool reduced = op.kind == Kind::all_reduce || op.kind == Kind::scaled_sum;
    if (got == expected ||
        (reduced && !served(op) && same_numbers(op, got.data(), expected.data()))) {
        return;
    }
    const uint64_t at = lamprey_test::first_difference(got.data(), expected.data(), got.size());
    fprintf(stderr,
            "rank %d of %d, phase %d, call %d (kind %d, communicator %d, type %d, operator %d, "
            "count %zu, in place %d): byte %llu is %02x, not %02x\n",
            rank_, world_.nranks, phase_, index, (int)op.kind, op.comm, (int)op.type, (int)op.op,
            op.count, op.in_place, (unsigned long long)at, got[at], expected[at]);
    MUST(!"a right result");
}

void Rank::synchronize()
{
    for (CUstream stream : streams_) {
        MUST(cuStreamSynchronize(stream) == CUDA_SUCCESS);
    }
}

void Rank::check_counts()
{
    for (int comm = 0; comm < kComms; comm++) {
        MUST(members(comm).size() == 1 || stats_of(comms_[comm]).served == expected_[comm]);
    }
}

} // namespace soak
