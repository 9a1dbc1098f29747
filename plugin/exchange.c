/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin/exchange.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plugin/log.h"

#define BUFFER_BYTES (256u << 10) /* records of 72 ranks and more */
#define PATIENCE_MS 10000

/* Pinned host memory: any GPU of the process may write to it, as old NCCLs do where one process has
 * several, and a full GPU can still say no. Kept for the next set-up: freeing it may wait for
 * kernels that wait for us. */
struct lamprey_exchange_buffer {
    struct lamprey_exchange_buffer *next;
    const struct lamprey_device *device;
    uint8_t *bytes; /* one address for host and GPU */
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct lamprey_exchange_buffer *idle;

static struct lamprey_exchange_buffer *take_idle(const struct lamprey_device *device)
{
    pthread_mutex_lock(&mutex);
    struct lamprey_exchange_buffer **link = &idle;
    while (*link && (*link)->device != device) {
        link = &(*link)->next;
    }
    struct lamprey_exchange_buffer *buffer = *link;
    if (buffer) {
        *link = buffer->next;
    }
    pthread_mutex_unlock(&mutex);
    return buffer;
}

static enum lamprey_status make_buffer(const struct lamprey_device *device,
                                       struct lamprey_exchange_buffer **made)
{
    struct lamprey_exchange_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer) {
        return LAMPREY_ERROR_MEMORY;
    }
    buffer->device = device;
    enum lamprey_status status = lamprey_driver_check(
        device->driver->MemHostAlloc((void **)&buffer->bytes, BUFFER_BYTES,
                                     CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP),
        "cuMemHostAlloc");
    if (status) {
        free(buffer);
        return status;
    }
    *made = buffer;
    return LAMPREY_OK;
}

enum lamprey_status lamprey_exchange_open(struct lamprey_comm *comm,
                                          struct lamprey_exchange *exchange)
{
    memset(exchange, 0, sizeof *exchange);
    exchange->comm = comm;
    exchange->buffer = comm->nccl ? take_idle(comm->device) : NULL;
    enum lamprey_status status = LAMPREY_OK;
    if (comm->nccl && !exchange->buffer) {
        status = make_buffer(comm->device, &exchange->buffer);
    }
    if (!status) {
        status = lamprey_driver_check(
            comm->device->driver->StreamCreate(&exchange->stream, CU_STREAM_NON_BLOCKING),
            "cuStreamCreate");
    }
    if (status) {
        lamprey_exchange_close(exchange);
    }
    return status;
}

void lamprey_exchange_close(struct lamprey_exchange *exchange)
{
    /* After an abort or an error NCCL may still write to the buffer: then it is given up. */
    bool idle_now = true;
    if (exchange->stream) {
        const struct lamprey_driver *driver = exchange->comm->device->driver;
        idle_now = driver->StreamQuery(exchange->stream) == CUDA_SUCCESS;
        driver->StreamDestroy(exchange->stream);
    }
    if (exchange->buffer && idle_now) {
        pthread_mutex_lock(&mutex);
        exchange->buffer->next = idle;
        idle = exchange->buffer;
        pthread_mutex_unlock(&mutex);
    }
    memset(exchange, 0, sizeof *exchange);
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void pause_between_looks(int looks)
{
    if (looks < 100) {
        sched_yield();
    } else {
        const struct timespec pause = {.tv_nsec = 50000};
        nanosleep(&pause, NULL);
    }
}

static enum lamprey_status async_error(struct lamprey_comm *comm, ncclResult_t *error)
{
    *error = ncclSuccess;
    if (!comm->nccl || !LAMPREY_ORIGINAL(comm->nccl, CommGetAsyncError)) {
        return LAMPREY_OK;
    }
    if (!lamprey_comm_enter_nccl(comm)) {
        return LAMPREY_ERROR_ABORTED;
    }
    ncclResult_t result = LAMPREY_ORIGINAL(comm->nccl, CommGetAsyncError)(comm->handle, error);
    lamprey_comm_leave_nccl(comm);
    return result == ncclSuccess ? LAMPREY_OK : LAMPREY_ERROR_ASYNC;
}

/* LAMPREY_OK while it makes sense to go on waiting. */
static enum lamprey_status still_alive(struct lamprey_comm *comm)
{
    ncclResult_t error = ncclSuccess;
    enum lamprey_status status = async_error(comm, &error);
    if (!status && error != ncclSuccess && error != ncclInProgress) {
        status = LAMPREY_ERROR_ASYNC;
    }
    return status;
}

/* Every gathered record starts with a magic number, so a zeroed one hasn't arrived. */
static void name_missing(const struct lamprey_exchange *exchange, size_t bytes)
{
    const struct lamprey_comm *comm = exchange->comm;
    char ranks[256] = "";
    int length = 0;
    for (int rank = 0; rank < comm->nranks && length < (int)sizeof ranks - 12; rank++) {
        const uint64_t *magic = (const void *)(exchange->buffer->bytes + (size_t)rank * bytes);
        if (__atomic_load_n(magic, __ATOMIC_RELAXED) == 0) {
            length += snprintf(ranks + length, sizeof ranks - (size_t)length, "%s%d",
                               length ? ", " : "", rank);
        }
    }
    lamprey_warn("communicator %p, rank %d of %d: waiting for the set-up exchange for %d s; "
                 "nothing yet from ranks %s. "
                 "Is Lamprey active in all of them?",
                 (void *)comm->handle, comm->rank, comm->nranks, PATIENCE_MS / 1000,
                 length ? ranks : "(unknown)");
}

static enum lamprey_status wait_for_stream(const struct lamprey_exchange *exchange,
                                           size_t record_bytes)
{
    const struct lamprey_driver *driver = exchange->comm->device->driver;
    const int64_t start = now_ms();
    bool said = false;
    for (int looks = 0;; looks++) {
        CUresult result = driver->StreamQuery(exchange->stream);
        if (result != CUDA_ERROR_NOT_READY) {
            return lamprey_driver_check(result, "cuStreamQuery");
        }
        enum lamprey_status status = looks % 64 == 63 ? still_alive(exchange->comm) : LAMPREY_OK;
        if (status || atomic_load(&exchange->comm->aborted)) {
            return status ? status : LAMPREY_ERROR_ABORTED;
        }
        if (!said && record_bytes && now_ms() - start > PATIENCE_MS) {
            said = true;
            name_missing(exchange, record_bytes);
        }
        pause_between_looks(looks);
    }
}

enum lamprey_status lamprey_exchange_wait(struct lamprey_exchange *exchange)
{
    return wait_for_stream(exchange, 0);
}

/* A non-blocking communicator enqueues in the background; the stream says nothing before that is
 * done. */
static enum lamprey_status wait_enqueued(struct lamprey_exchange *exchange)
{
    exchange->nonblocking = true;
    for (int looks = 0;; looks++) {
        ncclResult_t state = ncclSuccess;
        pause_between_looks(looks);
        enum lamprey_status status = async_error(exchange->comm, &state);
        if (status || state != ncclInProgress) {
            return !status && state != ncclSuccess ? LAMPREY_ERROR_ASYNC : status;
        }
    }
}

static enum lamprey_status enqueue(struct lamprey_exchange *exchange, const uint8_t *place,
                                   size_t bytes)
{
    struct lamprey_comm *comm = exchange->comm;
    if (!lamprey_comm_enter_nccl(comm)) {
        return LAMPREY_ERROR_ABORTED;
    }
    ncclResult_t result =
        LAMPREY_ORIGINAL(comm->nccl, AllGather)(place, exchange->buffer->bytes, bytes, ncclUint8,
                                                comm->handle, (cudaStream_t)exchange->stream);
    lamprey_comm_leave_nccl(comm);
    if (result == ncclInProgress) {
        return wait_enqueued(exchange);
    }
    if (result != ncclSuccess) { /* NCCL doesn't remember it, and peers may wait for this call */
        atomic_store(&comm->failure, result);
        return LAMPREY_ERROR_NCCL;
    }
    return LAMPREY_OK;
}

enum lamprey_status lamprey_exchange_gather(struct lamprey_exchange *exchange, const void *own,
                                            size_t bytes, void *all)
{
    const struct lamprey_comm *comm = exchange->comm;
    const size_t total = bytes * (size_t)comm->nranks;
    uint8_t *const place = exchange->buffer->bytes + bytes * (size_t)comm->rank;
    if (total > BUFFER_BYTES) {
        return LAMPREY_ERROR_INVALID;
    }
    memset(exchange->buffer->bytes, 0, total);
    memcpy(place, own, bytes);
    enum lamprey_status status = enqueue(exchange, place, bytes);
    if (!status) {
        status = wait_for_stream(exchange, bytes);
    }
    if (!status) {
        memcpy(all, exchange->buffer->bytes, total);
    }
    return status;
}
