/* SPDX-License-Identifier: Apache-2.0 */
/* An ordinary NCCL program: bf16 sums of 256 bytes to 4 MiB, one process per GPU, eager and in a
 * CUDA graph. Checks every element and prints, tab-separated: result <bytes> <eager|graph>
 * <elements checked on all ranks> <wrong> <median us per call, or -> With two ranks the result has
 * only one correct value per element, since a single addition is rounded once. With more, NCCL may
 * round after every addition; --exact demands fp32 accumulation in rank order, rounded once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/programs/program.h"
#include "tests/programs/reference.h"

/* Calls whose results are checked together, and the memory that they may take. */
#define CHECK_SLOTS 8
#define CHECK_BYTES ((size_t)4 << 20)

struct settings {
    size_t min_bytes;
    size_t max_bytes;
    int rounds;          /* timed repetitions; the median counts */
    int calls_per_graph; /* timed */
    int exact;
    int no_times;
    uint64_t seed;
};

struct state {
    struct program_rank *self;
    const struct settings *settings;
    ncclComm_t comm;
    CUstream stream;
    CUevent start;
    CUevent stop;
    CUdeviceptr send; /* pieces of one size, one behind the other */
    CUdeviceptr recv;
    unsigned char *host;
    int64_t checked;
    int64_t wrong;
};

static int slot_count(size_t bytes)
{
    size_t fit = CHECK_BYTES / bytes;
    return fit < 1 ? 1 : fit > CHECK_SLOTS ? CHECK_SLOTS : (int)fit;
}

static CUdeviceptr slot(CUdeviceptr base, size_t bytes, int index) {
    return base + bytes * (size_t)index;
}

static void all_reduce(struct state *state, int index, size_t bytes) {
    NCCL(ncclAllReduce((const void *)slot(state->send, bytes, index),
                       (void *)slot(state->recv, bytes, index), bytes / 2, ncclBfloat16, ncclSum,
                       state->comm, (cudaStream_t)state->stream));
}

static void in_place(struct state *state, int index, size_t bytes) {
    void *buffer = (void *)slot(state->send, bytes, index);
    NCCL(ncclAllReduce(buffer, buffer, bytes / 2, ncclBfloat16, ncclSum, state->comm,
                       (cudaStream_t)state->stream));
}

static void upload(struct state *state, size_t bytes, uint64_t seed) {
    size_t total = bytes * (size_t)slot_count(bytes);
    reference_fill(state->host, 0, total / 2, ncclBfloat16, ncclSum, seed, state->self->rank,
                   state->self->nranks);
    CU(cuMemcpyHtoDAsync(state->send, state->host, total, state->stream));
    CU(cuMemsetD8Async(state->recv, 0xa5, total, state->stream));
    CU(cuStreamSynchronize(state->stream));
}

static void check(struct state *state, CUdeviceptr result, size_t bytes, int slots, uint64_t seed,
                  const char *what) {
    size_t total = bytes * (size_t)slots;
    CU(cuMemcpyDtoHAsync(state->host, result, total, state->stream));
    CU(cuStreamSynchronize(state->stream));
    state->checked += (int64_t)(total / 2);
    state->wrong += (int64_t)reference_check(
        state->host, 0, total / 2, ncclBfloat16, ncclSum, seed, state->self->nranks,
        state->settings->exact || state->self->nranks <= 2, what);
}

/* The result line, from rank 0, for all ranks. */
static void report(struct state *state, size_t bytes, const char *mode, double us) {
    int64_t checked = program_sum(state->self, state->checked);
    int64_t wrong = program_sum(state->self, state->wrong);
    double slowest = program_max(state->self, us);
    state->checked = 0;
    state->wrong = 0;
    if (state->self->rank == 0) {
        char time[32] = "-";
        if (!state->settings->no_times) {
            snprintf(time, sizeof time, "%.2f", slowest);
        }
        printf("result\t%zu\t%s\t%lld\t%lld\t%s\n", bytes, mode, (long long)checked,
               (long long)wrong, time);
        fflush(stdout);
    }
    /* Everybody learns of it, so that the exit status is the same everywhere. */
    if (wrong != 0) {
        program_barrier(state->self);
        exit(1);
    }
}

static double elapsed_us(struct state *state) {
    float milliseconds = 0;
    CU(cuEventSynchronize(state->stop));
    CU(cuEventElapsedTime(&milliseconds, state->start, state->stop));
    return (double)milliseconds * 1000;
}

static double time_eager(struct state *state, size_t bytes) {
    const int calls = 100;
    double *times = calloc((size_t)state->settings->rounds, sizeof times[0]);
    for (int round = 0; round < state->settings->rounds; round++) {
        program_barrier(state->self);
        /* The first calls bring the ranks into step. */
        for (int call = 0; call < 20; call++) {
            all_reduce(state, 0, bytes);
        }
        CU(cuEventRecord(state->start, state->stream));
        for (int call = 0; call < calls; call++) {
            all_reduce(state, 0, bytes);
        }
        CU(cuEventRecord(state->stop, state->stream));
        times[round] = elapsed_us(state) / calls;
    }
    double median = program_median(times, (size_t)state->settings->rounds);
    free(times);
    return median;
}

static CUgraphExec capture(struct state *state, size_t bytes, int calls, int slots) {
    CUgraph graph;
    CUgraphExec instance;
    CU(cuStreamBeginCapture(state->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    for (int call = 0; call < calls; call++) {
        all_reduce(state, call % slots, bytes);
    }
    CU(cuStreamEndCapture(state->stream, &graph));
    CU(cuGraphInstantiate(&instance, graph, 0));
    CU(cuGraphDestroy(graph));
    return instance;
}

static double time_graph(struct state *state, size_t bytes) {
    CUgraphExec instance = capture(state, bytes, state->settings->calls_per_graph, 1);
    double *times = calloc((size_t)state->settings->rounds, sizeof times[0]);
    for (int round = 0; round < state->settings->rounds; round++) {
        program_barrier(state->self);
        /* The first replay brings the ranks into step. */
        CU(cuGraphLaunch(instance, state->stream));
        CU(cuEventRecord(state->start, state->stream));
        CU(cuGraphLaunch(instance, state->stream));
        CU(cuEventRecord(state->stop, state->stream));
        times[round] = elapsed_us(state) / state->settings->calls_per_graph;
    }
    CU(cuStreamSynchronize(state->stream));
    CU(cuGraphExecDestroy(instance));
    double median = program_median(times, (size_t)state->settings->rounds);
    free(times);
    return median;
}

static void run_eager(struct state *state, size_t bytes) {
    uint64_t seed = state->settings->seed + bytes;
    upload(state, bytes, seed);
    for (int i = 0; i < slot_count(bytes); i++) {
        all_reduce(state, i, bytes);
    }
    check(state, state->recv, bytes, slot_count(bytes), seed, "eager");
    for (int i = 0; i < slot_count(bytes); i++) {
        in_place(state, i, bytes);
    }
    check(state, state->send, bytes, slot_count(bytes), seed, "eager, in place");
    report(state, bytes, "eager", state->settings->no_times ? 0 : time_eager(state, bytes));
}

static void run_graph(struct state *state, size_t bytes) {
    CUgraphExec instance = capture(state, bytes, slot_count(bytes), slot_count(bytes));
    for (uint64_t replay = 0; replay < 3; replay++) {
        uint64_t seed = state->settings->seed + bytes + 1 + replay;
        upload(state, bytes, seed);
        CU(cuGraphLaunch(instance, state->stream));
        check(state, state->recv, bytes, slot_count(bytes), seed, "graph");
    }
    CU(cuGraphExecDestroy(instance));
    report(state, bytes, "graph", state->settings->no_times ? 0 : time_graph(state, bytes));
}

static int body(struct program_rank *self) {
    const struct settings *settings = self->argument;
    struct state state = {.self = self, .settings = settings};
    size_t total = settings->max_bytes > CHECK_BYTES ? settings->max_bytes : CHECK_BYTES;
    program_use_device(self->rank);
    ncclUniqueId id;
    if (self->rank == 0) {
        NCCL(ncclGetUniqueId(&id));
    }
    program_share_id(self, &id);
    NCCL(ncclCommInitRank(&state.comm, self->nranks, id, self->rank));
    CU(cuStreamCreate(&state.stream, CU_STREAM_NON_BLOCKING));
    CU(cuEventCreate(&state.start, CU_EVENT_DEFAULT));
    CU(cuEventCreate(&state.stop, CU_EVENT_DEFAULT));
    CU(cuMemAlloc(&state.send, total));
    CU(cuMemAlloc(&state.recv, total));
    state.host = malloc(total);
    if (state.host == NULL) {
        program_fail("out of memory");
    }
    for (size_t bytes = settings->min_bytes; bytes <= settings->max_bytes; bytes *= 2) {
        run_eager(&state, bytes);
        run_graph(&state, bytes);
    }
    free(state.host);
    CU(cuMemFree(state.send));
    CU(cuMemFree(state.recv));
    CU(cuEventDestroy(state.start));
    CU(cuEventDestroy(state.stop));
    NCCL(ncclCommDestroy(state.comm));
    CU(cuStreamDestroy(state.stream));
    return 0;
}

int main(int argc, char **argv) {
    struct settings settings = {
        .min_bytes = (size_t)program_option(argc, argv, "min-bytes", 256),
        .max_bytes = (size_t)program_option(argc, argv, "max-bytes", 4 << 20),
        .rounds = (int)program_option(argc, argv, "rounds", 20),
        .calls_per_graph = (int)program_option(argc, argv, "calls-per-graph", 100),
        .exact = program_flag(argc, argv, "exact"),
        .no_times = program_flag(argc, argv, "no-times"),
        .seed = (uint64_t)program_option(argc, argv, "seed", 1),
    };
    int nranks = (int)program_option(argc, argv, "ranks", 0);
    int deadline_s = (int)program_option(argc, argv, "deadline", 120);
    program_options_end(argc, argv);
    if (settings.min_bytes < 2 || settings.max_bytes < settings.min_bytes || settings.rounds < 1 ||
        settings.calls_per_graph < 1 || settings.min_bytes % 2 != 0) {
        fprintf(stderr, "%s: sizes must be even, rounds and calls at least 1\n", argv[0]);
        return 2;
    }
    int gpus = program_gpu_count();
    if (nranks == 0) {
        nranks = gpus < 8 ? gpus : 8;
    }
    if (gpus < nranks || nranks < 2) {
        fprintf(stderr, "skipped: needs %d GPUs, there are %d\n", nranks < 2 ? 2 : nranks, gpus);
        return PROGRAM_SKIP;
    }
    return program_processes(nranks, deadline_s, body, &settings);
}
