/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin/comm.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "plugin/log.h"

#define BUCKETS 256

static pthread_mutex_t mutex =
    PTHREAD_MUTEX_INITIALIZER; /* held for look-ups only, never over a wait or a call */
static struct lamprey_comm *table[BUCKETS];

static struct lamprey_comm **bucket_of(ncclComm_t handle)
{
    const uintptr_t address = (uintptr_t)handle;
    return &table[(address >> 4 ^ address >> 12) % BUCKETS];
}

static struct lamprey_comm *find_locked(ncclComm_t handle)
{
    struct lamprey_comm *comm = *bucket_of(handle);
    while (comm && comm->handle != handle) {
        comm = comm->next;
    }
    if (comm) {
        atomic_fetch_add(&comm->references, 1);
    }
    return comm;
}

struct lamprey_comm *lamprey_comm_find(ncclComm_t handle)
{
    if (!handle) {
        return NULL;
    }
    pthread_mutex_lock(&mutex);
    struct lamprey_comm *comm = find_locked(handle);
    pthread_mutex_unlock(&mutex);
    return comm;
}

static struct lamprey_comm *describe(struct lamprey_nccl *nccl, ncclComm_t handle)
{
    int ordinal = -1;
    struct lamprey_comm *comm = calloc(1, sizeof *comm);
    if (!comm) {
        return NULL;
    }
    comm->handle = handle;
    comm->nccl = nccl;
    atomic_init(&comm->references, 1);
    atomic_init(&comm->state, LAMPREY_COMM_NEW);
    if (nccl->CommCount(handle, &comm->nranks) != ncclSuccess ||
        nccl->CommUserRank(handle, &comm->rank) != ncclSuccess ||
        nccl->CommCuDevice(handle, &ordinal) != ncclSuccess) {
        free(comm);
        return NULL;
    }
    if (comm->nranks < 2) {
        atomic_store(&comm->state, LAMPREY_COMM_REFUSED);
    } else if (lamprey_device_get(ordinal, &comm->device) != LAMPREY_OK) {
        /* Without a driver there is no way into the exchange; but then NCCL has none either. */
        comm->device = NULL;
        atomic_store(&comm->state, LAMPREY_COMM_REFUSED);
        lamprey_warn("communicator %p is left to NCCL: GPU %d can't be opened (%s)", (void *)handle,
                     ordinal, lamprey_driver_missing());
    }
    return comm;
}

struct lamprey_comm *lamprey_comm_discover(struct lamprey_nccl *nccl, ncclComm_t handle)
{
    struct lamprey_comm *comm = lamprey_comm_find(handle);
    if (comm || !handle) {
        return comm;
    }
    struct lamprey_comm *fresh = describe(nccl, handle);
    if (!fresh) {
        return NULL;
    }
    pthread_mutex_lock(&mutex);
    comm = find_locked(handle);
    if (!comm) {
        fresh->next = *bucket_of(handle);
        *bucket_of(handle) = fresh;
        atomic_fetch_add(&fresh->references, 1);
        comm = fresh;
        fresh = NULL;
    }
    pthread_mutex_unlock(&mutex);
    free(fresh);
    return comm;
}

void lamprey_comm_release(struct lamprey_comm *comm)
{
    if (comm && atomic_fetch_sub(&comm->references, 1) == 1) {
        lamprey_workspace_release(atomic_load(&comm->workspace));
        free(comm);
    }
}

struct lamprey_comm *lamprey_comm_take(ncclComm_t handle)
{
    if (!handle) {
        return NULL;
    }
    pthread_mutex_lock(&mutex);
    struct lamprey_comm **link = bucket_of(handle);
    while (*link && (*link)->handle != handle) {
        link = &(*link)->next;
    }
    struct lamprey_comm *comm = *link;
    if (comm) {
        *link = comm->next;
    }
    pthread_mutex_unlock(&mutex);
    return comm;
}

/* True once the last kernel has ended; false after timeout_ms, if that isn't negative. */
static bool drained(const struct lamprey_comm *comm, int timeout_ms)
{
    const struct lamprey_workspace *workspace = atomic_load(&comm->workspace);
    if (!workspace) {
        return true;
    }
    const struct lamprey_driver *driver = comm->device->driver;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    driver->ThreadExchangeStreamCaptureMode(&mode);
    bool done = false;
    for (int waited_us = 0;; waited_us += 50) {
        done = driver->EventQuery(workspace->serial) != CUDA_ERROR_NOT_READY;
        if (done ||
            (timeout_ms < 0 ? atomic_load(&comm->aborted) : waited_us > timeout_ms * 1000)) {
            break;
        }
        const struct timespec pause = {.tv_nsec = 50000};
        nanosleep(&pause, NULL);
    }
    driver->ThreadExchangeStreamCaptureMode(&mode);
    return done;
}

void lamprey_comm_drain(const struct lamprey_comm *comm)
{
    drained(comm, -1);
}

void lamprey_comm_retire(struct lamprey_comm *comm)
{
    if (!comm) {
        return;
    }
    if (!drained(comm, 1000)) {
        lamprey_warn("communicator %p: a kernel doesn't end; its staging memory stays",
                     (void *)comm->handle);
        atomic_fetch_add(&comm->workspace->references, 1);
    }
    lamprey_comm_release(comm);
    lamprey_workspace_reap();
}

void lamprey_comm_close(ncclComm_t handle, bool abort)
{
    struct lamprey_comm *comm = lamprey_comm_find(handle);
    if (!comm) {
        return;
    }
    atomic_store(&comm->state, LAMPREY_COMM_CLOSED);
    if (abort) {
        atomic_store(&comm->aborted, true);
        struct lamprey_workspace *workspace = atomic_load(&comm->workspace);
        if (workspace) {
            lamprey_workspace_abort(workspace);
        }
    }
    lamprey_comm_release(comm);
}
