/* SPDX-License-Identifier: Apache-2.0 */
/* The buffers that a rank reduces: random inputs, checked results, and windows over both. */
#ifndef LAMPREY_TESTS_BENCH_BUFFERS_H
#define LAMPREY_TESTS_BENCH_BUFFERS_H

#include "tests/bench/options.h"
#include "tests/programs/gpu.h"

struct bench_buffers {
    CUdeviceptr send;
    CUdeviceptr recv; /* another one, so that inputs stay as they are and sums finite */
    CUdeviceptr user; /* what the user kernels write */
    void *host;
    void *windows[2];
};

/* True if this NCCL has what --registered needs. */
bool bench_windows_known(void);

/* Collective over the ranks. Fills send. False if NCCL took the buffers, but not as windows. */
bool bench_buffers_open(struct bench_buffers *buffers, const struct bench_options *options,
                        const struct program_rank *self, const struct gpu *gpu);

void bench_buffers_close(struct bench_buffers *buffers, const struct bench_options *options,
                         const struct gpu *gpu);

/* Spoils recv, so that a check can't see an earlier result. */
void bench_buffers_spoil(const struct bench_buffers *buffers, size_t bytes, CUstream stream);

/* How many elements of recv are wrong, of its first and last ones. */
size_t bench_buffers_check(const struct bench_buffers *buffers, const struct bench_options *options,
                           const struct program_rank *self, size_t bytes, CUstream stream,
                           const char *what);

#endif
