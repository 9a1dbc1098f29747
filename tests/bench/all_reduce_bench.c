/* SPDX-License-Identifier: Apache-2.0 */
/* Times ncclAllReduce as programs use it: eager, in CUDA graphs, and between the kernels of a
 * decode step. An ordinary NCCL program: what serves the calls is a matter of its environment. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tests/bench/measure.h"
#include "tests/bench/served.h"

struct served {
    int64_t before;
    int64_t after;
};

static void print_time(const char *name, double us)
{
    printf(", \"%s\": %.4f", name, us);
}

/* One line, from rank 0: a figure is worth something as soon as it is there. */
static void print_record(const struct bench_rank *rank, enum bench_mode mode, size_t bytes,
                         const struct bench_figures *figures, int64_t wrong, struct served served)
{
    const struct bench_options *options = rank->options;
    int version = 0;
    NCCL(ncclGetVersion(&version));
    printf("{\"peer\": \"%s\", \"mode\": \"%s\", \"bytes\": %zu, \"type\": \"%s\", \"op\": \"%s\"",
           options->label, bench_mode_name(mode), bytes, reference_type_name(options->type),
           reference_op_name(options->op));
    printf(", \"ranks\": %d, \"processes\": %s, \"registered\": %s, \"calls\": %d, \"group\": %d, "
           "\"rounds\": %d",
           rank->self->nranks, options->threads ? "false" : "true",
           options->registered ? "true" : "false",
           mode == BENCH_DECODE ? BENCH_LAYERS : options->calls, options->group, options->rounds);
    print_time("median_us", figures->median);
    print_time("p1_us", figures->p1);
    print_time("p99_us", figures->p99);
    if (mode == BENCH_DECODE) {
        print_time("user_us", figures->user);
    }
    printf(", \"wrong\": %" PRId64 ", \"served\": %s, \"nccl\": %d}\n", wrong,
           served.before < 0              ? "null"
           : served.after > served.before ? "true"
                                          : "false",
           version);
    fflush(stdout);
}

/* False if a result was wrong, on any rank. */
static bool run_point(struct bench_rank *rank, enum bench_mode mode, size_t bytes)
{
    struct bench_figures figures;
    int64_t wrong = 0;
    struct served served = {.before = bench_served(rank->gpu.comm)};
    if (mode != BENCH_LAUNCH) {
        /* NCCL connects what it needs at the first call: not while a graph is captured. */
        bench_reduce_once(rank, BENCH_EAGER, bytes);
        bench_buffers_spoil(&rank->buffers, bytes, rank->gpu.stream);
        bench_reduce_once(rank, mode, bytes);
        wrong = (int64_t)bench_buffers_check(&rank->buffers, rank->options, rank->self, bytes,
                                             rank->gpu.stream, bench_mode_name(mode));
    }
    bench_measure(rank, mode, bytes, &figures);
    if (mode != BENCH_LAUNCH) {
        wrong += (int64_t)bench_buffers_check(&rank->buffers, rank->options, rank->self, bytes,
                                              rank->gpu.stream, "after the measurement");
    }
    served.after = bench_served(rank->gpu.comm);
    wrong = program_sum(rank->self, wrong);
    if (rank->self->rank == 0) {
        print_record(rank, mode, bytes, &figures, wrong, served);
    }
    return wrong == 0;
}

static bool run_points(struct bench_rank *rank)
{
    const struct bench_options *options = rank->options;
    bool right = true;
    bench_warm_up(rank);
    if (options->modes[BENCH_LAUNCH]) {
        right = run_point(rank, BENCH_LAUNCH, BENCH_LAUNCH_BYTES);
    }
    for (int mode = BENCH_LAUNCH + 1; mode < BENCH_MODES; mode++) {
        for (size_t i = 0; options->modes[mode] && i < options->size_count && right; i++) {
            right = run_point(rank, mode, options->sizes[i]);
        }
    }
    return right;
}

static int body(struct program_rank *self)
{
    const struct bench_options *options = self->argument;
    struct bench_rank rank = {.self = self, .options = options};
    int result = 0;
    gpu_open(self, &rank.gpu);
    CU(cuEventCreate(&rank.start, CU_EVENT_DEFAULT));
    CU(cuEventCreate(&rank.stop, CU_EVENT_DEFAULT));
    bool usable = bench_buffers_open(&rank.buffers, options, self, &rank.gpu);
    if (program_sum(self, !usable) != 0) {
        if (self->rank == 0) {
            fprintf(stderr, "skipped: NCCL makes no symmetric windows here\n");
        }
        result = PROGRAM_SKIP;
    } else {
        result = run_points(&rank) ? 0 : 1;
    }
    bench_buffers_close(&rank.buffers, options, &rank.gpu);
    CU(cuEventDestroy(rank.start));
    CU(cuEventDestroy(rank.stop));
    gpu_close(&rank.gpu);
    return result;
}

static int print_version(void)
{
    int version = 0;
    NCCL(ncclGetVersion(&version));
    printf("%d\n", version);
    return 0;
}

int main(int argc, char **argv)
{
    struct bench_options options;
    bench_options_read(&options, argc, argv);
    if (options.version_only) {
        return print_version();
    }
    if (options.registered && !bench_windows_known()) {
        fprintf(stderr, "skipped: this NCCL has no symmetric windows\n");
        return PROGRAM_SKIP;
    }
    int gpus = program_gpu_count();
    int ranks = options.ranks != 0 ? options.ranks : gpus < 8 ? gpus : 8;
    if (ranks < 2 || gpus < ranks) {
        fprintf(stderr, "skipped: needs %d GPUs, there are %d\n", ranks < 2 ? 2 : ranks, gpus);
        return PROGRAM_SKIP;
    }
    return (options.threads ? program_threads : program_processes)(ranks, options.deadline_s, body,
                                                                   &options);
}
