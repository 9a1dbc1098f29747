// SPDX-License-Identifier: Apache-2.0
// Random NCCL programs with the plugin, every result checked bit for bit. A seed makes a program; a
// failing one is printed and reproduces with LAMPREY_TEST_SEED. LAMPREY_TEST_SECONDS makes it run
// longer.
//
// What NCCL requires to be equal on all ranks comes from the seed; what it leaves to each rank
// (streams, capturing or not, a group around a single call, the order of communicators in a group)
// comes from the seed and the rank.
#include <cuda.h>
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <nccl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "plugin/lamprey.h"
#include "tests/reference.h"

namespace {

using lamprey_test::data_kind;
using lamprey_test::element_type;

constexpr int kComms = 3; // the whole world; the same again by split; the halves
constexpr int kStreams = 3;
constexpr int kOps = 10; // most a phase has; each has buffers of its own
constexpr size_t kOpBytes = 3 << 20;
constexpr int kDeadlineSeconds = 120;

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: seed %llu: %s doesn't hold\n", __FILE__, __LINE__,             \
                    (unsigned long long)current_seed, #condition);                                 \
            _exit(3);                                                                              \
        }                                                                                          \
    } while (0)

uint64_t current_seed;

enum class Kind { all_reduce, all_gather, broadcast };

struct Op {
    Kind kind;
    int comm;
    element_type type;
    size_t count;
    bool in_place; // all-reduce only; never replayed, since that would change its input
};

struct Segment {
    bool grouped;
    int repeats; // a rank either captures the segment and replays it, or issues it as often
    std::vector<Op> ops;
};

using Phase = std::vector<Segment>;

size_t random_count(std::mt19937_64 &random, element_type type)
{
    const size_t most = kOpBytes / lamprey_test::bytes_of(type);
    switch (random() % 8) {
    case 0:
        return 1 + random() % 9;
    case 1: // beyond every limit
        return most - random() % 1000;
    default:
        return 1 + random() % 20000;
    }
}

Phase make_phase(std::mt19937_64 &random)
{
    Phase phase;
    int left = 1 + (int)(random() % kOps);
    while (left > 0) {
        Segment segment;
        const int size = 1 + (int)(random() % (uint64_t)left);
        segment.grouped = random() % 3 == 0;
        segment.repeats = random() % 3 == 0 ? 1 + (int)(random() % 4) : 1;
        for (int i = 0; i < size; i++) {
            Op op;
            op.kind = random() % 6 == 0   ? Kind::all_gather
                      : random() % 8 == 0 ? Kind::broadcast
                                          : Kind::all_reduce;
            op.comm = (int)(random() % kComms);
            op.type = (element_type)(random() % 3);
            op.count =
                op.kind == Kind::all_reduce ? random_count(random, op.type) : 1 + random() % 5000;
            op.in_place = op.kind == Kind::all_reduce && segment.repeats == 1 && random() % 4 == 0;
            segment.ops.push_back(op);
        }
        left -= size;
        phase.push_back(segment);
    }
    return phase;
}

struct World {
    int nranks;
    uint64_t seed;
    int phases;
    ncclUniqueId id;

    explicit World(int nranks_, uint64_t seed_, int phases_)
        : nranks(nranks_), seed(seed_), phases(phases_)
    {
    }
};

lampreyStats stats_of(ncclComm_t comm)
{
    void *library = dlopen(getenv("NCCL_TUNER_PLUGIN"), RTLD_NOW | RTLD_NOLOAD);
    auto get = library
                   ? (ncclResult_t(*)(ncclComm_t, lampreyStats *))dlsym(library, "lampreyGetStats")
                   : nullptr;
    lampreyStats stats = {};
    stats.size = sizeof stats;
    MUST(get && get(comm, &stats) == ncclSuccess);
    return stats;
}

class Rank {
  public:
    Rank(World &world, int rank)
        : world_(world), rank_(rank), local_(world.seed * 1000003 + (uint64_t)rank)
    {
        CUdevice device;
        MUST(cuInit(0) == CUDA_SUCCESS && cuDeviceGet(&device, rank) == CUDA_SUCCESS);
        MUST(cuDevicePrimaryCtxRetain(&context_, device) == CUDA_SUCCESS);
        MUST(cuCtxSetCurrent(context_) == CUDA_SUCCESS);
        for (CUstream &stream : streams_) {
            MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
        }
        MUST(cuMemAlloc(&send_, kOps * kOpBytes) == CUDA_SUCCESS);
        MUST(cuMemAlloc(&recv_, kOps * kOpBytes) == CUDA_SUCCESS);
        MUST(ncclCommInitRank(&comms_[0], world.nranks, world.id, rank) == ncclSuccess);
        MUST(ncclCommSplit(comms_[0], 0, rank, &comms_[1], nullptr) == ncclSuccess);
        MUST(ncclCommSplit(comms_[0], rank % 2, rank, &comms_[2], nullptr) == ncclSuccess);
    }

    // The first all-reduce of every communicator. Not in the random part: were it captured on one
    // rank and live on another, with other captured work of the communicator before it, its set-up
    // would overtake that work there.
    void set_up(bool grouped)
    {
        int order[kComms] = {0, 1, 2};
        if (grouped) {
            std::shuffle(std::begin(order), std::end(order), local_);
            MUST(ncclGroupStart() == ncclSuccess);
        }
        for (int comm : order) {
            MUST(ncclAllReduce((void *)place(send_, comm), (void *)place(recv_, comm), 8,
                               ncclFloat32, ncclSum, comms_[comm],
                               (cudaStream_t)any_stream()) == ncclSuccess);
        }
        if (grouped) {
            MUST(ncclGroupEnd() == ncclSuccess);
        }
        synchronize(); // the buffers are the random part's too
        for (int comm = 0; comm < kComms; comm++) {
            MUST(members(comm).size() == 1 || stats_of(comms_[comm]).communicators_served == 1);
        }
    }

    void run()
    {
        std::mt19937_64 shared(world_.seed);
        set_up(shared() % 2);
        for (int phase = 0; phase < world_.phases; phase++) {
            const Phase program = make_phase(shared);
            phase_ = phase;
            const uint64_t data = shared();
            fill(program, data);
            int first = 0;
            for (const Segment &segment : program) {
                run_segment(segment, first);
                first += (int)segment.ops.size();
            }
            synchronize();
            check(program, data);
            replace_a_stream();
        }
        for (int comm = kComms - 1; comm >= 0; comm--) {
            MUST(ncclCommDestroy(comms_[comm]) == ncclSuccess);
        }
        for (CUgraphExec graph : graphs_) {
            MUST(cuGraphExecDestroy(graph) == CUDA_SUCCESS);
        }
    }

  private:
    std::vector<int> members(int comm) const
    {
        std::vector<int> ranks;
        for (int rank = 0; rank < world_.nranks; rank++) {
            if (comm != 2 || rank % 2 == rank_ % 2) {
                ranks.push_back(rank);
            }
        }
        return ranks;
    }

    static std::vector<uint8_t> input(const Op &op, uint64_t data, int index, int rank)
    {
        const data_kind kind = data % 3 ? data_kind::any_bits : data_kind::numbers;
        return lamprey_test::make_data(op.type, op.count, kind,
                                       data + (uint64_t)(index * 64 + rank));
    }

    CUdeviceptr place(CUdeviceptr base, int index) const
    {
        return base + (size_t)index * kOpBytes;
    }

    void fill(const Phase &phase, uint64_t data)
    {
        MUST(cuMemsetD8(recv_, 0x5a, kOps * kOpBytes) == CUDA_SUCCESS);
        int index = 0;
        for (const Segment &segment : phase) {
            for (const Op &op : segment.ops) {
                const std::vector<uint8_t> own = input(op, data, index, rank_);
                MUST(cuMemcpyHtoD(place(op.in_place ? recv_ : send_, index), own.data(),
                                  own.size()) == CUDA_SUCCESS);
                index++;
            }
        }
        MUST(cuCtxSynchronize() == CUDA_SUCCESS);
    }

    void issue(const Op &op, int index, CUstream stream)
    {
        static const ncclDataType_t types[] = {ncclFloat16, ncclBfloat16, ncclFloat32};
        const ncclDataType_t type = types[(int)op.type];
        void *send = (void *)place(op.in_place ? recv_ : send_, index);
        void *recv = (void *)place(recv_, index);
        ncclComm_t comm = comms_[op.comm];
        cudaStream_t where = (cudaStream_t)stream;
        ncclResult_t result = ncclSuccess;
        switch (op.kind) {
        case Kind::all_reduce:
            result = ncclAllReduce(send, recv, op.count, type, ncclSum, comm, where);
            break;
        case Kind::all_gather:
            result = ncclAllGather(send, recv, op.count, type, comm, where);
            break;
        case Kind::broadcast:
            result = ncclBroadcast(send, recv, op.count, type, 0, comm, where);
            break;
        }
        MUST(result == ncclSuccess);
    }

    CUstream any_stream()
    {
        return streams_[local_() % kStreams];
    }

    void issue_group(const Segment &segment, int first, CUstream only)
    {
        // The order of the communicators is this rank's own where each has its stream; on one
        // stream, an order of its own would be a deadlock with NCCL alone. The order of one
        // communicator's calls is always the program's.
        int order[kComms] = {0, 1, 2};
        const uint64_t turn = local_();
        if (!only) {
            std::shuffle(std::begin(order), std::end(order), local_);
        }
        MUST(ncclGroupStart() == ncclSuccess);
        for (int comm : order) {
            for (size_t i = 0; i < segment.ops.size(); i++) {
                if (segment.ops[i].comm == comm) {
                    issue(segment.ops[i], first + (int)i,
                          only ? only : streams_[(turn + (uint64_t)comm) % kStreams]);
                }
            }
        }
        MUST(ncclGroupEnd() == ncclSuccess);
    }

    void issue_once(const Segment &segment, int first, CUstream only)
    {
        if (segment.grouped) {
            issue_group(segment, first, only);
            return;
        }
        for (size_t i = 0; i < segment.ops.size(); i++) {
            const bool alone = local_() % 4 == 0;
            if (alone) {
                MUST(ncclGroupStart() == ncclSuccess);
            }
            issue(segment.ops[i], first + (int)i, only ? only : any_stream());
            if (alone) {
                MUST(ncclGroupEnd() == ncclSuccess);
            }
        }
    }

    void run_segment(const Segment &segment, int first)
    {
        static const CUstreamCaptureMode modes[] = {CU_STREAM_CAPTURE_MODE_GLOBAL,
                                                    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                                                    CU_STREAM_CAPTURE_MODE_RELAXED};
        if (local_() % 2 == 0) {
            for (int i = 0; i < segment.repeats; i++) {
                issue_once(segment, first, nullptr);
            }
            return;
        }
        CUgraph graph = nullptr;
        CUgraphExec executable = nullptr;
        CUstream stream = any_stream();
        // Global mode forbids things to every thread, and the other ranks are threads here.
        MUST(cuStreamBeginCapture(stream, modes[1 + local_() % 2]) == CUDA_SUCCESS);
        issue_once(segment, first, stream);
        MUST(cuStreamEndCapture(stream, &graph) == CUDA_SUCCESS);
        MUST(cuGraphInstantiate(&executable, graph, 0) == CUDA_SUCCESS);
        MUST(cuGraphDestroy(graph) == CUDA_SUCCESS);
        for (int i = 0; i < segment.repeats; i++) {
            MUST(cuGraphLaunch(executable, any_stream()) == CUDA_SUCCESS);
        }
        graphs_.push_back(executable);
    }

    void check(const Phase &phase, uint64_t data)
    {
        int index = 0;
        for (const Segment &segment : phase) {
            for (const Op &op : segment.ops) {
                check_op(op, data, index++);
            }
        }
    }

    void check_op(const Op &op, uint64_t data, int index)
    {
        std::vector<std::vector<uint8_t>> inputs;
        for (int rank : members(op.comm)) {
            inputs.push_back(input(op, data, index, rank));
        }
        std::vector<uint8_t> expected;
        switch (op.kind) {
        case Kind::all_reduce:
            // NCCL keeps a lone rank's bits as they are.
            expected =
                inputs.size() == 1 ? inputs[0] : lamprey_test::all_reduce_sum(op.type, inputs);
            break;
        case Kind::all_gather:
            for (const std::vector<uint8_t> &part : inputs) {
                expected.insert(expected.end(), part.begin(), part.end());
            }
            break;
        case Kind::broadcast:
            expected = inputs[0];
            break;
        }
        std::vector<uint8_t> got(expected.size());
        MUST(cuMemcpyDtoH(got.data(), place(recv_, index), got.size()) == CUDA_SUCCESS);
        compare(op, index, got, expected);
    }

    static bool same_numbers(const Op &op, const std::vector<uint8_t> &got,
                             const std::vector<uint8_t> &expected)
    {
        for (size_t i = 0; i < op.count; i++) {
            const float a = lamprey_reference_load(op.type, got.data(), i);
            const float b = lamprey_reference_load(op.type, expected.data(), i);
            if (a != b && !(a != a && b != b)) {
                return false;
            }
        }
        return true;
    }

    // The emulator's NCCL sums as the plugin does, but its NaNs may have other payloads.
    void compare(const Op &op, int index, const std::vector<uint8_t> &got,
                 const std::vector<uint8_t> &expected) const
    {
        if (memcmp(got.data(), expected.data(), got.size()) == 0) {
            return;
        }
        if (op.kind == Kind::all_reduce && op.count * lamprey_test::bytes_of(op.type) > 256 << 10 &&
            same_numbers(op, got, expected)) {
            return;
        }
        const uint64_t at = lamprey_test::first_difference(got.data(), expected.data(), got.size());
        fprintf(
            stderr,
            "rank %d, phase %d, call %d (kind %d, communicator %d, type %d, count %zu, in place "
            "%d): byte %llu is %02x, not %02x\n",
            rank_, phase_, index, (int)op.kind, op.comm, (int)op.type, op.count, op.in_place,
            (unsigned long long)at, got[at], expected[at]);
        MUST(!"a right result");
    }

    void synchronize()
    {
        for (CUstream stream : streams_) {
            MUST(cuStreamSynchronize(stream) == CUDA_SUCCESS);
        }
    }

    void replace_a_stream()
    {
        CUstream &stream = streams_[local_() % kStreams];
        MUST(cuStreamDestroy(stream) == CUDA_SUCCESS);
        MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
    }

    World &world_;
    int rank_;
    int phase_ = 0;
    std::mt19937_64 local_;
    CUcontext context_ = nullptr;
    CUstream streams_[kStreams] = {};
    CUdeviceptr send_ = 0;
    CUdeviceptr recv_ = 0;
    ncclComm_t comms_[kComms] = {};
    std::vector<CUgraphExec> graphs_;
};

// In a process of its own, so that a seed starts from nothing and a hang can be ended.
void run_seed(int nranks, uint64_t seed, int phases)
{
    SCOPED_TRACE("seed " + std::to_string(seed) + ", " + std::to_string(nranks) + " ranks");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(kDeadlineSeconds);
        current_seed = seed;
        World world(nranks, seed, phases);
        MUST(ncclGetUniqueId(&world.id) == ncclSuccess);
        std::vector<std::thread> ranks;
        for (int rank = 0; rank < nranks; rank++) {
            ranks.emplace_back([&world, rank] { Rank(world, rank).run(); });
        }
        for (std::thread &rank : ranks) {
            rank.join();
        }
        MUST(stats_of(nullptr).served > 0 && stats_of(nullptr).failed == 0);
        _exit(0);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_FALSE(WIFSIGNALED(status)) << "ended by signal " << WTERMSIG(status)
                                      << (WTERMSIG(status) == SIGALRM ? ": it hangs" : "");
    ASSERT_EQ(WEXITSTATUS(status), 0);
}

TEST(Soak, RandomProgramsGiveTheRightBits)
{
    char here[4096];
    ASSERT_NE(getcwd(here, sizeof here), nullptr);
    const char *scratch = getenv("TEST_TMPDIR");
    const std::string folder = std::string(scratch ? scratch : ".") + "/soak";
    mkdir(folder.c_str(), 0755);
    ASSERT_EQ(
        system(("cp -Lf plugin/liblamprey.so topology/liblamprey-topology.so " + folder).c_str()),
        0);
    setenv("NCCL_TUNER_PLUGIN", (folder + "/liblamprey.so").c_str(), 1);
    setenv("LAMPREY_TOPOLOGY", (std::string(here) + "/tests/fixtures/emulator-8.xml").c_str(), 1);
    setenv("LAMPREY_EMULATOR_GPUS", "8", 1);

    const char *seed = getenv("LAMPREY_TEST_SEED");
    const char *seconds = getenv("LAMPREY_TEST_SECONDS");
    if (seed) {
        for (int nranks : {2, 3, 4, 6}) {
            run_seed(nranks, strtoull(seed, nullptr, 10), 12);
        }
        return;
    }
    const auto end =
        std::chrono::steady_clock::now() + std::chrono::seconds(seconds ? atoi(seconds) : 20);
    const int worlds[] = {2, 4, 3, 2, 6};
    for (uint64_t i = 1; std::chrono::steady_clock::now() < end && !HasFatalFailure(); i++) {
        run_seed(worlds[i % 5], i, 12);
    }
}

} // namespace
