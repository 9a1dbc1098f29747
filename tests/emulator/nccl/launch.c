/* SPDX-License-Identifier: Apache-2.0 */
/* Puts the work of a group on streams. All work of a communicator is in order, whatever streams it
 * is on and whether it is captured: an event stands for its end, waited for and recorded by live
 * work and, as external nodes, by graphs. */
#include "tests/emulator/nccl/internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct payload {
    ncclComm_t comm;
    bool captured;
    size_t count;
    struct emulated_task tasks[];
};

static void run_payload(void *argument)
{
    struct payload *payload = argument;
    ncclComm_t comm = payload->comm;
    pthread_mutex_lock(&comm->life);
    if (comm->destroyed) {
        WARN("Work of communicator %p runs after its end", (void *)comm);
    } else {
        emulated_execute(comm, payload->tasks, payload->count);
    }
    pthread_mutex_unlock(&comm->life);
    if (!payload->captured) {
        emulated_comm_drop(comm);
        free(payload);
    }
}

static void free_captured(void *argument)
{
    struct payload *payload = argument;
    emulated_comm_drop(payload->comm);
    free(payload);
}

/* The graph owns the payload and a reference to the communicator. */
static ncclResult_t give_to_graph(CUgraph graph, struct payload *payload)
{
    CUuserObject object = NULL;
    ncclResult_t result = CUDA_TRY(
        cuUserObjectCreate(&object, payload, free_captured, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC));
    if (result != ncclSuccess) {
        free(payload);
        return result;
    }
    payload->captured = true;
    atomic_fetch_add(&payload->comm->references, 1);
    result = CUDA_TRY(cuGraphRetainUserObject(graph, object, 1, CU_GRAPH_USER_OBJECT_MOVE));
    if (result != ncclSuccess) {
        cuUserObjectRelease(object, 1);
    }
    return result;
}

struct capture {
    CUstreamCaptureStatus status;
    cuuint64_t id;
    CUgraph graph;
};

static ncclResult_t look(CUstream stream, struct capture *capture, const CUgraphNode **nodes,
                         size_t *count)
{
    memset(capture, 0, sizeof(*capture));
    ncclResult_t result = CUDA_TRY(cuStreamGetCaptureInfo_v3(stream, &capture->status, &capture->id,
                                                             &capture->graph, nodes, NULL, count));
    if (result == ncclSuccess && capture->status == CU_STREAM_CAPTURE_STATUS_INVALIDATED) {
        WARN("The stream's capture is no longer valid");
        return ncclInvalidUsage;
    }
    return result;
}

static ncclResult_t launch_captured(ncclComm_t comm, CUstream stream, const struct capture *capture,
                                    struct payload *payload)
{
    ncclResult_t result = give_to_graph(capture->graph, payload);
    if (result != ncclSuccess) {
        return result;
    }
    if (comm->capture_id == capture->id) {
        result = CUDA_TRY(cuStreamUpdateCaptureDependencies_v2(stream, &comm->capture_node, NULL, 1,
                                                               CU_STREAM_ADD_CAPTURE_DEPENDENCIES));
    } else {
        result = CUDA_TRY(cuStreamWaitEvent(stream, comm->serial, CU_EVENT_WAIT_EXTERNAL));
    }
    if (result == ncclSuccess) {
        result = CUDA_TRY(cuLaunchHostFunc(stream, run_payload, payload));
    }
    if (result == ncclSuccess) {
        result = CUDA_TRY(cuEventRecordWithFlags(comm->serial, stream, CU_EVENT_RECORD_EXTERNAL));
    }
    const CUgraphNode *nodes = NULL;
    size_t count = 0;
    struct capture after;
    if (result == ncclSuccess) {
        result = look(stream, &after, &nodes, &count);
    }
    if (result == ncclSuccess && count > 0) {
        comm->capture_id = capture->id;
        comm->capture_node = nodes[0];
    }
    return result;
}

static ncclResult_t launch_live(ncclComm_t comm, CUstream stream, struct payload *payload)
{
    ncclResult_t result = CUDA_TRY(cuStreamWaitEvent(stream, comm->serial, CU_EVENT_WAIT_DEFAULT));
    if (result == ncclSuccess) {
        atomic_fetch_add(&comm->references, 1); /* an abort may come before the work runs */
        result = CUDA_TRY(cuLaunchHostFunc(stream, run_payload, payload));
        if (result != ncclSuccess) {
            emulated_comm_drop(comm);
        }
    }
    if (result != ncclSuccess) {
        free(payload);
        return result;
    }
    return CUDA_TRY(cuEventRecord(comm->serial, stream));
}

static ncclResult_t launch_one(ncclComm_t comm, CUstream stream, const struct emulated_task *tasks,
                               size_t count)
{
    struct capture capture;
    ncclResult_t result = look(stream, &capture, NULL, NULL);
    if (result != ncclSuccess) {
        return result;
    }
    struct payload *payload = calloc(1, sizeof(*payload) + count * sizeof(*tasks));
    if (payload == NULL) {
        return ncclSystemError;
    }
    payload->comm = comm;
    payload->count = count;
    memcpy(payload->tasks, tasks, count * sizeof(*tasks));
    if (capture.status == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        return launch_captured(comm, stream, &capture, payload);
    }
    return launch_live(comm, stream, payload);
}

/* The streams of one communicator in a group: the first carries the work, the others join before
 * and wait after. */
static ncclResult_t join_streams(ncclComm_t comm, const struct emulated_task *tasks, size_t count,
                                 bool before)
{
    ncclResult_t result = ncclSuccess;
    CUstream first = tasks[0].stream;
    if (!before) {
        bool several = false;
        for (size_t i = 1; i < count; i++) {
            several = several || tasks[i].stream != first;
        }
        if (!several) {
            return ncclSuccess;
        }
        result = CUDA_TRY(cuEventRecord(comm->join, first));
    }
    for (size_t i = 1; i < count && result == ncclSuccess; i++) {
        if (tasks[i].stream == first) {
            continue;
        }
        if (before) {
            result = CUDA_TRY(cuEventRecord(comm->join, tasks[i].stream));
        }
        if (result == ncclSuccess) {
            result = CUDA_TRY(cuStreamWaitEvent(before ? first : tasks[i].stream, comm->join, 0));
        }
    }
    return result;
}

ncclResult_t emulated_same_capture(CUstream one, CUstream other)
{
    struct capture first;
    struct capture second;
    ncclResult_t result = one != other ? look(one, &first, NULL, NULL) : ncclSuccess;
    if (one != other && result == ncclSuccess) {
        result = look(other, &second, NULL, NULL);
    }
    if (one != other && result == ncclSuccess &&
        (second.status != first.status || second.id != first.id)) {
        WARN("Streams given to a communicator within a group must either be all uncaptured or all "
             "captured by the same graph.");
        result = ncclInvalidUsage;
    }
    return result;
}

static bool is_transfer(const struct emulated_task *task)
{
    return task->kind == TASK_SEND || task->kind == TASK_RECV;
}

static ncclResult_t launch_comm(ncclComm_t comm, struct emulated_task *tasks, size_t count)
{
    ncclResult_t result = CUDA_TRY(cuCtxPushCurrent(comm->context));
    if (result != ncclSuccess) {
        return result;
    }
    CUdevice device = 0;
    size_t collectives = 0;
    struct emulated_task *transfers = calloc(count, sizeof(*transfers));
    size_t transfer_count = 0;
    CUstream stream = tasks[0].stream;
    result = transfers != NULL ? CUDA_TRY(cuStreamGetDevice(stream, &device)) : ncclSystemError;
    if (result == ncclSuccess && device != comm->device) {
        result = CUDA_TRY(CUDA_ERROR_INVALID_HANDLE); /* as the launch of a kernel would say */
    }
    if (result == ncclSuccess) {
        result = join_streams(comm, tasks, count, true);
    }
    for (size_t i = 0; i < count && result == ncclSuccess; i++) {
        if (is_transfer(&tasks[i])) {
            transfers[transfer_count++] = tasks[i];
            continue;
        }
        collectives++;
        result = comm->nranks > 1 ? emulated_plugins_collective(&tasks[i], (int)collectives)
                                  : ncclSuccess;
        if (result == ncclSuccess) {
            result = launch_one(comm, stream, &tasks[i], 1);
        }
    }
    if (result == ncclSuccess && transfer_count > 0) {
        result = launch_one(comm, stream, transfers, transfer_count);
    }
    if (result == ncclSuccess) {
        result = join_streams(comm, tasks, count, false);
    }
    free(transfers);
    cuCtxPopCurrent(NULL);
    return result;
}

ncclResult_t emulated_launch(struct emulated_task *tasks, size_t count)
{
    struct emulated_task *mine = calloc(count, sizeof(*mine));
    if (mine == NULL) {
        return ncclSystemError;
    }
    ncclResult_t result = ncclSuccess;
    for (size_t i = 0; i < count && result == ncclSuccess; i++) {
        ncclComm_t comm = tasks[i].comm;
        if (comm == NULL) {
            continue; /* gathered before */
        }
        size_t mine_count = 0;
        for (size_t j = i; j < count; j++) {
            if (tasks[j].comm == comm) {
                mine[mine_count++] = tasks[j];
                tasks[j].comm = NULL;
            }
        }
        result = emulated_comm_hold(comm); /* another thread may have aborted it meanwhile */
        if (result == ncclSuccess) {
            result = launch_comm(comm, mine, mine_count);
            emulated_comm_let_go(comm);
        }
    }
    free(mine);
    return result;
}

struct later {
    size_t count;
    struct emulated_task tasks[];
};

static void *launch_later(void *argument)
{
    struct later *later = argument;
    struct emulated_task *tasks = calloc(later->count, sizeof(*tasks));
    ncclResult_t result = ncclSystemError;
    const struct timespec pause = {.tv_nsec = 2000000}; /* so that who doesn't wait is found out */
    nanosleep(&pause, NULL);
    if (tasks != NULL) {
        memcpy(tasks, later->tasks, later->count * sizeof(*tasks));
        result = emulated_launch(tasks, later->count);
    }
    for (size_t i = 0; i < later->count; i++) {
        int busy = ncclInProgress;
        atomic_compare_exchange_strong(&later->tasks[i].comm->async_error, &busy, result);
        emulated_comm_drop(later->tasks[i].comm);
    }
    free(tasks);
    free(later);
    return NULL;
}

ncclResult_t emulated_launch_later(const struct emulated_task *tasks, size_t count)
{
    struct later *later = calloc(1, sizeof(*later) + count * sizeof(*tasks));
    pthread_t thread;
    if (later == NULL) {
        return ncclSystemError;
    }
    later->count = count;
    memcpy(later->tasks, tasks, count * sizeof(*tasks));
    for (size_t i = 0; i < count; i++) {
        atomic_fetch_add(&tasks[i].comm->references, 1);
        atomic_store(&tasks[i].comm->async_error, ncclInProgress);
    }
    if (pthread_create(&thread, NULL, launch_later, later) != 0) {
        for (size_t i = 0; i < count; i++) {
            atomic_store(&tasks[i].comm->async_error, ncclSystemError);
            emulated_comm_drop(tasks[i].comm);
        }
        free(later);
        return ncclSystemError;
    }
    pthread_detach(thread);
    return ncclInProgress;
}
