/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/bench/measure.h"

#include <math.h>
#include <time.h>

/* Rounds that don't count: uploads, clocks, queues. */
#define WARM_ROUNDS 3
#define WARM_CALLS 20
#define WARM_UP_US 200000

enum content { NOTHING_MUCH, ALL_REDUCES, LAYERS_WITH, LAYERS_WITHOUT };

static void all_reduce(const struct bench_rank *rank, size_t bytes)
{
    const struct bench_options *options = rank->options;
    NCCL(ncclAllReduce((const void *)rank->buffers.send, (void *)rank->buffers.recv,
                       bytes / reference_type_size(options->type), options->type, options->op,
                       rank->gpu.comm, (cudaStream_t)rank->gpu.stream));
}

static void all_reduces(const struct bench_rank *rank, size_t bytes, int calls)
{
    const int group = rank->options->group;
    for (int i = 0; i < calls; i++) {
        if (group > 1 && i % group == 0) {
            NCCL(ncclGroupStart());
        }
        all_reduce(rank, bytes);
        if (group > 1 && (i % group == group - 1 || i + 1 == calls)) {
            NCCL(ncclGroupEnd());
        }
    }
}

static void user_kernel(const struct bench_rank *rank, size_t bytes)
{
    CU(cuMemsetD32Async(rank->buffers.user, 0x3f003f00, bytes / 4, rank->gpu.stream));
}

static double now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

void bench_warm_up(const struct bench_rank *rank)
{
    const double start = now_us();
    do {
        for (int i = 0; i < WARM_CALLS; i++) {
            user_kernel(rank, rank->options->user_bytes);
        }
        CU(cuStreamSynchronize(rank->gpu.stream));
    } while (now_us() - start < WARM_UP_US);
}

static void layers(const struct bench_rank *rank, enum content content, size_t bytes, int times)
{
    for (int i = 0; i < times; i++) {
        if (content == NOTHING_MUCH) {
            user_kernel(rank, BENCH_LAUNCH_BYTES);
            continue;
        }
        user_kernel(rank, rank->options->user_bytes);
        if (content == LAYERS_WITH) {
            all_reduce(rank, bytes);
        }
        user_kernel(rank, rank->options->user_bytes);
    }
}

static CUgraphExec capture(const struct bench_rank *rank, enum content content, size_t bytes,
                           int times)
{
    CUgraph graph;
    CUgraphExec instance;
    CU(cuStreamBeginCapture(rank->gpu.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    if (content == ALL_REDUCES) {
        all_reduces(rank, bytes, times);
    } else {
        layers(rank, content, bytes, times);
    }
    CU(cuStreamEndCapture(rank->gpu.stream, &graph));
    CU(cuGraphInstantiate(&instance, graph, 0));
    CU(cuGraphDestroy(graph));
    return instance;
}

static double elapsed_us(const struct bench_rank *rank)
{
    float milliseconds = 0;
    CU(cuEventSynchronize(rank->stop));
    CU(cuEventElapsedTime(&milliseconds, rank->start, rank->stop));
    return (double)milliseconds * 1000;
}

static double replay_us(const struct bench_rank *rank, CUgraphExec instance)
{
    program_barrier(rank->self);
    /* The first replay brings the ranks into step. */
    CU(cuGraphLaunch(instance, rank->gpu.stream));
    CU(cuEventRecord(rank->start, rank->gpu.stream));
    CU(cuGraphLaunch(instance, rank->gpu.stream));
    CU(cuEventRecord(rank->stop, rank->gpu.stream));
    return elapsed_us(rank);
}

static double eager_us(const struct bench_rank *rank, size_t bytes)
{
    program_barrier(rank->self);
    all_reduces(rank, bytes, WARM_CALLS);
    CU(cuEventRecord(rank->start, rank->gpu.stream));
    all_reduces(rank, bytes, rank->options->calls);
    CU(cuEventRecord(rank->stop, rank->gpu.stream));
    return elapsed_us(rank);
}

/* The launch queue must have room for the calls: a full one makes the host wait for the GPU. */
static double host_us(const struct bench_rank *rank, size_t bytes)
{
    program_barrier(rank->self);
    all_reduces(rank, bytes, WARM_CALLS);
    const double start = now_us();
    all_reduces(rank, bytes, rank->options->calls);
    const double spent = now_us() - start;
    CU(cuStreamSynchronize(rank->gpu.stream));
    return spent;
}

/* values must be sorted: the smallest that at least this share of them doesn't exceed. */
static double percentile(const double *values, int count, double share)
{
    int index = (int)ceil(share * count) - 1;
    return values[index < 0 ? 0 : index];
}

static void summarize(const struct bench_rank *rank, double *times, struct bench_figures *figures)
{
    int count = rank->options->rounds;
    double median = program_median(times, (size_t)count); /* sorts */
    figures->median = program_max(rank->self, median);
    figures->p1 = program_max(rank->self, percentile(times, count, 0.01));
    figures->p99 = program_max(rank->self, percentile(times, count, 0.99));
}

static double *new_times(const struct bench_rank *rank)
{
    return gpu_host((size_t)rank->options->rounds * sizeof(double));
}

static void measure_graph(struct bench_rank *rank, enum content content, size_t bytes,
                          struct bench_figures *figures)
{
    int calls = rank->options->calls;
    CUgraphExec instance = capture(rank, content, bytes, calls);
    double *times = new_times(rank);
    for (int round = -WARM_ROUNDS; round < rank->options->rounds; round++) {
        times[round < 0 ? 0 : round] = replay_us(rank, instance) / calls;
    }
    CU(cuGraphExecDestroy(instance));
    summarize(rank, times, figures);
    free(times);
}

static void measure_calls(struct bench_rank *rank,
                          double (*round_us)(const struct bench_rank *rank, size_t bytes),
                          size_t bytes, struct bench_figures *figures)
{
    double *times = new_times(rank);
    for (int round = -WARM_ROUNDS; round < rank->options->rounds; round++) {
        times[round < 0 ? 0 : round] = round_us(rank, bytes) / rank->options->calls;
    }
    summarize(rank, times, figures);
    free(times);
}

/* What the all-reduce adds: every round takes the difference of two replays in a row. */
static void measure_decode(struct bench_rank *rank, size_t bytes, struct bench_figures *figures)
{
    CUgraphExec with = capture(rank, LAYERS_WITH, bytes, BENCH_LAYERS);
    CUgraphExec without = capture(rank, LAYERS_WITHOUT, bytes, BENCH_LAYERS);
    double *added = new_times(rank);
    double *user = new_times(rank);
    for (int round = -WARM_ROUNDS; round < rank->options->rounds; round++) {
        int slot = round < 0 ? 0 : round;
        user[slot] = replay_us(rank, without) / BENCH_LAYERS;
        added[slot] = replay_us(rank, with) / BENCH_LAYERS - user[slot];
    }
    CU(cuGraphExecDestroy(with));
    CU(cuGraphExecDestroy(without));
    summarize(rank, added, figures);
    figures->user = program_max(rank->self, program_median(user, (size_t)rank->options->rounds));
    free(added);
    free(user);
}

void bench_measure(struct bench_rank *rank, enum bench_mode mode, size_t bytes,
                   struct bench_figures *figures)
{
    *figures = (struct bench_figures){0};
    switch (mode) {
    case BENCH_LAUNCH:
        measure_graph(rank, NOTHING_MUCH, bytes, figures);
        break;
    case BENCH_GRAPH:
        measure_graph(rank, ALL_REDUCES, bytes, figures);
        break;
    case BENCH_EAGER:
        measure_calls(rank, eager_us, bytes, figures);
        break;
    case BENCH_HOST:
        measure_calls(rank, host_us, bytes, figures);
        break;
    case BENCH_DECODE:
        measure_decode(rank, bytes, figures);
        break;
    default:
        program_fail("no such mode: %d", (int)mode);
    }
}

void bench_reduce_once(struct bench_rank *rank, enum bench_mode mode, size_t bytes)
{
    if (mode == BENCH_EAGER || mode == BENCH_HOST) {
        all_reduce(rank, bytes);
    } else {
        CUgraphExec instance = capture(rank, ALL_REDUCES, bytes, 1);
        CU(cuGraphLaunch(instance, rank->gpu.stream));
        CU(cuStreamSynchronize(rank->gpu.stream));
        CU(cuGraphExecDestroy(instance));
    }
    CU(cuStreamSynchronize(rank->gpu.stream));
}
