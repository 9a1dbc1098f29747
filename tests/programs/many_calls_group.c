/* SPDX-License-Identifier: Apache-2.0 */
/* One process, one thread per GPU; each thread groups 64 all-reduces of many sizes on one
 * communicator. */
#include <stdio.h>

#include "tests/programs/gpu.h"

#define CALLS 64
#define ROUNDS 12

/* 1 element to 64 Ki: some calls are too large for any small-message path. */
static size_t call_count(int call) {
    static const size_t counts[] = {1, 3, 64, 129, 1024, 5000, 8192, 65536};
    return counts[call % 8];
}

static int body(struct program_rank *self) {
    struct gpu gpu;
    CUdeviceptr buffer;
    size_t total = 0;
    size_t wrong = 0;
    for (int call = 0; call < CALLS; call++) {
        total += call_count(call);
    }
    gpu_open(self, &gpu);
    void *host = gpu_host(total * 2);
    CU(cuMemAlloc(&buffer, total * 2));
    for (uint64_t round = 0; round < ROUNDS; round++) {
        gpu_upload(buffer, host, total, round + 1, self->rank, self->nranks, gpu.stream);
        CUdeviceptr piece = buffer;
        NCCL(ncclGroupStart());
        for (int call = 0; call < CALLS; call++) {
            NCCL(ncclAllReduce((void *)piece, (void *)piece, call_count(call), ncclBfloat16,
                               ncclSum, gpu.comm, (cudaStream_t)gpu.stream));
            piece += call_count(call) * 2;
        }
        NCCL(ncclGroupEnd());
        wrong += gpu_check(buffer, host, total, round + 1, self->nranks, gpu.stream, "group of 64");
    }
    CU(cuMemFree(buffer));
    free(host);
    gpu_close(&gpu);
    int64_t all_wrong = program_sum(self, (int64_t)wrong);
    if (self->rank == 0) {
        printf("many_calls_group\t%d ranks\t%d calls\t%lld wrong\n", self->nranks, ROUNDS * CALLS,
               (long long)all_wrong);
    }
    return all_wrong != 0;
}

int main(int argc, char **argv) {
    int nranks = (int)program_option(argc, argv, "ranks", 2);
    int deadline_s = (int)program_option(argc, argv, "deadline", 60);
    program_options_end(argc, argv);
    return program_threads(nranks, deadline_s, body, NULL);
}
