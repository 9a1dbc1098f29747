/* SPDX-License-Identifier: Apache-2.0 */
/* One process, one thread per GPU, each with ungrouped all-reduces of its own: eager, then in a
 * CUDA graph. */
#include <stdio.h>

#include "tests/programs/gpu.h"

#define COUNT 4096
#define CALLS 16
#define ROUNDS 20

static int body(struct program_rank *self) {
    struct gpu gpu;
    CUdeviceptr buffer;
    size_t wrong = 0;
    gpu_open(self, &gpu);
    void *host = gpu_host((size_t)COUNT * CALLS * 2);
    CU(cuMemAlloc(&buffer, (size_t)COUNT * CALLS * 2));

    CUgraph graph;
    CUgraphExec instance;
    for (int captured = 0; captured < 2; captured++) {
        for (uint64_t round = 0; round < ROUNDS; round++) {
            uint64_t seed = 100 * round + (uint64_t)captured;
            gpu_upload(buffer, host, (size_t)COUNT * CALLS, seed, self->rank, self->nranks,
                       gpu.stream);
            if (captured && round > 0) {
                CU(cuGraphLaunch(instance, gpu.stream));
            } else {
                if (captured) {
                    CU(cuStreamBeginCapture(gpu.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
                }
                for (int call = 0; call < CALLS; call++) {
                    void *piece = (void *)(buffer + (size_t)call * COUNT * 2);
                    NCCL(ncclAllReduce(piece, piece, COUNT, ncclBfloat16, ncclSum, gpu.comm,
                                       (cudaStream_t)gpu.stream));
                }
                if (captured) {
                    CU(cuStreamEndCapture(gpu.stream, &graph));
                    CU(cuGraphInstantiate(&instance, graph, 0));
                    CU(cuGraphLaunch(instance, gpu.stream));
                }
            }
            wrong += gpu_check(buffer, host, (size_t)COUNT * CALLS, seed, self->nranks, gpu.stream,
                               captured ? "graph" : "eager");
        }
    }
    CU(cuGraphExecDestroy(instance));
    CU(cuGraphDestroy(graph));
    CU(cuMemFree(buffer));
    free(host);
    gpu_close(&gpu);
    int64_t all_wrong = program_sum(self, (int64_t)wrong);
    if (self->rank == 0) {
        printf("threads\t%d ranks\t%d calls\t%lld wrong\n", self->nranks, 2 * ROUNDS * CALLS,
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
