/* SPDX-License-Identifier: Apache-2.0 */
/* Resolves every NCCL function with dlopen and dlsym before any communicator exists, as programs do
 * that reach NCCL through a foreign-function interface, and only ever calls those addresses. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/programs/program.h"
#include "tests/programs/reference.h"

#define COUNT 4096
#define CALLS 200

struct nccl {
    __typeof__(&ncclGetUniqueId) get_unique_id;
    __typeof__(&ncclCommInitRank) comm_init_rank;
    __typeof__(&ncclAllReduce) all_reduce;
    __typeof__(&ncclCommDestroy) comm_destroy;
};

static void resolve(void *library, const char *name, void *function) {
    void *address = dlsym(library, name);
    if (address == NULL) {
        program_fail("no %s: %s", name, dlerror());
    }
    memcpy(function, &address, sizeof address);
}

static int body(struct program_rank *self) {
    const char *path = getenv("NCCL_LIBRARY");
    void *library = dlopen(path != NULL ? path : "libnccl.so.2", RTLD_LAZY | RTLD_LOCAL);
    if (library == NULL) {
        program_fail("%s", dlerror());
    }
    struct nccl nccl;
    resolve(library, "ncclGetUniqueId", &nccl.get_unique_id);
    resolve(library, "ncclCommInitRank", &nccl.comm_init_rank);
    resolve(library, "ncclAllReduce", &nccl.all_reduce);
    resolve(library, "ncclCommDestroy", &nccl.comm_destroy);

    program_use_device(self->rank);
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    if (self->rank == 0) {
        NCCL(nccl.get_unique_id(&id));
    }
    program_share_id(self, &id);
    ncclComm_t comm;
    CUstream stream;
    CUdeviceptr buffer;
    NCCL(nccl.comm_init_rank(&comm, self->nranks, id, self->rank));
    CU(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CU(cuMemAlloc(&buffer, COUNT * 2));
    unsigned char host[COUNT * 2];
    int64_t wrong = 0;
    for (uint64_t call = 0; call < CALLS; call++) {
        reference_fill(host, 0, COUNT, ncclBfloat16, ncclSum, call, self->rank, self->nranks);
        CU(cuMemcpyHtoDAsync(buffer, host, sizeof host, stream));
        NCCL(nccl.all_reduce((void *)buffer, (void *)buffer, COUNT, ncclBfloat16, ncclSum, comm,
                             (cudaStream_t)stream));
        CU(cuMemcpyDtoHAsync(host, buffer, sizeof host, stream));
        CU(cuStreamSynchronize(stream));
        wrong += (int64_t)reference_check(host, 0, COUNT, ncclBfloat16, ncclSum, call, self->nranks,
                                          self->nranks <= 2, "dlsym");
    }
    NCCL(nccl.comm_destroy(comm));
    CU(cuMemFree(buffer));
    CU(cuStreamDestroy(stream));
    wrong = program_sum(self, wrong);
    if (self->rank == 0) {
        printf("dlsym_first\t%d ranks\t%d calls\t%lld wrong\n", self->nranks, CALLS,
               (long long)wrong);
    }
    return wrong != 0;
}

int main(int argc, char **argv) {
    int nranks = (int)program_option(argc, argv, "ranks", 2);
    int deadline_s = (int)program_option(argc, argv, "deadline", 60);
    program_options_end(argc, argv);
    return program_processes(nranks, deadline_s, body, NULL);
}
