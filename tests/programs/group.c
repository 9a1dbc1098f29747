/* SPDX-License-Identifier: Apache-2.0 */
/* One thread drives all GPUs: groups of one call per GPU, of several calls per GPU, and with call
 * order reversed. */
#include <stdio.h>

#include "tests/programs/gpu.h"

#define COUNT 2048
#define CALLS 6
#define ROUNDS 20

struct machine {
    int nranks;
    ncclComm_t comm[PROGRAM_MAX_RANKS];
    CUcontext context[PROGRAM_MAX_RANKS];
    CUstream stream[PROGRAM_MAX_RANKS];
    CUdeviceptr buffer[PROGRAM_MAX_RANKS];
    void *host;
};

static void one_call(struct machine *machine, int rank, int call) {
    CU(cuCtxSetCurrent(machine->context[rank]));
    void *piece = (void *)(machine->buffer[rank] + (size_t)call * COUNT * 2);
    NCCL(ncclAllReduce(piece, piece, COUNT, ncclBfloat16, ncclSum, machine->comm[rank],
                       (cudaStream_t)machine->stream[rank]));
}

static void group_per_call(struct machine *machine) {
    for (int call = 0; call < CALLS; call++) {
        NCCL(ncclGroupStart());
        for (int rank = 0; rank < machine->nranks; rank++) {
            one_call(machine, rank, call);
        }
        NCCL(ncclGroupEnd());
    }
}

static void one_group(struct machine *machine) {
    NCCL(ncclGroupStart());
    for (int rank = 0; rank < machine->nranks; rank++) {
        for (int call = 0; call < CALLS; call++) {
            one_call(machine, rank, call);
        }
    }
    NCCL(ncclGroupEnd());
}

static void nested_reversed(struct machine *machine) {
    NCCL(ncclGroupStart());
    for (int call = 0; call < CALLS; call++) {
        NCCL(ncclGroupStart());
        for (int rank = machine->nranks - 1; rank >= 0; rank--) {
            one_call(machine, rank, call);
        }
        NCCL(ncclGroupEnd());
    }
    NCCL(ncclGroupEnd());
}

static void open_machine(struct machine *machine) {
    int devices[PROGRAM_MAX_RANKS];
    for (int rank = 0; rank < machine->nranks; rank++) {
        devices[rank] = rank;
        program_use_device(rank);
        CU(cuCtxGetCurrent(&machine->context[rank]));
        CU(cuStreamCreate(&machine->stream[rank], CU_STREAM_NON_BLOCKING));
        CU(cuMemAlloc(&machine->buffer[rank], (size_t)COUNT * CALLS * 2));
    }
    NCCL(ncclCommInitAll(machine->comm, machine->nranks, devices));
    machine->host = gpu_host((size_t)COUNT * CALLS * 2);
}

static void close_machine(struct machine *machine) {
    for (int rank = 0; rank < machine->nranks; rank++) {
        CU(cuCtxSetCurrent(machine->context[rank]));
        NCCL(ncclCommDestroy(machine->comm[rank]));
        CU(cuMemFree(machine->buffer[rank]));
        CU(cuStreamDestroy(machine->stream[rank]));
    }
    free(machine->host);
}

static int body(struct program_rank *self) {
    static void (*const shapes[])(struct machine *) = {group_per_call, one_group, nested_reversed};
    static const char *const names[] = {"a group per call", "one group", "nested groups, reversed"};
    struct machine machine = {.nranks = *(int *)self->argument};
    size_t wrong = 0;
    open_machine(&machine);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        for (size_t shape = 0; shape < 3; shape++) {
            uint64_t seed = round * 3 + shape + 1;
            for (int rank = 0; rank < machine.nranks; rank++) {
                CU(cuCtxSetCurrent(machine.context[rank]));
                gpu_upload(machine.buffer[rank], machine.host, (size_t)COUNT * CALLS, seed, rank,
                           machine.nranks, machine.stream[rank]);
            }
            shapes[shape](&machine);
            for (int rank = 0; rank < machine.nranks; rank++) {
                CU(cuCtxSetCurrent(machine.context[rank]));
                wrong += gpu_check(machine.buffer[rank], machine.host, (size_t)COUNT * CALLS, seed,
                                   machine.nranks, machine.stream[rank], names[shape]);
            }
        }
    }
    close_machine(&machine);
    printf("group\t%d ranks\t%d calls\t%zu wrong\n", machine.nranks, 3 * ROUNDS * CALLS, wrong);
    return wrong != 0;
}

int main(int argc, char **argv) {
    int nranks = (int)program_option(argc, argv, "ranks", 2);
    int deadline_s = (int)program_option(argc, argv, "deadline", 60);
    program_options_end(argc, argv);
    if (nranks < 1 || nranks > PROGRAM_MAX_RANKS) {
        program_fail("--ranks must be 1 to %d", PROGRAM_MAX_RANKS);
    }
    return program_threads(1, deadline_s, body, &nranks);
}
