/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/group.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/check.h"
#include "plugin/setup.h"

struct held {
    struct lamprey_comm *comm;
    struct lamprey_call call;
    size_t turn; /* how many held calls of the same communicator come before */
};

struct noted {
    struct lamprey_comm *comm;
    CUstream stream;
    struct lamprey_order_step step;
    bool ordered;
};

struct group {
    int depth;
    ncclResult_t error; /* the first of ours */
    size_t held_count;
    size_t held_room;
    struct held *held;
    size_t checked_count; /* NCCL's calls that are to be checked */
    size_t checked_room;
    struct held *checked;
    size_t noted_count;
    size_t noted_room;
    struct noted *noted;
};

/* Group depth is a thread's, and an image's. */
static _Thread_local struct group groups[LAMPREY_MAX_IMAGES];

static bool make_room(void **array, size_t *room, size_t count, size_t element)
{
    if (count < *room) {
        return true;
    }
    size_t more = *room ? *room * 2 : 16;
    void *grown = realloc(*array, more * element);
    if (!grown) {
        return false;
    }
    *array = grown;
    *room = more;
    return true;
}

bool lamprey_group_open(const struct lamprey_nccl *nccl)
{
    return groups[nccl->index].depth > 0;
}

void lamprey_group_enter(const struct lamprey_nccl *nccl)
{
    groups[nccl->index].depth++;
}

static bool keep(struct held **list, size_t *room, size_t *count, struct lamprey_comm *comm,
                 const struct lamprey_call *call)
{
    if (!make_room((void **)list, room, *count, sizeof **list)) {
        return false;
    }
    atomic_fetch_add(&comm->references, 1);
    (*list)[(*count)++] = (struct held){.comm = comm, .call = *call};
    return true;
}

bool lamprey_group_hold(struct lamprey_comm *comm, const struct lamprey_call *call)
{
    struct group *group = &groups[comm->nccl->index];
    return keep(&group->held, &group->held_room, &group->held_count, comm, call);
}

bool lamprey_group_check(struct lamprey_comm *comm, const struct lamprey_call *call)
{
    struct group *group = &groups[comm->nccl->index];
    return keep(&group->checked, &group->checked_room, &group->checked_count, comm, call);
}

static ncclResult_t give_to_nccl(const struct held *held)
{
    const struct lamprey_call *call = &held->call;
    return LAMPREY_ORIGINAL(held->comm->nccl, AllReduce)(call->send, call->recv, call->count,
                                                         call->type, call->op, held->comm->handle,
                                                         (cudaStream_t)call->stream);
}

/* 0: none, or the stream can't be asked. */
static cuuint64_t capture_id(const struct lamprey_driver *driver, CUstream stream)
{
    CUstreamCaptureStatus capturing = CU_STREAM_CAPTURE_STATUS_NONE;
    cuuint64_t id = 0;
    CUresult result = driver->StreamGetCaptureInfo(stream, &capturing, &id, NULL, NULL, NULL, NULL);
    return result == CUDA_SUCCESS && capturing == CU_STREAM_CAPTURE_STATUS_ACTIVE ? id : 0;
}

static bool same_capture(const struct lamprey_comm *comm, CUstream one, CUstream other)
{
    bool pushed = false;
    if (one == other || !comm->device || lamprey_device_enter(comm->device, &pushed)) {
        return true;
    }
    const struct lamprey_driver *driver = comm->device->driver;
    const bool same = capture_id(driver, one) == capture_id(driver, other);
    lamprey_device_leave(comm->device, pushed);
    return same;
}

bool lamprey_group_refuses(struct lamprey_comm *comm, CUstream stream)
{
    const struct group *group = &groups[comm->nccl->index];
    for (size_t i = group->held_count; i-- > 0;) {
        const struct held *held = &group->held[i];
        if (held->comm == comm) {
            const bool refuses = !same_capture(comm, held->call.stream, stream);
            if (refuses) {
                give_to_nccl(held);
            }
            return refuses;
        }
    }
    for (size_t i = group->noted_count; i-- > 0;) {
        if (group->noted[i].comm == comm) {
            return !same_capture(comm, group->noted[i].stream, stream);
        }
    }
    return false;
}

ncclResult_t lamprey_group_fail(const struct lamprey_nccl *nccl, ncclResult_t result)
{
    struct group *group = &groups[nccl->index];
    if (group->depth > 0 && group->error == ncclSuccess) {
        group->error = result;
    }
    return result;
}

static void note(struct group *group, struct lamprey_comm *comm, CUstream stream)
{
    for (size_t i = 0; i < group->noted_count; i++) {
        if (group->noted[i].comm == comm && group->noted[i].stream == stream) {
            return;
        }
    }
    if (make_room((void **)&group->noted, &group->noted_room, group->noted_count,
                  sizeof *group->noted)) {
        atomic_fetch_add(&comm->references, 1);
        group->noted[group->noted_count++] = (struct noted){.comm = comm, .stream = stream};
    }
}

void lamprey_group_note(struct lamprey_comm *comm, CUstream stream)
{
    note(&groups[comm->nccl->index], comm, stream);
}

static void free_group(struct group *group)
{
    for (size_t i = 0; i < group->held_count; i++) {
        lamprey_comm_release(group->held[i].comm);
    }
    for (size_t i = 0; i < group->checked_count; i++) {
        lamprey_comm_release(group->checked[i].comm);
    }
    for (size_t i = 0; i < group->noted_count; i++) {
        lamprey_comm_release(group->noted[i].comm);
    }
    free(group->held);
    free(group->checked);
    free(group->noted);
    memset(group, 0, sizeof *group);
}

static void order_before(struct group *group)
{
    for (size_t i = 0; i < group->noted_count; i++) {
        struct noted *noted = &group->noted[i];
        struct lamprey_workspace *workspace = atomic_load(&noted->comm->workspace);
        bool pushed = false;
        if (workspace && lamprey_device_enter(noted->comm->device, &pushed) == LAMPREY_OK) {
            noted->ordered = lamprey_order_before(&noted->comm->order, workspace, noted->stream,
                                                  &noted->step) == LAMPREY_OK;
            lamprey_device_leave(noted->comm->device, pushed);
        }
    }
}

static void order_after(struct group *group)
{
    for (size_t i = 0; i < group->noted_count; i++) {
        struct noted *noted = &group->noted[i];
        bool pushed = false;
        if (noted->ordered && lamprey_device_enter(noted->comm->device, &pushed) == LAMPREY_OK) {
            lamprey_order_after(&noted->comm->order, atomic_load(&noted->comm->workspace),
                                noted->stream, &noted->step);
            lamprey_device_leave(noted->comm->device, pushed);
        }
    }
}

/* Communicators that meet their first all-reduce in this group. False: no memory. */
static bool set_up_new(struct group *group)
{
    struct lamprey_comm **fresh = calloc(group->held_count, sizeof *fresh);
    size_t count = 0;
    for (size_t i = 0; fresh && i < group->held_count; i++) {
        struct lamprey_comm *comm = group->held[i].comm;
        bool known = atomic_load(&comm->state) != LAMPREY_COMM_NEW;
        for (size_t j = 0; j < count && !known; j++) {
            known = fresh[j] == comm;
        }
        if (!known) {
            fresh[count++] = comm;
        }
    }
    if (fresh && count > 0) {
        lamprey_setup_all(fresh, count);
    }
    free(fresh);
    return fresh != NULL;
}

/* Not ncclSuccess where a communicator can run no all-reduce at all. */
static ncclResult_t failure_of(const struct group *group)
{
    for (size_t i = 0; i < group->held_count; i++) {
        switch (atomic_load(&group->held[i].comm->state)) {
        case LAMPREY_COMM_BROKEN:
            return atomic_load(&group->held[i].comm->failure);
        case LAMPREY_COMM_ABORTED:
            return ncclInternalError;
        default:
            break;
        }
    }
    return ncclSuccess;
}

static bool is_ours(const struct held *held)
{
    return atomic_load(&held->comm->state) == LAMPREY_COMM_SERVED &&
           lamprey_decide(&held->comm->agreed, held->call.count, held->call.type, held->call.op) ==
               LAMPREY_SERVE;
}

/* Non-blocking communicators enqueue in the background; no call may follow before that is done. */
static void wait_while_in_progress(struct lamprey_nccl *nccl, const struct held *held, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct lamprey_comm *comm = held[i].comm;
        ncclResult_t state = ncclInProgress;
        while (state == ncclInProgress && LAMPREY_ORIGINAL(nccl, CommGetAsyncError) &&
               lamprey_comm_enter_nccl(comm)) {
            if (LAMPREY_ORIGINAL(nccl, CommGetAsyncError)(comm->handle, &state) != ncclSuccess) {
                state = ncclInternalError;
            }
            lamprey_comm_leave_nccl(comm);
            sched_yield();
        }
    }
}

/* Turn by turn over the communicators, in the order of their agreed ids: never in call order, which
 * may differ by rank, and never one communicator's whole queue before another's first call. */
static int by_turn(const void *a, const void *b)
{
    const struct held *left = a;
    const struct held *right = b;
    if (left->turn != right->turn) {
        return left->turn < right->turn ? -1 : 1;
    }
    if (left->comm->agreed.id != right->comm->agreed.id) {
        return left->comm->agreed.id < right->comm->agreed.id ? -1 : 1;
    }
    return left->comm->rank - right->comm->rank;
}

static void take_turns(struct held *held, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        held[i].turn = 0;
        for (size_t j = i; j-- > 0;) {
            if (held[j].comm == held[i].comm) {
                held[i].turn = held[j].turn + 1;
                break;
            }
        }
    }
    if (count > 0) {
        qsort(held, count, sizeof *held, by_turn);
    }
}

/* Before NCCL's part of a group, in an order that all ranks have in common. */
static ncclResult_t launch_checks(struct held *calls, size_t count)
{
    ncclResult_t result = ncclSuccess;
    take_turns(calls, count);
    for (size_t i = 0; i < count && result == ncclSuccess; i++) {
        result = lamprey_check_call(calls[i].comm, &calls[i].call);
    }
    return result;
}

/* Held calls that turn out to be NCCL's, as one group of NCCL's, in order with ours. */
static ncclResult_t pass_on(struct lamprey_nccl *nccl, struct held *held, size_t count)
{
    struct group others = {0};
    ncclResult_t result = count > 0 ? LAMPREY_ORIGINAL(nccl, GroupStart)() : ncclSuccess;
    if (count == 0 || result != ncclSuccess) {
        return result;
    }
    for (size_t i = 0; i < count; i++) {
        lamprey_count(&held[i].comm->counters,
                      atomic_load(&held[i].comm->state) == LAMPREY_COMM_SERVED
                          ? LAMPREY_COUNT_fallback_size
                          : LAMPREY_COUNT_fallback_communicator);
        note(&others, held[i].comm, held[i].call.stream);
        give_to_nccl(&held[i]); /* NCCL remembers an error; End returns it */
    }
    const ncclResult_t checked = launch_checks(held, count);
    order_before(&others);
    result = LAMPREY_ORIGINAL(nccl, GroupEnd)();
    if (result == ncclInProgress) {
        wait_while_in_progress(nccl, held, count);
    }
    order_after(&others);
    free_group(&others);
    return checked == ncclSuccess ? result : checked;
}

/* Moves ours to the front, keeping the order; returns how many. */
static size_t partition(struct held *held, size_t count, struct held *scratch)
{
    size_t ours = 0;
    size_t others = 0;
    for (size_t i = 0; i < count; i++) {
        if (is_ours(&held[i])) {
            held[ours++] = held[i];
        } else {
            scratch[others++] = held[i];
        }
    }
    memcpy(held + ours, scratch, others * sizeof *scratch);
    return ours;
}

/* A group over several streams of one communicator joins them, as NCCL's does: every stream's
 * earlier work comes before the group's, and every stream waits for all of it. */
static void join_streams(const struct group *group)
{
    for (size_t i = 0; i < group->noted_count; i++) {
        const struct noted *from = &group->noted[i];
        struct lamprey_workspace *workspace = atomic_load(&from->comm->workspace);
        for (size_t j = 0; workspace && j < group->noted_count; j++) {
            const struct noted *to = &group->noted[j];
            bool pushed = false;
            if (i == j || to->comm != from->comm ||
                lamprey_device_enter(from->comm->device, &pushed) != LAMPREY_OK) {
                continue;
            }
            const struct lamprey_driver *driver = workspace->device->driver;
            if (driver->EventRecord(workspace->join, from->stream) == CUDA_SUCCESS) {
                driver->StreamWaitEvent(to->stream, workspace->join, CU_EVENT_WAIT_DEFAULT);
            }
            lamprey_device_leave(from->comm->device, pushed);
        }
    }
}

static ncclResult_t release_held(struct lamprey_nccl *nccl, struct group *group)
{
    struct held *scratch = malloc(group->held_count * sizeof *scratch);
    if (!scratch || !set_up_new(group)) {
        free(scratch);
        return ncclSystemError;
    }
    ncclResult_t failure = failure_of(group);
    if (failure != ncclSuccess) {
        free(scratch);
        return failure;
    }
    size_t ours = partition(group->held, group->held_count, scratch);
    free(scratch);
    ncclResult_t passed = pass_on(nccl, group->held + ours, group->held_count - ours);
    if (passed != ncclSuccess && passed != ncclInProgress) {
        return passed;
    }
    for (size_t i = 0; i < ours; i++) {
        note(group, group->held[i].comm, group->held[i].call.stream);
    }
    take_turns(group->held, ours);
    join_streams(group);
    ncclResult_t result = ncclSuccess;
    for (size_t i = 0; i < ours && result == ncclSuccess; i++) {
        result = lamprey_launch(group->held[i].comm, &group->held[i].call, true);
    }
    join_streams(group);
    return result == ncclSuccess ? passed : result;
}

ncclResult_t lamprey_group_end(struct lamprey_nccl *nccl)
{
    struct group *current = &groups[nccl->index];
    if (current->depth != 1) {
        current->depth -= current->depth > 0;
        return LAMPREY_ORIGINAL(nccl, GroupEnd)();
    }
    /* From here on the thread is outside: NCCL may call its own public functions while it launches.
     */
    struct group group = *current;
    memset(current, 0, sizeof *current);
    if (group.error != ncclSuccess) { /* NCCL drops a group with a bad call in it */
        LAMPREY_ORIGINAL(nccl, AllReduce)(NULL, NULL, 0, ncclInt8, ncclSum, NULL, NULL);
        LAMPREY_ORIGINAL(nccl, GroupEnd)();
        const ncclResult_t error = group.error;
        free_group(&group);
        return error;
    }
    const ncclResult_t checked = launch_checks(group.checked, group.checked_count);
    order_before(&group);
    ncclResult_t result = LAMPREY_ORIGINAL(nccl, GroupEnd)();
    if (result == ncclInProgress && group.held_count > 0) {
        wait_while_in_progress(nccl, group.held, group.held_count);
        result = ncclSuccess;
    }
    if (result == ncclSuccess || result == ncclInProgress) {
        order_after(&group);
    }
    if (checked != ncclSuccess && result == ncclSuccess) {
        result = checked;
    }
    if (result == ncclSuccess && group.held_count > 0) {
        result = release_held(nccl, &group);
    }
    free_group(&group);
    return result;
}

void lamprey_group_surrender(struct lamprey_nccl *nccl)
{
    struct group *group = &groups[nccl->index];
    for (size_t i = 0; group->depth == 1 && i < group->held_count; i++) {
        give_to_nccl(&group->held[i]);
    }
}

void lamprey_group_drop(const struct lamprey_nccl *nccl)
{
    struct group *group = &groups[nccl->index];
    if (group->depth == 1) {
        free_group(group);
    } else if (group->depth > 1) {
        group->depth--;
    }
}
