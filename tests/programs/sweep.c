/* SPDX-License-Identifier: Apache-2.0 */
/* Every type, operator and many counts; aligned and not, in place and not; every element checked.
 * Prints, tab- separated: sweep <type> <op> <calls> <wrong>, or "unsupported" where NCCL refuses
 * the type. */
#include <stdio.h>

#include "tests/programs/gpu.h"

#define GUARD_BYTES 64

struct settings {
    size_t max_count;
    int exact;
};

struct sweep {
    struct program_rank *self;
    const struct settings *settings;
    struct gpu gpu;
    CUdeviceptr send;
    CUdeviceptr recv;
    unsigned char *host;
    int64_t calls;
    int64_t wrong;
    int64_t refused;
};

enum variant {
    ALIGNED,
    MISALIGNED, /* by one element, differently for input and output and from rank to rank */
    IN_PLACE,
    MISALIGNED_IN_PLACE,
    VARIANTS,
};

static void one_call(struct sweep *sweep, ncclDataType_t type, ncclRedOp_t op, size_t count,
                     enum variant variant) {
    size_t size = reference_type_size(type);
    size_t bytes = count * size;
    int odd = variant == MISALIGNED || variant == MISALIGNED_IN_PLACE;
    size_t shift = odd ? size * (size_t)(1 + sweep->self->rank % 3) : 0;
    CUdeviceptr send = sweep->send + GUARD_BYTES + shift;
    CUdeviceptr recv = sweep->recv + GUARD_BYTES + (odd ? 2 * size : 0);
    uint64_t seed = count * 64 + (uint64_t)type * 8 + (uint64_t)op;
    if (variant == IN_PLACE || variant == MISALIGNED_IN_PLACE) {
        recv = send;
    }
    reference_fill(sweep->host, 0, count, type, op, seed, sweep->self->rank, sweep->self->nranks);
    /* A guard around the result must survive. */
    CU(cuMemsetD8Async(recv - GUARD_BYTES, 0x5a, bytes + 2 * GUARD_BYTES, sweep->gpu.stream));
    CU(cuMemcpyHtoDAsync(send, sweep->host, bytes, sweep->gpu.stream));
    ncclResult_t result = ncclAllReduce((const void *)send, (void *)recv, count, type, op,
                                        sweep->gpu.comm, (cudaStream_t)sweep->gpu.stream);
    if (result == ncclInvalidArgument || result == ncclInvalidUsage) {
        CU(cuStreamSynchronize(sweep->gpu.stream));
        sweep->refused++;
        return;
    }
    NCCL(result);
    CU(cuMemcpyDtoHAsync(sweep->host, recv - GUARD_BYTES, bytes + 2 * GUARD_BYTES,
                         sweep->gpu.stream));
    CU(cuStreamSynchronize(sweep->gpu.stream));
    static const char *const names[] = {"aligned", "misaligned", "in place", "misaligned in place"};
    sweep->calls++;
    sweep->wrong +=
        (int64_t)reference_check(sweep->host + GUARD_BYTES, 0, count, type, op, seed,
                                 sweep->self->nranks, sweep->settings->exact, names[variant]);
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (sweep->host[i] != 0x5a || sweep->host[GUARD_BYTES + bytes + i] != 0x5a) {
            fprintf(stderr, "%s: %s %s, %zu elements: wrote outside the result\n", names[variant],
                    reference_type_name(type), reference_op_name(op), count);
            sweep->wrong++;
            break;
        }
    }
}

static void one_pair(struct sweep *sweep, ncclDataType_t type, ncclRedOp_t op) {
    static const size_t counts[] = {1,     2,     3,     7,      8,      13,     31,
                                    64,    100,   257,   1000,   1024,   4096,   4097,
                                    10007, 16384, 65536, 131071, 262144, 1 << 20};
    sweep->calls = 0;
    sweep->wrong = 0;
    sweep->refused = 0;
    for (size_t i = 0;
         i < sizeof counts / sizeof counts[0] && counts[i] <= sweep->settings->max_count; i++) {
        for (int variant = 0; variant < VARIANTS; variant++) {
            /* Of the large ones, one variant each: the checks take the time. */
            if (counts[i] <= 4097 || variant == (int)((i + type + op) % VARIANTS)) {
                one_call(sweep, type, op, counts[i], (enum variant)variant);
            }
        }
    }
}

static int body(struct program_rank *self) {
    static const ncclDataType_t types[] = {
        ncclInt8,    ncclUint8,   ncclInt32,   ncclUint32,   ncclInt64,      ncclUint64,
        ncclFloat16, ncclFloat32, ncclFloat64, ncclBfloat16, ncclFloat8e4m3, ncclFloat8e5m2,
    };
    static const ncclRedOp_t ops[] = {ncclSum, ncclProd, ncclMax, ncclMin, ncclAvg};
    struct sweep sweep = {.self = self, .settings = self->argument};
    size_t bytes = sweep.settings->max_count * 8 + 4 * GUARD_BYTES;
    int64_t all_wrong = 0;
    gpu_open(self, &sweep.gpu);
    sweep.host = gpu_host(bytes);
    CU(cuMemAlloc(&sweep.send, bytes));
    CU(cuMemAlloc(&sweep.recv, bytes));
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        for (size_t o = 0; o < sizeof ops / sizeof ops[0]; o++) {
            one_pair(&sweep, types[t], ops[o]);
            int64_t wrong = program_sum(self, sweep.wrong);
            int64_t calls = program_sum(self, sweep.calls);
            int64_t refused = program_sum(self, sweep.refused);
            all_wrong += wrong;
            if (refused != 0 && calls != 0) {
                program_fail("%s %s: refused in some calls only", reference_type_name(types[t]),
                             reference_op_name(ops[o]));
            }
            if (self->rank == 0 && refused != 0) {
                printf("sweep\t%s\t%s\tunsupported\n", reference_type_name(types[t]),
                       reference_op_name(ops[o]));
            } else if (self->rank == 0) {
                printf("sweep\t%s\t%s\t%lld\t%lld\n", reference_type_name(types[t]),
                       reference_op_name(ops[o]), (long long)(calls / self->nranks),
                       (long long)wrong);
            }
            fflush(stdout);
        }
    }
    CU(cuMemFree(sweep.send));
    CU(cuMemFree(sweep.recv));
    free(sweep.host);
    gpu_close(&sweep.gpu);
    return all_wrong != 0;
}

int main(int argc, char **argv) {
    struct settings settings = {
        .max_count = (size_t)program_option(argc, argv, "max-count", 1 << 20),
        .exact = program_flag(argc, argv, "exact"),
    };
    int nranks = (int)program_option(argc, argv, "ranks", 2);
    int deadline_s = (int)program_option(argc, argv, "deadline", 180);
    program_options_end(argc, argv);
    return program_processes(nranks, deadline_s, body, &settings);
}
