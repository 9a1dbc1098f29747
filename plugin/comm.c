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

struct lamprey_comm *lamprey_comm_make(struct lamprey_device *device, int rank, int nranks)
{
    struct lamprey_comm *comm = calloc(1, sizeof *comm);
    if (!comm) {
        return NULL;
    }
    comm->device = device;
    comm->rank = rank;
    comm->nranks = nranks;
    atomic_init(&comm->references, 1);
    atomic_init(&comm->state, LAMPREY_COMM_NEW);
    atomic_init(&comm->failure, ncclUnhandledCudaError);
    return comm;
}

static struct lamprey_comm *describe(struct lamprey_nccl *nccl, ncclComm_t handle)
{
    int ordinal = -1;
    struct lamprey_comm *comm = lamprey_comm_make(NULL, -1, 0);
    if (!comm) {
        return NULL;
    }
    comm->handle = handle;
    comm->nccl = nccl;
    if (nccl->CommCount(handle, &comm->nranks) != ncclSuccess ||
        nccl->CommUserRank(handle, &comm->rank) != ncclSuccess ||
        nccl->CommCuDevice(handle, &ordinal) != ncclSuccess) {
        free(comm);
        return NULL;
    }
    if (comm->nranks < 2 || comm->nranks > LAMPREY_MAX_RANKS) {
        /* The same on all ranks, so there is nothing to exchange. */
        atomic_store(&comm->state, LAMPREY_COMM_REFUSED);
        lamprey_info("communicator %p, rank %d of %d is left to NCCL: 2 to %d ranks are served",
                     (void *)handle, comm->rank, comm->nranks, LAMPREY_MAX_RANKS);
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

void lamprey_comm_remove(struct lamprey_comm *comm)
{
    pthread_mutex_lock(&mutex);
    struct lamprey_comm **link = bucket_of(comm->handle);
    while (*link && *link != comm) {
        link = &(*link)->next;
    }
    const bool found = *link == comm;
    if (found) {
        *link = comm->next;
    }
    pthread_mutex_unlock(&mutex);
    if (found) {
        lamprey_comm_release(comm);
    }
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void pause_shortly(void)
{
    const struct timespec pause = {.tv_nsec = 50000};
    nanosleep(&pause, NULL);
}

bool lamprey_comm_drain(const struct lamprey_comm *comm, int timeout_ms)
{
    const struct lamprey_workspace *workspace = atomic_load(&comm->workspace);
    struct lamprey_visit visit;
    if (!workspace || lamprey_visit_begin(comm->device, &visit) != LAMPREY_OK) {
        return !workspace;
    }
    const int64_t start = now_ms();
    bool idle = lamprey_workspace_idle(workspace);
    while (!idle &&
           (timeout_ms < 0 ? !atomic_load(&comm->aborted) : now_ms() - start < timeout_ms)) {
        pause_shortly();
        idle = lamprey_workspace_idle(workspace);
    }
    lamprey_visit_end(&visit);
    return idle;
}

void lamprey_comm_await_setup(const struct lamprey_comm *comm)
{
    const int64_t start = now_ms();
    while (atomic_load(&comm->in_nccl) > 0 && now_ms() - start < 50) {
        pause_shortly();
    }
}

bool lamprey_comm_enter_nccl(struct lamprey_comm *comm)
{
    atomic_fetch_add(&comm->in_nccl, 1);
    if (!atomic_load(&comm->aborted)) {
        return true;
    }
    lamprey_comm_leave_nccl(comm);
    return false;
}

void lamprey_comm_leave_nccl(struct lamprey_comm *comm)
{
    atomic_fetch_sub(&comm->in_nccl, 1);
}

void lamprey_comm_end(struct lamprey_comm *comm, enum lamprey_ending ending)
{
    atomic_store(&comm->state,
                 ending == LAMPREY_ABORTED ? LAMPREY_COMM_ABORTED : LAMPREY_COMM_CLOSED);
    if (ending != LAMPREY_FINALIZED) {
        atomic_store(&comm->aborted, true);
        struct lamprey_workspace *workspace = atomic_load(&comm->workspace);
        if (workspace) {
            lamprey_workspace_abort(workspace);
        }
    }
}

void lamprey_comm_close(ncclComm_t handle, enum lamprey_ending ending)
{
    struct lamprey_comm *comm = lamprey_comm_find(handle);
    if (comm) {
        lamprey_comm_end(comm, ending);
        lamprey_comm_release(comm);
    }
}
