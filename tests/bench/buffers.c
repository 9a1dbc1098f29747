/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "tests/bench/buffers.h"

#include <dlfcn.h>

#define SEED 1
/* More would take longer than the measurement. */
#define CHECKED_ELEMENTS ((size_t)16384)

/* Older NCCLs lack them, and older nccl.h don't declare them. */
#define COLLECTIVE_SYMMETRIC 1
struct windows {
    ncclResult_t (*alloc)(void **pointer, size_t bytes);
    ncclResult_t (*free)(void *pointer);
    ncclResult_t (*enter)(ncclComm_t comm, void *pointer, size_t bytes, void **window, int flags);
    ncclResult_t (*leave)(ncclComm_t comm, void *window);
};

static struct windows find_windows(void)
{
    struct windows found;
    *(void **)&found.alloc = dlsym(RTLD_DEFAULT, "ncclMemAlloc");
    *(void **)&found.free = dlsym(RTLD_DEFAULT, "ncclMemFree");
    *(void **)&found.enter = dlsym(RTLD_DEFAULT, "ncclCommWindowRegister");
    *(void **)&found.leave = dlsym(RTLD_DEFAULT, "ncclCommWindowDeregister");
    return found;
}

bool bench_windows_known(void)
{
    struct windows found = find_windows();
    return found.alloc != NULL && found.free != NULL && found.enter != NULL && found.leave != NULL;
}

static bool open_registered(struct bench_buffers *buffers, size_t bytes, ncclComm_t comm)
{
    struct windows nccl = find_windows();
    CUdeviceptr *const addresses[2] = {&buffers->send, &buffers->recv};
    for (int i = 0; i < 2; i++) {
        void *pointer = NULL;
        NCCL(nccl.alloc(&pointer, bytes));
        *addresses[i] = (CUdeviceptr)pointer;
        NCCL(nccl.enter(comm, pointer, bytes, &buffers->windows[i], COLLECTIVE_SYMMETRIC));
    }
    return buffers->windows[0] != NULL && buffers->windows[1] != NULL;
}

bool bench_buffers_open(struct bench_buffers *buffers, const struct bench_options *options,
                        const struct program_rank *self, const struct gpu *gpu)
{
    bool usable = true;
    *buffers = (struct bench_buffers){.host = gpu_host(options->largest)};
    if (options->registered) {
        usable = open_registered(buffers, options->largest, gpu->comm);
    } else {
        CU(cuMemAlloc(&buffers->send, options->largest));
        CU(cuMemAlloc(&buffers->recv, options->largest));
    }
    CU(cuMemAlloc(&buffers->user, options->user_bytes));
    reference_fill(buffers->host, 0, options->largest / reference_type_size(options->type),
                   options->type, options->op, SEED, self->rank, self->nranks);
    CU(cuMemcpyHtoDAsync(buffers->send, buffers->host, options->largest, gpu->stream));
    CU(cuStreamSynchronize(gpu->stream));
    return usable;
}

void bench_buffers_close(struct bench_buffers *buffers, const struct bench_options *options,
                         const struct gpu *gpu)
{
    CU(cuStreamSynchronize(gpu->stream));
    CU(cuMemFree(buffers->user));
    if (options->registered) {
        struct windows nccl = find_windows();
        for (int i = 0; i < 2; i++) {
            if (buffers->windows[i] != NULL) {
                NCCL(nccl.leave(gpu->comm, buffers->windows[i]));
            }
        }
        NCCL(nccl.free((void *)buffers->send));
        NCCL(nccl.free((void *)buffers->recv));
    } else {
        CU(cuMemFree(buffers->send));
        CU(cuMemFree(buffers->recv));
    }
    free(buffers->host);
}

void bench_buffers_spoil(const struct bench_buffers *buffers, size_t bytes, CUstream stream)
{
    CU(cuMemsetD8Async(buffers->recv, 0xa5, bytes, stream));
    CU(cuStreamSynchronize(stream));
}

static size_t check_range(const struct bench_buffers *buffers, const struct bench_options *options,
                          const struct program_rank *self, size_t first, size_t count,
                          CUstream stream, const char *what)
{
    size_t element = reference_type_size(options->type);
    CU(cuMemcpyDtoHAsync(buffers->host, buffers->recv + first * element, count * element, stream));
    CU(cuStreamSynchronize(stream));
    /* With two ranks there is one addition, rounded once: only one result is right. */
    return reference_check(buffers->host, first, count, options->type, options->op, SEED,
                           self->nranks, self->nranks <= 2 && options->op != ncclAvg, what);
}

size_t bench_buffers_check(const struct bench_buffers *buffers, const struct bench_options *options,
                           const struct program_rank *self, size_t bytes, CUstream stream,
                           const char *what)
{
    size_t count = bytes / reference_type_size(options->type);
    size_t part = count < CHECKED_ELEMENTS ? count : CHECKED_ELEMENTS;
    size_t wrong = check_range(buffers, options, self, 0, part, stream, what);
    if (part < count) {
        wrong += check_range(buffers, options, self, count - part, part, stream, what);
    }
    return wrong;
}
