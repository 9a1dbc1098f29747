// SPDX-License-Identifier: Apache-2.0
// What all-reduces with an epilogue take: bf16, residual add and RMSNorm, quantised outputs, MoE
// finalisation, beside plain all-reduces of the same bytes and alone between the kernels of a
// decode step. One process, two ranks, graphs of 200 calls, random data; results are checked bit
// for bit. Prints, tab-separated, times in us a call over the replays:
//   row  <what>  <one-shot|two-shot>  <tokens>x<hidden>  <wait|signal>  <CTAs>x<threads>
//        <median>  <p1>  <p99>  <wrong rows>
// "decode" is what the call adds to a step: step and call less the step alone.
//
//   row_bench [--quick] [--no-decode] [--replays=N] [--cluster=N] [--calls=N]
//
// cluster: CTAs that may share a row, at most; calls: of a graph. On a machine with one GPU both
// ranks share it, and calls have at most 32 CTAs. --no-decode: nothing but the product's kernels,
// as the emulator has them.
#include <initializer_list>
#include <string>

#include "tests/gpu/decode_step.h"
#include "tests/gpu/row_calls.h"
#include "tests/gpu/watchdog.h"

namespace {

using namespace lamprey_gpu;

constexpr uint32_t kLanes = 128;
constexpr uint32_t kSharedLanes = 32;
constexpr uint32_t kSlotCells = 2048;
constexpr uint32_t kHidden = 8192;
constexpr uint64_t kMostTokens = 1024;
constexpr uint32_t kTopK = 8;
constexpr uint64_t kMostExpertTokens = 64;
constexpr uint64_t kWeightBytes = 16 << 20;

struct Options {
    bool quick = false;
    bool decode = true;
    int replays = 101;
    int calls = 200;
    uint32_t cluster = LAMPREY_MAX_CLUSTER;
};

struct Times {
    double median, p1, p99;
};

Times times_of(std::vector<double> us)
{
    std::sort(us.begin(), us.end());
    const size_t last = us.size() - 1;
    return {us[us.size() / 2], us[last / 100], us[last - last / 100]};
}

class RowBench {
  public:
    explicit RowBench(const Options &options)
        : options_(options), gpus_(kLanes, kSlotCells), watchdog_("row_bench", gpus_.abort_word()),
          lanes_(gpus_.shared() ? kSharedLanes : kLanes),
          rows_(gpus_, lanes_, kSlotCells, kMostTokens * kHidden,
                kMostExpertTokens * kTopK * kHidden, kHidden),
          decode_step_(options.decode ? gpus_.test_kernel("lamprey_decode_step") : nullptr)
    {
        gpus_.load_all_reduce(LAMPREY_ONE_SHOT, LAMPREY_BF16);
        gpus_.load_all_reduce(LAMPREY_TWO_SHOT, LAMPREY_BF16);
        for (int rank = 0; rank < kRanks; rank++) {
            gpus_.use(rank);
            CHECK_CU(cuStreamCreate(&sides_[rank].stream, CU_STREAM_NON_BLOCKING));
            CHECK_CU(cuEventCreate(&sides_[rank].start, CU_EVENT_DEFAULT));
            CHECK_CU(cuEventCreate(&sides_[rank].stop, CU_EVENT_DEFAULT));
            CHECK_CU(cuMemAlloc(&sides_[rank].sum, kMostTokens * kHidden * 2));
            CHECK_CU(cuMemAlloc(&sides_[rank].weights, kWeightBytes));
            CHECK_CU(cuMemsetD8(sides_[rank].weights, 0, kWeightBytes));
            CHECK_CU(cuCtxSynchronize());
        }
    }

    // Whether all results were right.
    bool run()
    {
        printf("# %s\n",
               gpus_.shared() ? "two ranks on one GPU: no figures of the product" : "a GPU a rank");
        for (Pdl pdl : {Pdl::wait, Pdl::signal}) {
            for (const auto &[tokens, hidden] :
                 std::initializer_list<std::pair<uint64_t, uint32_t>>{
                     {1, 4096}, {1, 8192}, {4, 8192}, {16, 8192}, {32, 8192}, {64, 8192}}) {
                run_shape({LAMPREY_ONE_SHOT, tokens, hidden, pdl, LAMPREY_QUANT_NONE, 0,
                           options_.cluster});
            }
        }
        for (lamprey_algorithm algorithm : {LAMPREY_ONE_SHOT, LAMPREY_TWO_SHOT}) {
            RowCall call = {algorithm, kMostTokens, kHidden, Pdl::signal};
            call.most_cluster = options_.cluster;
            plain(call);
            fused("norm", call);
        }
        return right_;
    }

  private:
    struct Side {
        CUstream stream;
        CUevent start;
        CUevent stop;
        CUdeviceptr sum;
        CUdeviceptr weights;
    };

    void run_shape(RowCall call)
    {
        plain(call);
        fused("norm", call);
        if (options_.quick && call.tokens != 16) {
            return;
        }
        const char *const names[] = {"", "fp8", "fp8-token", "fp8-group", "nvfp4"};
        for (int quantisation = 1; quantisation <= LAMPREY_QUANT_NVFP4; quantisation++) {
            call.quantisation = (lamprey_quantisation)quantisation;
            fused(names[quantisation], call);
        }
        call.quantisation = LAMPREY_QUANT_NONE;
        if (call.hidden == kHidden) {
            call.top_k = kTopK;
            fused("moe-finalize", call);
            call.top_k = 0;
        }
        if (options_.decode) {
            decode(call);
        }
    }

    void plain(const RowCall &call)
    {
        const uint64_t count = call.tokens * call.hidden;
        print("plain", call, "-", measure([&](int rank) {
                  const AllReduce all_reduce = {call.algorithm,    LAMPREY_BF16,     count,
                                                rows_.input(rank), sides_[rank].sum, lanes_,
                                                call.pdl};
                  gpus_.all_reduce(rank, all_reduce, sides_[rank].stream);
              }),
              0);
    }

    void fused(const char *what, const RowCall &call)
    {
        for (int rank = 0; rank < kRanks; rank++) {
            gpus_.use(rank);
            rows_.spoil_outputs(rank, call);
        }
        const Times times =
            measure([&](int rank) { rows_.launch(rank, call, sides_[rank].stream); });
        print_checked(what, call, times);
    }

    void decode(const RowCall &call)
    {
        const Times alone = measure([&](int rank) { step(rank, call); });
        for (int rank = 0; rank < kRanks; rank++) {
            gpus_.use(rank);
            rows_.spoil_outputs(rank, call);
        }
        const Times both = measure([&](int rank) {
            step(rank, call);
            rows_.launch(rank, call, sides_[rank].stream);
        });
        print("step", call, "-", alone, 0);
        print_checked("decode", call,
                      {both.median - alone.median, both.p1 - alone.p1, both.p99 - alone.p99});
    }

    void step(int rank, const RowCall &call) const
    {
        decode_step_params params = {};
        params.weights = (const void *)sides_[rank].weights;
        params.weight_vectors = kWeightBytes / 16;
        params.activations = (const void *)rows_.output(rank);
        params.source = (const void *)rows_.source(rank);
        params.output = (void *)rows_.input(rank);
        params.activation_vectors = call.tokens * call.hidden / 8;
        params.signal = call.pdl == Pdl::signal;
        launch(decode_step_, gpus_.shared() ? 33 : 132, 256, sides_[rank].stream,
               call.pdl != Pdl::off, &params);
    }

    void print_checked(const char *what, const RowCall &call, const Times &times)
    {
        uint64_t wrong = 0;
        for (int rank = 0; rank < kRanks; rank++) {
            wrong += rows_.wrong_rows(rank, call);
        }
        const lamprey_row_plan plan = rows_.plan_of(call);
        const std::string grid = std::to_string(plan.clusters) + "*" +
                                 std::to_string(plan.cluster) + "x" + std::to_string(plan.threads);
        print(what, call, grid.c_str(), times, wrong);
    }

    void print(const char *what, const RowCall &call, const char *grid, const Times &times,
               uint64_t wrong)
    {
        printf("row\t%s\t%s\t%llux%u\t%s\t%s\t%.2f\t%.2f\t%.2f\t%llu\n", what,
               call.algorithm == LAMPREY_ONE_SHOT ? "one-shot" : "two-shot",
               (unsigned long long)call.tokens, call.hidden,
               call.pdl == Pdl::signal ? "signal" : "wait", grid, times.median, times.p1, times.p99,
               (unsigned long long)wrong);
        fflush(stdout);
        right_ = right_ && wrong == 0;
    }

    template <class F> CUgraphExec capture(int rank, F call) const
    {
        const CUstream stream = sides_[rank].stream;
        CUgraph graph = nullptr;
        CUgraphExec executable = nullptr;
        gpus_.use(rank);
        CHECK_CU(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        for (int i = 0; i < options_.calls; i++) {
            call(rank);
        }
        CHECK_CU(cuStreamEndCapture(stream, &graph));
        CHECK_CU(cuGraphInstantiate(&executable, graph, 0));
        CHECK_CU(cuGraphUpload(executable, stream));
        CHECK_CU(cuGraphDestroy(graph));
        return executable;
    }

    // call(rank): one launch on the rank's stream. The rank that starts last doesn't wait for the
    // other one at first, so its time is the calls'.
    template <class F> Times measure(F call)
    {
        CUgraphExec graphs[kRanks];
        std::vector<double> us;
        for (int rank = 0; rank < kRanks; rank++) {
            graphs[rank] = capture(rank, call);
        }
        synchronize();
        for (int replay = -5; replay < options_.replays; replay++) {
            for (int rank = 0; rank < kRanks; rank++) {
                gpus_.use(rank);
                CHECK_CU(cuEventRecord(sides_[rank].start, sides_[rank].stream));
                CHECK_CU(cuGraphLaunch(graphs[rank], sides_[rank].stream));
                CHECK_CU(cuEventRecord(sides_[rank].stop, sides_[rank].stream));
            }
            synchronize();
            float ms = 0;
            gpus_.use(kRanks - 1);
            CHECK_CU(cuEventElapsedTime(&ms, sides_[kRanks - 1].start, sides_[kRanks - 1].stop));
            if (replay >= 0) {
                us.push_back((double)ms * 1000 / options_.calls);
            }
        }
        for (int rank = 0; rank < kRanks; rank++) {
            gpus_.use(rank);
            CHECK_CU(cuGraphExecDestroy(graphs[rank]));
        }
        return times_of(us);
    }

    void synchronize()
    {
        for (int rank = 0; rank < kRanks; rank++) {
            watchdog_.alive(rank, ++synchronised_);
            gpus_.use(rank);
            CHECK_CU(cuStreamSynchronize(sides_[rank].stream));
        }
    }

    const Options options_;
    GpuPair gpus_;
    Watchdog watchdog_;
    const uint32_t lanes_;
    RowCalls rows_;
    const CUkernel decode_step_;
    Side sides_[kRanks] = {};
    uint64_t synchronised_ = 0;
    bool right_ = true;
};

bool read_number(const char *argument, const char *name, long least, long most, long *value)
{
    const size_t length = strlen(name);
    char *end = nullptr;
    if (strncmp(argument, name, length) != 0) {
        return false;
    }
    *value = strtol(argument + length, &end, 10);
    if (argument[length] == 0 || *end != 0 || *value < least || *value > most) {
        fprintf(stderr, "row_bench: %s takes a number from %ld to %ld\n", name, least, most);
        exit(2);
    }
    return true;
}

} // namespace

int main(int argc, char **argv)
{
    Options options;
    for (int i = 1; i < argc; i++) {
        long value = 0;
        if (strcmp(argv[i], "--quick") == 0) {
            options.quick = true;
        } else if (strcmp(argv[i], "--no-decode") == 0) {
            options.decode = false;
        } else if (read_number(argv[i], "--replays=", 1, 1000000, &value)) {
            options.replays = (int)value;
        } else if (read_number(argv[i], "--calls=", 1, 10000, &value)) {
            options.calls = (int)value;
        } else if (read_number(argv[i], "--cluster=", 1, LAMPREY_MAX_CLUSTER, &value)) {
            options.cluster = (uint32_t)value;
        } else {
            fprintf(stderr, "row_bench: unknown option %s\n", argv[i]);
            return 2;
        }
    }
    return RowBench(options).run() ? 0 : 1;
}
