/* SPDX-License-Identifier: Apache-2.0 */
/* How long an all-reduce takes, in each mode: collective over the ranks. */
#ifndef LAMPREY_TESTS_BENCH_MEASURE_H
#define LAMPREY_TESTS_BENCH_MEASURE_H

#include "tests/bench/buffers.h"

/* Layers of a decode step: user kernel, all-reduce, user kernel. */
#define BENCH_LAYERS 100
/* What a node of BENCH_LAUNCH writes. */
#define BENCH_LAUNCH_BYTES 4

struct bench_rank {
    struct program_rank *self;
    const struct bench_options *options;
    struct gpu gpu;
    struct bench_buffers buffers;
    CUevent start;
    CUevent stop;
};

/* Microseconds a call, over the rounds; each is the largest over the ranks. */
struct bench_figures {
    double median;
    double p1;
    double p99;
    double user; /* decode: a user kernel pair's, without the all-reduce */
};

/* Keeps the GPU busy until its clocks are up. */
void bench_warm_up(const struct bench_rank *rank);

void bench_measure(struct bench_rank *rank, enum bench_mode mode, size_t bytes,
                   struct bench_figures *figures);

/* One all-reduce of this mode's kind, eager or in a graph of its own, into buffers.recv. */
void bench_reduce_once(struct bench_rank *rank, enum bench_mode mode, size_t bytes);

#endif
