// SPDX-License-Identifier: Apache-2.0
// Whether a kernel behind an all-reduce on the stream can see an output that isn't there yet. On
// each of two GPUs one stream, all kernels with programmatic stream serialization: a producer of
// the input, the all-reduce, a consumer that reads the output before its own wait, one that reads
// after it; round after round in graphs. With LAMPREY_PDL=wait the all-reduce never lets the next
// kernel start early, so both must see the round's sums; with `signal` the first must not, or this
// test couldn't see anything. Prints for each mode and size:
//   pdl_order  <wait|signal>  <rounds>  <wrong before the wait>  <wrong after it>  bytes=<n>
// counted in vectors of 16 bytes over both ranks.
//
//   pdl_order [--rounds=N]   of the first size, a fifth of the others (default 1000000)
#include <initializer_list>

#include "tests/gpu/gpu_pair.h"
#include "tests/gpu/pdl_order.h"
#include "tests/gpu/watchdog.h"

namespace {

using namespace lamprey_gpu;

constexpr uint32_t kLanes = 128;
constexpr uint32_t kSlotCells = 2048;
constexpr uint64_t kSizes[] = {1 << 10, 64 << 10};
constexpr uint64_t kMaxBytes = 64 << 10;
constexpr uint64_t kRoundsPerGraph = 100;
constexpr uint64_t kReplaysPerSynchronisation = 20;
constexpr uint32_t kThreads = 128;

struct Side {
    CUstream stream;
    CUdeviceptr send;
    CUdeviceptr recv;
    CUdeviceptr round;
    CUdeviceptr counts;
};

class PdlOrder {
  public:
    PdlOrder()
        : gpus_(kLanes, kSlotCells), watchdog_("pdl_order", gpus_.abort_word()),
          produce_(gpus_.test_kernel("lamprey_pdl_order_produce")),
          consume_early_(gpus_.test_kernel("lamprey_pdl_order_consume_early")),
          consume_(gpus_.test_kernel("lamprey_pdl_order_consume"))
    {
        gpus_.load_all_reduce(LAMPREY_ONE_SHOT, LAMPREY_BF16);
        for (int rank = 0; rank < kRanks; rank++) {
            Side &side = sides_[rank];
            gpus_.use(rank);
            CHECK_CU(cuStreamCreate(&side.stream, CU_STREAM_NON_BLOCKING));
            CHECK_CU(cuMemAlloc(&side.send, kMaxBytes));
            CHECK_CU(cuMemAlloc(&side.recv, kMaxBytes));
            CHECK_CU(cuMemAlloc(&side.round, sizeof(uint32_t)));
            CHECK_CU(cuMemAlloc(&side.counts, sizeof(pdl_order_counts)));
            CHECK_CU(cuMemsetD8(side.recv, 0xff, kMaxBytes));
            CHECK_CU(cuMemsetD8(side.round, 0, sizeof(uint32_t)));
            CHECK_CU(cuCtxSynchronize());
        }
    }

    // Whether all is as it must be.
    bool run(Pdl pdl, uint64_t bytes, uint64_t rounds)
    {
        const uint64_t replays = (rounds + kRoundsPerGraph - 1) / kRoundsPerGraph;
        CUgraphExec graphs[kRanks];
        warm_up(pdl, bytes);
        clear_counts();
        for (int rank = 0; rank < kRanks; rank++) {
            graphs[rank] = capture(rank, pdl, bytes);
        }
        for (uint64_t replay = 0; replay < replays; replay++) {
            for (int rank = 0; rank < kRanks; rank++) {
                gpus_.use(rank);
                CHECK_CU(cuGraphLaunch(graphs[rank], sides_[rank].stream));
            }
            if (replay % kReplaysPerSynchronisation == 0) {
                synchronize();
            }
        }
        synchronize();
        for (int rank = 0; rank < kRanks; rank++) {
            gpus_.use(rank);
            CHECK_CU(cuGraphExecDestroy(graphs[rank]));
        }
        return judge(pdl, bytes, replays * kRoundsPerGraph);
    }

  private:
    void clear_counts()
    {
        for (int rank = 0; rank < kRanks; rank++) {
            gpus_.use(rank);
            CHECK_CU(cuMemsetD8(sides_[rank].counts, 0, sizeof(pdl_order_counts)));
            CHECK_CU(cuCtxSynchronize());
        }
    }

    // Every kernel's first launch, while nothing else runs.
    void warm_up(Pdl pdl, uint64_t bytes)
    {
        for (int rank = 0; rank < kRanks; rank++) {
            gpus_.use(rank);
            launch_round(rank, pdl, bytes);
        }
        synchronize();
    }

    void launch_round(int rank, Pdl pdl, uint64_t bytes)
    {
        const Side &side = sides_[rank];
        const uint32_t vectors = (uint32_t)vectors_of(bytes);
        const uint32_t ctas = (vectors + kThreads - 1) / kThreads;
        pdl_order_params params = {};
        params.message = (void *)side.send;
        params.round = (uint32_t *)side.round;
        params.counts = (pdl_order_counts *)side.counts;
        params.vectors = vectors;
        params.rank = (uint32_t)rank;
        launch(produce_, 1, vectors < 1024 ? kThreads : 1024, side.stream, true, &params);
        gpus_.all_reduce(
            rank, {LAMPREY_ONE_SHOT, LAMPREY_BF16, bytes / 2, side.send, side.recv, kLanes, pdl},
            side.stream);
        params.message = (void *)side.recv;
        launch(consume_early_, ctas, kThreads, side.stream, true, &params);
        launch(consume_, ctas, kThreads, side.stream, true, &params);
    }

    CUgraphExec capture(int rank, Pdl pdl, uint64_t bytes)
    {
        const CUstream stream = sides_[rank].stream;
        CUgraph graph = nullptr;
        CUgraphExec executable = nullptr;
        gpus_.use(rank);
        CHECK_CU(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        for (uint64_t round = 0; round < kRoundsPerGraph; round++) {
            launch_round(rank, pdl, bytes);
        }
        CHECK_CU(cuStreamEndCapture(stream, &graph));
        CHECK_CU(cuGraphInstantiate(&executable, graph, 0));
        CHECK_CU(cuGraphDestroy(graph));
        CHECK_CU(cuGraphUpload(executable, stream));
        CHECK_CU(cuStreamSynchronize(stream));
        return executable;
    }

    void synchronize()
    {
        for (int rank = 0; rank < kRanks; rank++) {
            gpus_.use(rank);
            beat();
            CHECK_CU(cuStreamSynchronize(sides_[rank].stream));
        }
        synchronised_++;
        beat();
    }

    // One thread drives both ranks.
    void beat()
    {
        for (int rank = 0; rank < kRanks; rank++) {
            watchdog_.alive(rank, synchronised_);
        }
    }

    bool judge(Pdl pdl, uint64_t bytes, uint64_t rounds)
    {
        pdl_order_counts all = {};
        for (int rank = 0; rank < kRanks; rank++) {
            pdl_order_counts counts;
            gpus_.use(rank);
            CHECK_CU(cuMemcpyDtoH(&counts, sides_[rank].counts, sizeof counts));
            all.before += counts.before;
            all.only_cached += counts.only_cached;
            all.after += counts.after;
        }
        const bool wait = pdl == Pdl::wait;
        printf("pdl_order %s %llu %llu %llu bytes=%llu\n", wait ? "wait" : "signal",
               (unsigned long long)rounds, (unsigned long long)all.before,
               (unsigned long long)all.after, (unsigned long long)bytes);
        fflush(stdout);
        const bool right = all.after == 0 && (wait ? all.before == 0 : all.before > 0);
        if (!right) {
            fprintf(stderr, "pdl_order: %s, %llu bytes: %s\n", wait ? "wait" : "signal",
                    (unsigned long long)bytes,
                    all.after != 0 ? "wrong after the wait"
                    : wait         ? "wrong before the wait"
                                   : "nothing wrong before the wait, so the test sees nothing");
        }
        if (wait && all.before != 0) {
            fprintf(stderr,
                    "pdl_order: %llu of them had the right values in the L2 cache already, and old "
                    "ones only in the reader's L1\n",
                    (unsigned long long)all.only_cached);
        }
        return right;
    }

    GpuPair gpus_;
    Watchdog watchdog_;
    CUkernel produce_;
    CUkernel consume_early_;
    CUkernel consume_;
    Side sides_[kRanks] = {};
    uint64_t synchronised_ = 0;
};

} // namespace

int main(int argc, char **argv)
{
    uint64_t rounds = 1000000;
    for (int i = 1; i < argc; i++) {
        char *end = nullptr;
        if (strncmp(argv[i], "--rounds=", 9) == 0) {
            rounds = strtoull(argv[i] + 9, &end, 10);
        }
        if (!end || *end != '\0' || rounds == 0) {
            fprintf(stderr, "pdl_order: can't use %s; usage: pdl_order [--rounds=N]\n", argv[i]);
            return 2;
        }
    }
    PdlOrder test;
    bool right = true;
    for (uint64_t bytes : kSizes) {
        for (Pdl pdl : {Pdl::wait, Pdl::signal}) {
            right &= test.run(pdl, bytes, bytes == kSizes[0] ? rounds : (rounds + 4) / 5);
        }
    }
    return right ? 0 : 1;
}
