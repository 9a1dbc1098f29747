/* SPDX-License-Identifier: Apache-2.0 */
/* What to measure, from the command line. */
#ifndef LAMPREY_TESTS_BENCH_OPTIONS_H
#define LAMPREY_TESTS_BENCH_OPTIONS_H

#include <nccl.h>
#include <stdbool.h>
#include <stddef.h>

#define BENCH_MAX_SIZES 64

enum bench_mode {
    BENCH_LAUNCH, /* what a graph's node costs that does next to nothing */
    BENCH_GRAPH,
    BENCH_EAGER,
    BENCH_HOST,   /* what an eager call takes the calling thread */
    BENCH_DECODE, /* between user kernels in a graph */
    BENCH_MODES
};

struct bench_options {
    size_t sizes[BENCH_MAX_SIZES]; /* bytes */
    size_t size_count;
    size_t largest;
    bool modes[BENCH_MODES];
    ncclDataType_t type;
    ncclRedOp_t op;
    int ranks; /* 0: as many as there are GPUs, at most 8 */
    int calls; /* per graph, and per eager round */
    int group; /* calls in one; 1: none */
    int rounds;
    size_t user_bytes; /* what the user kernels of decode write */
    bool threads;
    bool registered;
    bool version_only;
    const char *label;
    int deadline_s;
};

const char *bench_mode_name(enum bench_mode mode);

/* Ends the process on a bad option, or after --help. */
void bench_options_read(struct bench_options *options, int argc, char **argv);

#endif
