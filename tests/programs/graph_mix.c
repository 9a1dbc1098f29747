/* SPDX-License-Identifier: Apache-2.0 */
/* Replays of two graphs on two streams, mixed with live calls on a third, with no order between the
 * streams but the one that NCCL keeps within a communicator. The order of issue is random, the same
 * on all ranks. */
#include <stdio.h>

#include "tests/programs/gpu.h"

#define COUNT 3000
#define CALLS 8
#define LANES 3 /* two graphs and the live calls */

struct lane {
    CUstream stream;
    CUdeviceptr buffer;
    CUgraphExec graph; /* NULL for the live lane */
    void *host;
};

static void issue(struct lane *lane, ncclComm_t comm) {
    for (int call = 0; call < CALLS; call++) {
        void *piece = (void *)(lane->buffer + (size_t)call * COUNT * 2);
        NCCL(ncclAllReduce(piece, piece, COUNT, ncclBfloat16, ncclSum, comm,
                           (cudaStream_t)lane->stream));
    }
}

static void open_lane(struct lane *lane, ncclComm_t comm, int captured) {
    CU(cuStreamCreate(&lane->stream, CU_STREAM_NON_BLOCKING));
    CU(cuMemAlloc(&lane->buffer, (size_t)COUNT * CALLS * 2));
    lane->host = gpu_host((size_t)COUNT * CALLS * 2);
    lane->graph = NULL;
    if (captured) {
        CUgraph graph;
        CU(cuStreamBeginCapture(lane->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        issue(lane, comm);
        CU(cuStreamEndCapture(lane->stream, &graph));
        CU(cuGraphInstantiate(&lane->graph, graph, 0));
        CU(cuGraphDestroy(graph));
    }
}

static void close_lane(struct lane *lane) {
    CU(cuStreamSynchronize(lane->stream));
    if (lane->graph != NULL) {
        CU(cuGraphExecDestroy(lane->graph));
    }
    CU(cuMemFree(lane->buffer));
    CU(cuStreamDestroy(lane->stream));
    free(lane->host);
}

static int body(struct program_rank *self) {
    int rounds = *(int *)self->argument;
    struct gpu gpu;
    struct lane lanes[LANES];
    int64_t wrong = 0;
    uint64_t random = 12345;
    gpu_open(self, &gpu);
    for (int i = 0; i < LANES; i++) {
        open_lane(&lanes[i], gpu.comm, i < LANES - 1);
    }
    for (uint64_t round = 0; round < (uint64_t)rounds; round++) {
        for (int i = 0; i < LANES; i++) {
            gpu_upload(lanes[i].buffer, lanes[i].host, (size_t)COUNT * CALLS,
                       round * LANES + (uint64_t)i, self->rank, self->nranks, lanes[i].stream);
        }
        /* A rotation of the lanes, and the direction, from the round's random number. */
        random = random * 6364136223846793005u + 1442695040888963407u;
        int first = (int)(random >> 33) % LANES;
        int step = random >> 62 & 1 ? 1 : LANES - 1;
        for (int i = 0; i < LANES; i++) {
            struct lane *lane = &lanes[(first + i * step) % LANES];
            if (lane->graph != NULL) {
                CU(cuGraphLaunch(lane->graph, lane->stream));
            } else {
                issue(lane, gpu.comm);
            }
        }
        for (int i = 0; i < LANES; i++) {
            wrong += (int64_t)gpu_check(lanes[i].buffer, lanes[i].host, (size_t)COUNT * CALLS,
                                        round * LANES + (uint64_t)i, self->nranks, lanes[i].stream,
                                        lanes[i].graph != NULL ? "replay" : "live");
        }
    }
    for (int i = 0; i < LANES; i++) {
        close_lane(&lanes[i]);
    }
    gpu_close(&gpu);
    wrong = program_sum(self, wrong);
    if (self->rank == 0) {
        printf("graph_mix\t%d ranks\t%d calls\t%lld wrong\n", self->nranks, rounds * LANES * CALLS,
               (long long)wrong);
    }
    return wrong != 0;
}

int main(int argc, char **argv) {
    int rounds = (int)program_option(argc, argv, "rounds", 100);
    int nranks = (int)program_option(argc, argv, "ranks", 2);
    int deadline_s = (int)program_option(argc, argv, "deadline", 60);
    program_options_end(argc, argv);
    return program_processes(nranks, deadline_s, body, &rounds);
}
