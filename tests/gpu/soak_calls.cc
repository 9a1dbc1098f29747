// SPDX-License-Identifier: Apache-2.0
// Random all-reduces back to back on two GPUs, every result checked on the GPU. Sums of random
// types, sizes, places, algorithms, grids and ways of programmatic launch, on several streams with
// events between them as a program would have; half of the calls live, half in replays of graphs,
// in turn. Prints:
//   soak_calls  <calls>  <captured calls>  <wrong vectors of 16 bytes, over both ranks>  seed=<n>
//
//   soak_calls [--calls=N] [--seconds=N] [--seed=N]   stops at whichever comes first, or at the
//   first
//                                                     section with a wrong result
//
// What the contract of an all-reduce makes equal on all ranks comes from the seed; the streams come
// from the seed and the rank. A thread a rank; they meet only between sections, each with graphs
// and a division of the staging memory of its own.
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "tests/gpu/gpu_pair.h"
#include "tests/gpu/soak_calls.h"
#include "tests/gpu/watchdog.h"

namespace {

using namespace lamprey_gpu;
using Random = std::mt19937_64;
using Clock = std::chrono::steady_clock;

constexpr uint32_t kLanes = 128;
constexpr uint32_t kSlotCells[] = {64, 512, 2048, 2048};
constexpr uint32_t kMostSlotCells = 2048;
constexpr lamprey_element kElements[] = {LAMPREY_BF16, LAMPREY_F16, LAMPREY_F32,
                                         LAMPREY_I32,  LAMPREY_F64, LAMPREY_I8};
constexpr lamprey_algorithm kAlgorithms[] = {LAMPREY_ONE_SHOT, LAMPREY_TWO_SHOT};
constexpr Pdl kPdls[] = {Pdl::off, Pdl::wait, Pdl::wait, Pdl::signal};
constexpr uint64_t kMaxBytes = 256 << 10;
constexpr uint32_t kMostOffset = 15; // elements
constexpr uint64_t kPlaceBytes = kMaxBytes + 256;
constexpr int kStreams = 3;
constexpr int kMostBurst = 4;
constexpr int kGraphs = 4;
constexpr uint64_t kCallsPerStep = 200;
constexpr uint64_t kStepsPerSection = 256;
constexpr int kStepsAhead = 2; // that the host may be: its launches must not fill a queue
constexpr uint32_t kThreads = 128;
constexpr uint32_t kMostCtas = 32;

struct Options {
    uint64_t calls = 10000000;
    uint64_t seconds = 3600;
    uint64_t seed = 1;
};

struct Call {
    AllReduce sum; // all but the buffers
    uint32_t send_offset;
    uint32_t recv_offset;
    bool in_place;
    uint64_t key;
};

Call random_call(Random &random)
{
    Call call = {};
    AllReduce &sum = call.sum;
    sum.element = kElements[random() % 6];
    sum.algorithm = kAlgorithms[random() % 2];
    sum.pdl = kPdls[random() % 4];
    sum.lanes = random() % 2 ? kLanes : 1 + (uint32_t)(random() % kLanes);
    const uint64_t size = lamprey_element_bytes(sum.element);
    sum.count = 1 + random() % (kMaxBytes / size >> random() % 14);
    if (random() % 2) { // whole vectors
        sum.count = lamprey_divide_up(sum.count * size, LAMPREY_VECTOR_BYTES) *
                    (LAMPREY_VECTOR_BYTES / size);
    }
    if (random() % 4 == 0) {
        call.send_offset = (uint32_t)(random() % (kMostOffset + 1));
        call.recv_offset = (uint32_t)(random() % (kMostOffset + 1));
    }
    call.in_place = random() % 4 == 0;
    call.key = random();
    return call;
}

// How the all-reduces of one rank come one after the other, whatever their streams.
struct Order {
    CUevent event; // after the last one
    CUstream stream = nullptr;
};

// What both ranks' threads know.
struct World {
    explicit World(const Options &given)
        : options(given), gpus(kLanes, kMostSlotCells), watchdog("soak_calls", gpus.abort_word()),
          fill(gpus.test_kernel("lamprey_soak_calls_fill")),
          check(gpus.test_kernel("lamprey_soak_calls_check")),
          count_replay(gpus.test_kernel("lamprey_soak_calls_replay"))
    {
        for (lamprey_algorithm algorithm : kAlgorithms) {
            for (lamprey_element element : kElements) {
                gpus.load_all_reduce(algorithm, element);
            }
        }
        pthread_barrier_init(&barrier, nullptr, kRanks);
    }

    const Options options;
    GpuPair gpus;
    Watchdog watchdog;
    CUkernel fill;
    CUkernel check;
    CUkernel count_replay;
    pthread_barrier_t barrier;
    uint64_t mismatches[kRanks] = {};
    bool out_of_time = false; // said by rank 0
};

class Rank {
  public:
    Rank(World &world, int self)
        : world_(world), gpus_(world.gpus), self_(self), shared_(world.options.seed),
          own_(world.options.seed * 1000003 + (uint64_t)self)
    {
        gpus_.use(self);
        for (CUstream &stream : streams_) {
            CHECK_CU(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        }
        for (CUevent *event : {&live_.event, &captured_.event, &fork_, &steps_[0], &steps_[1]}) {
            CHECK_CU(cuEventCreate(event, CU_EVENT_DISABLE_TIMING));
        }
        CHECK_CU(cuMemAlloc(&places_, 2ull * kStreams * kMostBurst * 2 * kPlaceBytes));
        CHECK_CU(cuMemAlloc(&replays_, sizeof(uint32_t)));
        CHECK_CU(cuMemAlloc(&report_, sizeof(soak_calls_report)));
        CHECK_CU(cuMemsetD8(places_, 0xa5, 2ull * kStreams * kMostBurst * 2 * kPlaceBytes));
        CHECK_CU(cuMemsetD8(replays_, 0, sizeof(uint32_t)));
        CHECK_CU(cuMemsetD8(report_, 0, sizeof(soak_calls_report)));
        CHECK_CU(cuCtxSynchronize());
    }

    void run()
    {
        const Clock::time_point start = Clock::now();
        gpus_.use(self_);
        warm_up();
        bool more = true;
        while (more) {
            section();
            if (self_ == 0) {
                world_.out_of_time =
                    Clock::now() - start >= std::chrono::seconds(world_.options.seconds);
            }
            world_.mismatches[self_] = report().mismatches;
            meet();
            more = calls_ < world_.options.calls && !world_.out_of_time &&
                   world_.mismatches[0] + world_.mismatches[1] == 0;
        }
    }

    soak_calls_report report() const
    {
        soak_calls_report report;
        CHECK_CU(cuMemcpyDtoH(&report, report_, sizeof report));
        return report;
    }

    // Whether every replay had data of its own.
    bool replays_counted() const
    {
        uint32_t replays = 0;
        CHECK_CU(cuMemcpyDtoH(&replays, replays_, sizeof replays));
        return replays == (uint32_t)(captured_calls_ / kCallsPerStep) + 1; // and the warm-up
    }

    uint64_t calls() const
    {
        return calls_;
    }

    uint64_t captured_calls() const
    {
        return captured_calls_;
    }

  private:
    // Every kernel's first launch, one after the other on idle GPUs.
    void warm_up()
    {
        launch_replay(streams_[0]);
        for (lamprey_algorithm algorithm : kAlgorithms) {
            for (lamprey_element element : kElements) {
                Call call = random_call(shared_);
                call.sum.element = element;
                call.sum.algorithm = algorithm;
                call.sum.count = 100;
                burst({call}, 0, live_, false);
                synchronize();
            }
        }
        meet();
    }

    void section()
    {
        const uint64_t left = lamprey_divide_up(world_.options.calls - calls_, kCallsPerStep);
        const uint64_t steps = std::min(kStepsPerSection, left + left % 2);
        std::vector<CUgraphExec> graphs;
        gpus_.reset(self_, kSlotCells[shared_() % 4]);
        for (int i = 0; i < kGraphs; i++) {
            graphs.push_back(capture());
        }
        meet();
        for (uint64_t step = 0; step < steps; step++) {
            beat();
            if (step >= kStepsAhead) {
                CHECK_CU(cuEventSynchronize(steps_[step % kStepsAhead]));
            }
            if (step % 2 == 0) {
                issue(live_, false);
            } else {
                replay(graphs[shared_() % kGraphs]);
                captured_calls_ += kCallsPerStep;
            }
            calls_ += kCallsPerStep;
            CHECK_CU(cuEventRecord(steps_[step % kStepsAhead], live_.stream));
        }
        synchronize();
        for (CUgraphExec graph : graphs) {
            CHECK_CU(cuGraphExecDestroy(graph));
        }
        meet();
    }

    CUgraphExec capture()
    {
        const CUstream origin = any_stream();
        CUgraph graph = nullptr;
        CUgraphExec executable = nullptr;
        CHECK_CU(cuStreamBeginCapture(origin, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        launch_replay(origin);
        CHECK_CU(cuEventRecord(fork_, origin));
        for (CUstream stream : streams_) {
            if (stream != origin) {
                CHECK_CU(cuStreamWaitEvent(stream, fork_, CU_EVENT_WAIT_DEFAULT));
            }
        }
        captured_.stream = nullptr;
        issue(captured_, true);
        for (CUstream stream : streams_) {
            if (stream != origin) {
                CHECK_CU(cuEventRecord(fork_, stream));
                CHECK_CU(cuStreamWaitEvent(origin, fork_, CU_EVENT_WAIT_DEFAULT));
            }
        }
        CHECK_CU(cuStreamEndCapture(origin, &graph));
        CHECK_CU(cuGraphInstantiate(&executable, graph, 0));
        CHECK_CU(cuGraphDestroy(graph));
        CHECK_CU(cuGraphUpload(executable, origin));
        CHECK_CU(cuStreamSynchronize(origin));
        return executable;
    }

    // The calls of a step.
    void issue(Order &order, bool captured)
    {
        uint64_t left = kCallsPerStep;
        while (left > 0) {
            std::vector<Call> calls(std::min<uint64_t>(left, 1 + shared_() % kMostBurst));
            for (Call &call : calls) {
                call = random_call(shared_);
            }
            burst(calls, (int)(own_() % kStreams), order, captured);
            left -= calls.size();
        }
    }

    // Calls on one stream with nothing between them.
    void burst(const std::vector<Call> &calls, int stream_index, Order &order, bool captured)
    {
        const CUstream stream = streams_[stream_index];
        const size_t first = ((size_t)captured * kStreams + (size_t)stream_index) * kMostBurst;
        std::vector<AllReduce> sums;
        for (const Call &call : calls) {
            const CUdeviceptr send = places_ + (first + sums.size()) * 2 * kPlaceBytes;
            const CUdeviceptr recv = send + kPlaceBytes;
            AllReduce sum = call.sum;
            sum.send = send + bytes_of(sum.element, call.send_offset);
            sum.recv = call.in_place ? sum.send : recv + bytes_of(sum.element, call.recv_offset);
            sums.push_back(sum);
            launch_test(world_.fill, call, sum, sum.send, stream, captured);
        }
        if (order.stream && order.stream != stream) {
            CHECK_CU(cuStreamWaitEvent(stream, order.event, CU_EVENT_WAIT_DEFAULT));
        }
        for (const AllReduce &sum : sums) {
            gpus_.all_reduce(self_, sum, stream);
        }
        CHECK_CU(cuEventRecord(order.event, stream));
        order.stream = stream;
        for (size_t i = 0; i < calls.size(); i++) {
            launch_test(world_.check, calls[i], sums[i], sums[i].recv, stream, captured);
        }
    }

    void launch_test(CUkernel kernel, const Call &call, const AllReduce &sum, CUdeviceptr message,
                     CUstream stream, bool captured)
    {
        const uint64_t bytes = bytes_of(sum.element, sum.count);
        soak_calls_params params = {};
        params.message = (void *)message;
        params.count = sum.count;
        params.key = call.key;
        params.replays = captured ? (const uint32_t *)replays_ : nullptr;
        params.report = (soak_calls_report *)report_;
        params.vectors = (uint32_t)vectors_of(bytes);
        params.element = sum.element;
        params.rank = (uint32_t)self_;
        params.wide = ((uint64_t)message | bytes) % LAMPREY_VECTOR_BYTES == 0;
        launch(kernel, std::min((params.vectors + kThreads - 1) / kThreads, kMostCtas), kThreads,
               stream, sum.pdl != Pdl::off, &params);
    }

    void launch_replay(CUstream stream)
    {
        soak_calls_replay_params params = {(uint32_t *)replays_};
        launch(world_.count_replay, 1, 1, stream, false, &params);
    }

    void replay(CUgraphExec graph)
    {
        const CUstream stream = any_stream();
        if (live_.stream && live_.stream != stream) {
            CHECK_CU(cuStreamWaitEvent(stream, live_.event, CU_EVENT_WAIT_DEFAULT));
        }
        CHECK_CU(cuGraphLaunch(graph, stream));
        CHECK_CU(cuEventRecord(live_.event, stream));
        live_.stream = stream;
    }

    CUstream any_stream()
    {
        return streams_[own_() % kStreams];
    }

    void synchronize()
    {
        beat();
        for (CUstream stream : streams_) {
            CHECK_CU(cuStreamSynchronize(stream));
        }
    }

    // Both threads.
    void meet()
    {
        beat();
        pthread_barrier_wait(&world_.barrier);
        beat();
    }

    void beat()
    {
        world_.watchdog.alive(self_, calls_);
    }

    World &world_;
    GpuPair &gpus_;
    const int self_;
    Random shared_; // the same on both ranks
    Random own_;
    CUstream streams_[kStreams] = {};
    Order live_ = {};
    Order captured_ = {};
    CUevent fork_ = nullptr;
    CUevent steps_[kStepsAhead] = {};
    CUdeviceptr places_ = 0; // [captured][stream][place in a burst][send, recv]
    CUdeviceptr replays_ = 0;
    CUdeviceptr report_ = 0;
    uint64_t calls_ = 0;
    uint64_t captured_calls_ = 0;
};

void describe(int rank, const soak_calls_report &report)
{
    if (report.mismatches != 0) {
        fprintf(stderr,
                "soak_calls: rank %d: %llu wrong; call with key %016llx, vector %llu: %08x %08x "
                "%08x %08x instead of %08x %08x %08x %08x\n",
                rank, (unsigned long long)report.mismatches, (unsigned long long)report.key,
                (unsigned long long)report.index, report.got[0], report.got[1], report.got[2],
                report.got[3], report.expected[0], report.expected[1], report.expected[2],
                report.expected[3]);
    }
}

bool parse(int argc, char **argv, Options *options)
{
    const struct {
        const char *name;
        uint64_t *value;
    } known[] = {{"--calls=", &options->calls},
                 {"--seconds=", &options->seconds},
                 {"--seed=", &options->seed}};
    for (int i = 1; i < argc; i++) {
        char *end = nullptr;
        for (const auto &option : known) {
            const size_t length = strlen(option.name);
            if (strncmp(argv[i], option.name, length) == 0 && argv[i][length] != '\0') {
                *option.value = strtoull(argv[i] + length, &end, 10);
            }
        }
        if (!end || *end != '\0') {
            fprintf(stderr,
                    "soak_calls: can't use %s; "
                    "usage: soak_calls [--calls=N] [--seconds=N] [--seed=N]\n",
                    argv[i]);
            return false;
        }
    }
    return true;
}

} // namespace

int main(int argc, char **argv)
{
    Options options;
    if (!parse(argc, argv, &options)) {
        return 2;
    }
    World world(options);
    Rank first(world, 0);
    Rank second(world, 1);
    std::thread other([&] { second.run(); });
    first.run();
    other.join();
    bool right = first.calls() > 0;
    for (int rank = 0; rank < kRanks; rank++) {
        const Rank &self = rank == 0 ? first : second;
        world.gpus.use(rank);
        describe(rank, self.report());
        if (!self.replays_counted()) {
            fprintf(stderr, "soak_calls: rank %d: the replays were not counted on the GPU\n", rank);
            right = false;
        }
    }
    const uint64_t mismatches = world.mismatches[0] + world.mismatches[1];
    printf("soak_calls %llu %llu %llu seed=%llu\n", (unsigned long long)first.calls(),
           (unsigned long long)first.captured_calls(), (unsigned long long)mismatches,
           (unsigned long long)options.seed);
    return right && mismatches == 0 ? 0 : 1;
}
