/* SPDX-License-Identifier: Apache-2.0 */
/* One rank's GPU side: communicator, stream, and all-reduces over host data. */
#ifndef LAMPREY_TESTS_PROGRAMS_GPU_H
#define LAMPREY_TESTS_PROGRAMS_GPU_H

#include <stdlib.h>
#include <string.h>

#include "tests/programs/program.h"
#include "tests/programs/reference.h"

struct gpu {
    ncclComm_t comm;
    CUstream stream;
};

/* Collective over the ranks of self. */
static inline void gpu_open(struct program_rank *self, struct gpu *gpu) {
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    program_use_device(self->rank);
    if (self->rank == 0) {
        NCCL(ncclGetUniqueId(&id));
    }
    program_share_id(self, &id);
    NCCL(ncclCommInitRank(&gpu->comm, self->nranks, id, self->rank));
    CU(cuStreamCreate(&gpu->stream, CU_STREAM_NON_BLOCKING));
}

static inline void gpu_close(struct gpu *gpu) {
    CU(cuStreamSynchronize(gpu->stream));
    NCCL(ncclCommDestroy(gpu->comm));
    CU(cuStreamDestroy(gpu->stream));
}

static inline void *gpu_host(size_t bytes) {
    void *host = malloc(bytes);
    if (host == NULL) {
        program_fail("out of memory");
    }
    return host;
}

/* bf16 sums: the input of one rank into device memory, and the check of a result. host holds count
 * elements. */
static inline void gpu_upload(CUdeviceptr device, void *host, size_t count, uint64_t seed, int rank,
                              int nranks, CUstream stream) {
    reference_fill(host, 0, count, ncclBfloat16, ncclSum, seed, rank, nranks);
    CU(cuMemcpyHtoDAsync(device, host, count * 2, stream));
    CU(cuStreamSynchronize(stream));
}

static inline size_t gpu_check(CUdeviceptr device, void *host, size_t count, uint64_t seed,
                               int nranks, CUstream stream, const char *what) {
    CU(cuMemcpyDtoHAsync(host, device, count * 2, stream));
    CU(cuStreamSynchronize(stream));
    return reference_check(host, 0, count, ncclBfloat16, ncclSum, seed, nranks, nranks <= 2, what);
}

#endif
