/* SPDX-License-Identifier: Apache-2.0 */
/* Communicators that exist: queries, life and death. */
#include "tests/emulator/nccl/internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct ncclComm *live;

void emulated_comm_publish(ncclComm_t comm)
{
    pthread_mutex_lock(&mutex);
    comm->next = live;
    live = comm;
    pthread_mutex_unlock(&mutex);
}

/* False if it was not there: somebody else is destroying it, or it never was a communicator. */
static bool withdraw(ncclComm_t comm)
{
    pthread_mutex_lock(&mutex);
    struct ncclComm **link = &live;
    while (*link != NULL && *link != comm) {
        link = &(*link)->next;
    }
    bool found = *link != NULL;
    if (found) {
        *link = comm->next;
    }
    pthread_mutex_unlock(&mutex);
    return found;
}

/* references: how many the caller takes. */
static ncclResult_t find(ncclComm_t comm, int references, const char *function)
{
    pthread_mutex_lock(&mutex);
    struct ncclComm *found = live;
    while (found != NULL && found != comm) {
        found = found->next;
    }
    if (found != NULL) {
        atomic_fetch_add(&comm->references, references);
    }
    pthread_mutex_unlock(&mutex);
    if (found == NULL) {
        WARN("%s : %p is no communicator", function, (void *)comm);
        return ncclInvalidArgument;
    }
    return ncclSuccess;
}

ncclResult_t emulated_comm_check(ncclComm_t comm, const char *function)
{
    if (comm == NULL) {
        WARN("%s : comm argument is NULL", function);
        return ncclInvalidArgument;
    }
    return find(comm, 0, function);
}

ncclResult_t emulated_comm_ready(ncclComm_t comm, const char *function)
{
    ncclResult_t result = emulated_comm_check(comm, function);
    if (result == ncclSuccess && atomic_load(&comm->async_error) == ncclInProgress) {
        WARN("Attempt to use communicator before the previous operation returned ncclSuccess");
        return ncclInvalidArgument;
    }
    return result;
}

ncclResult_t emulated_comm_hold(ncclComm_t comm)
{
    ncclResult_t result = find(comm, 1, "launch");
    if (result != ncclSuccess) {
        return result;
    }
    pthread_mutex_lock(&comm->launching);
    if (comm->ended) {
        emulated_comm_let_go(comm);
        return ncclInvalidArgument;
    }
    return ncclSuccess;
}

void emulated_comm_let_go(ncclComm_t comm)
{
    pthread_mutex_unlock(&comm->launching);
    emulated_comm_drop(comm);
}

void emulated_comm_drop(ncclComm_t comm)
{
    if (atomic_fetch_sub(&comm->references, 1) == 1) {
        pthread_mutex_destroy(&comm->life);
        pthread_mutex_destroy(&comm->launching);
        free(comm);
    }
}

ncclResult_t emulated_comm_exchange(ncclComm_t comm, const void *mine, void *all, size_t bytes)
{
    struct emulated_segment *segment = comm->segment;
    memcpy(segment->blobs[comm->rank], mine, bytes);
    if (!emulated_barrier_wait(&segment->host, comm->nranks, &comm->abort)) {
        return ncclInternalError;
    }
    for (int rank = 0; rank < comm->nranks; rank++) {
        memcpy((char *)all + (size_t)rank * bytes, segment->blobs[rank], bytes);
    }
    bool good = emulated_barrier_wait(&segment->host, comm->nranks, &comm->abort);
    return good ? ncclSuccess : ncclInternalError;
}

/* Waits for the communicator's own work, in any capture state of the program. */
static ncclResult_t drain(ncclComm_t comm)
{
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    cuThreadExchangeStreamCaptureMode(&mode);
    ncclResult_t result = CUDA_TRY(cuEventSynchronize(comm->serial));
    cuThreadExchangeStreamCaptureMode(&mode);
    return result;
}

static ncclResult_t destroy(ncclComm_t comm)
{
    if (!withdraw(comm)) {
        WARN("%p is no communicator", (void *)comm);
        return ncclInvalidArgument;
    }
    pthread_mutex_lock(&comm->launching);
    comm->ended = true;
    pthread_mutex_unlock(&comm->launching);
    ncclResult_t result = drain(comm);
    emulated_plugins_unload(comm);
    cuEventDestroy(comm->serial);
    cuEventDestroy(comm->join);
    pthread_mutex_lock(&comm->life); /* an aborted one leaves soon */
    comm->destroyed = true;
    emulated_segment_leave(comm->segment);
    comm->segment = NULL;
    pthread_mutex_unlock(&comm->life);
    INFO("comm %p rank %d nRanks %d cudaDev %d - Destroy COMPLETE", (void *)comm, comm->rank,
         comm->nranks, comm->device);
    emulated_comm_drop(comm);
    return result;
}

ncclResult_t pncclCommDestroy(ncclComm_t comm)
{
    ENTER_API();
    if (comm == NULL) {
        return ncclSuccess;
    }
    ncclResult_t result = emulated_comm_check(comm, "CommDestroy");
    return result != ncclSuccess ? result : destroy(comm);
}
EMULATED_ALIAS(ncclCommDestroy);

ncclResult_t pncclCommAbort(ncclComm_t comm)
{
    ENTER_API();
    if (comm == NULL) {
        return ncclSuccess;
    }
    ncclResult_t result = emulated_comm_check(comm, "CommAbort");
    if (result != ncclSuccess) {
        return result;
    }
    atomic_store(&comm->abort, 1);
    return destroy(comm);
}
EMULATED_ALIAS(ncclCommAbort);

ncclResult_t pncclCommFinalize(ncclComm_t comm)
{
    ENTER_API();
    ncclResult_t result = emulated_comm_check(comm, "CommFinalize");
    if (result != ncclSuccess) {
        return result;
    }
    if (comm->finalized) {
        WARN("CommFinalize : communicator %p was finalized before", (void *)comm);
        return ncclInvalidArgument;
    }
    comm->finalized = true;
    return drain(comm);
}
EMULATED_ALIAS(ncclCommFinalize);

ncclResult_t pncclCommRevoke(ncclComm_t comm, int flags)
{
    ENTER_API();
    ncclResult_t result = emulated_comm_check(comm, "CommRevoke");
    if (result != ncclSuccess) {
        return result;
    }
    if (flags != 0) {
        WARN("CommRevoke : flags must be 0, got %d", flags);
        return ncclInvalidArgument;
    }
    comm->revoked = true;
    atomic_store(&comm->abort, 1);
    result = drain(comm);
    atomic_store(&comm->abort, 0);
    return result;
}
EMULATED_ALIAS(ncclCommRevoke);

/* In NCCL since 2.29.7, so nccl.h may lack these two. The work in flight ends first. */
#pragma GCC visibility push(default)
ncclResult_t pncclCommSuspend(ncclComm_t comm, int flags);
ncclResult_t pncclCommResume(ncclComm_t comm);
#pragma GCC visibility pop

ncclResult_t pncclCommSuspend(ncclComm_t comm, int flags)
{
    ENTER_API();
    ncclResult_t result = emulated_comm_ready(comm, "ncclCommSuspend");
    if (result != ncclSuccess) {
        return result;
    }
    if (flags != 1 || comm->suspended) {
        WARN("ncclCommSuspend : flags %d, suspended %d", flags, comm->suspended);
        return ncclInvalidUsage;
    }
    comm->suspended = true;
    return drain(comm);
}
EMULATED_ALIAS(ncclCommSuspend);

ncclResult_t pncclCommResume(ncclComm_t comm)
{
    ENTER_API();
    ncclResult_t result = emulated_comm_ready(comm, "ncclCommResume");
    if (result != ncclSuccess) {
        return result;
    }
    if (!comm->suspended) {
        WARN("ncclCommResume : communicator %p is not suspended", (void *)comm);
        return ncclInvalidUsage;
    }
    comm->suspended = false;
    return ncclSuccess;
}
EMULATED_ALIAS(ncclCommResume);

ncclResult_t pncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    ENTER_API();
    ncclResult_t result = emulated_comm_check(comm, "ncclGetAsyncError");
    if (result != ncclSuccess) {
        return result;
    }
    if (error == NULL) {
        WARN("ncclGetAsyncError : asyncError argument is NULL");
        return ncclInvalidArgument;
    }
    *error = (ncclResult_t)atomic_load(&comm->async_error);
    return ncclSuccess;
}
EMULATED_ALIAS(ncclCommGetAsyncError);

static ncclResult_t query(ncclComm_t comm, const char *function, const int *value, int *out)
{
    ncclResult_t result = emulated_comm_ready(comm, function);
    if (result != ncclSuccess) {
        return result;
    }
    if (out == NULL) {
        WARN("%s : the result argument is NULL", function);
        return ncclInvalidArgument;
    }
    *out = *value;
    return ncclSuccess;
}

ncclResult_t pncclCommCount(const ncclComm_t comm, int *count)
{
    ENTER_API();
    return query(comm, "CommCount", comm != NULL ? &comm->nranks : NULL, count);
}
EMULATED_ALIAS(ncclCommCount);

ncclResult_t pncclCommCuDevice(const ncclComm_t comm, int *device)
{
    ENTER_API();
    return query(comm, "CommCuDevice", comm != NULL ? &comm->device : NULL, device);
}
EMULATED_ALIAS(ncclCommCuDevice);

ncclResult_t pncclCommUserRank(const ncclComm_t comm, int *rank)
{
    ENTER_API();
    return query(comm, "CommUserRank", comm != NULL ? &comm->rank : NULL, rank);
}
EMULATED_ALIAS(ncclCommUserRank);
