/* SPDX-License-Identifier: Apache-2.0 */
/* What NCCL's functions become. Every wrapper passes on what it doesn't know and is re-entrant,
 * since NCCL calls some of its own public names. */
#include <stdbool.h>
#include <stddef.h>

#include "plugin/check.h"
#include "plugin/group.h"
#include "plugin/launch.h"
#include "plugin/nccl.h"
#include "plugin/setup.h"

atomic_bool lamprey_forked;

static bool passive(void)
{
    return atomic_load_explicit(&lamprey_forked, memory_order_relaxed);
}

/* ---- all-reduce ---- */

static enum lamprey_counter counter_of(enum lamprey_decision decision)
{
    switch (decision) {
    case LAMPREY_NOT_TYPE:
        return LAMPREY_COUNT_fallback_type;
    case LAMPREY_NOT_OPERATOR:
        return LAMPREY_COUNT_fallback_operator;
    case LAMPREY_NOT_EMPTY:
        return LAMPREY_COUNT_fallback_empty;
    case LAMPREY_NOT_SIZE:
    case LAMPREY_SERVE:
        break;
    }
    return LAMPREY_COUNT_fallback_size;
}

/* A call that NCCL runs, in order with ours. */
struct passage {
    struct lamprey_comm *comm;
    struct lamprey_workspace *workspace; /* NULL: nothing of ours to keep in order with */
    struct lamprey_order_step step;
};

/* comm may be NULL; the caller keeps its reference until leave_passage. */
static void enter_passage(struct lamprey_nccl *nccl, struct lamprey_comm *comm, cudaStream_t stream,
                          struct passage *passage)
{
    struct lamprey_workspace *workspace = comm ? atomic_load(&comm->workspace) : NULL;
    bool pushed = false;
    passage->comm = comm;
    passage->workspace = NULL;
    if (workspace && lamprey_group_open(nccl)) {
        lamprey_group_refuses(comm, (CUstream)stream);
        lamprey_group_note(comm, (CUstream)stream);
    } else if (workspace && lamprey_device_enter(comm->device, &pushed) == LAMPREY_OK) {
        if (lamprey_order_before(&comm->order, workspace, (CUstream)stream, &passage->step) ==
            LAMPREY_OK) {
            passage->workspace = workspace;
        }
        lamprey_device_leave(comm->device, pushed);
    }
}

static void leave_passage(cudaStream_t stream, struct passage *passage)
{
    struct lamprey_comm *comm = passage->comm;
    bool pushed = false;
    if (passage->workspace && lamprey_device_enter(comm->device, &pushed) == LAMPREY_OK) {
        lamprey_order_after(&comm->order, passage->workspace, (CUstream)stream, &passage->step);
        lamprey_device_leave(comm->device, pushed);
    }
}

/* NCCL's all-reduces are checked too: another rank's may be ours. */
static ncclResult_t check(struct lamprey_nccl *nccl, struct lamprey_comm *comm,
                          const struct lamprey_call *call)
{
    if (lamprey_group_open(nccl)) {
        return lamprey_group_check(comm, call) ? ncclSuccess
                                               : lamprey_group_fail(nccl, ncclSystemError);
    }
    return lamprey_check_call(comm, call);
}

static ncclResult_t pass_on(struct lamprey_nccl *nccl, struct lamprey_comm *comm,
                            const struct lamprey_call *call)
{
    const cudaStream_t stream = (cudaStream_t)call->stream;
    struct passage passage;
    ncclResult_t result = comm->agreed.check ? check(nccl, comm, call) : ncclSuccess;
    if (result != ncclSuccess) {
        return result;
    }
    enter_passage(nccl, comm, stream, &passage);
    result = LAMPREY_ORIGINAL(nccl, AllReduce)(call->send, call->recv, call->count, call->type,
                                               call->op, comm->handle, stream);
    leave_passage(stream, &passage);
    return result;
}

/* Until the group ends, where NCCL would refuse it at once if it saw the group's streams. */
static ncclResult_t hold(struct lamprey_nccl *nccl, struct lamprey_comm *comm,
                         const struct lamprey_call *call)
{
    if (lamprey_group_refuses(comm, call->stream)) {
        return pass_on(nccl, comm, call);
    }
    return lamprey_group_hold(comm, call) ? ncclSuccess : lamprey_group_fail(nccl, ncclSystemError);
}

static ncclResult_t serve_or_pass_on(struct lamprey_nccl *nccl, struct lamprey_comm *comm,
                                     const struct lamprey_call *call)
{
    const bool grouped = lamprey_group_open(nccl);
    const enum lamprey_decision kind = lamprey_decide_kind(call->count, call->type, call->op);
    if (kind != LAMPREY_SERVE) {
        lamprey_count(&comm->counters, counter_of(kind));
        return pass_on(nccl, comm, call);
    }
    /* No rank can run it, so it isn't a decision between two that can: NCCL says what is wrong. */
    if (!call->send || !call->recv) {
        return pass_on(nccl, comm, call);
    }
    if (atomic_load(&comm->state) == LAMPREY_COMM_NEW) {
        if (!lamprey_decide_setup(call->count, call->type)) {
            lamprey_count(&comm->counters, LAMPREY_COUNT_fallback_size);
            return pass_on(nccl, comm, call);
        }
        if (grouped) {
            return hold(nccl, comm, call);
        }
        lamprey_setup(comm);
    }
    switch (atomic_load(&comm->state)) {
    case LAMPREY_COMM_SERVED:
        break;
    case LAMPREY_COMM_BROKEN:
        lamprey_count(&comm->counters, LAMPREY_COUNT_failed);
        return lamprey_group_fail(nccl, atomic_load(&comm->failure));
    case LAMPREY_COMM_ABORTED:
        return lamprey_group_fail(nccl, ncclInternalError); /* as NCCL's own waits end */
    case LAMPREY_COMM_CLOSED:
    case LAMPREY_COMM_SUSPENDED:
        lamprey_count(&comm->counters, LAMPREY_COUNT_fallback_closed);
        return pass_on(nccl, comm, call);
    default:
        lamprey_count(&comm->counters, LAMPREY_COUNT_fallback_communicator);
        return pass_on(nccl, comm, call);
    }
    const enum lamprey_decision decision =
        lamprey_decide(&comm->agreed, call->count, call->type, call->op);
    if (decision != LAMPREY_SERVE) {
        lamprey_count(&comm->counters, counter_of(decision));
        return pass_on(nccl, comm, call);
    }
    return grouped ? hold(nccl, comm, call) : lamprey_launch(comm, call, 1, false);
}

static ncclResult_t on_AllReduce(struct lamprey_nccl *nccl, const void *send, void *recv,
                                 size_t count, ncclDataType_t type, ncclRedOp_t op,
                                 ncclComm_t handle, cudaStream_t stream)
{
    const struct lamprey_call call = {send, recv, count, type, op, (CUstream)stream};
    struct lamprey_comm *comm = passive() ? NULL : lamprey_comm_discover(nccl, handle);
    if (!comm || comm->nccl != nccl) {
        lamprey_comm_release(comm);
        return LAMPREY_ORIGINAL(nccl, AllReduce)(send, recv, count, type, op, handle, stream);
    }
    ncclResult_t result = serve_or_pass_on(nccl, comm, &call);
    lamprey_comm_release(comm);
    return result;
}

/* ---- groups ---- */

static ncclResult_t on_GroupStart(struct lamprey_nccl *nccl)
{
    ncclResult_t result = LAMPREY_ORIGINAL(nccl, GroupStart)();
    if (result == ncclSuccess) {
        lamprey_group_enter(nccl);
    }
    return result;
}

static ncclResult_t on_GroupEnd(struct lamprey_nccl *nccl)
{
    return lamprey_group_end(nccl);
}

static ncclResult_t on_GroupSimulateEnd(struct lamprey_nccl *nccl, void *info)
{
    lamprey_group_surrender(nccl);
    ncclResult_t result = LAMPREY_ORIGINAL(nccl, GroupSimulateEnd)(info);
    lamprey_group_drop(nccl);
    return result;
}

/* ---- life-cycle ---- */

/* What the configuration of a communicator that was made says of this process's. Returns result. */
static ncclResult_t note_config(struct lamprey_nccl *nccl, ncclResult_t result,
                                const ncclConfig_t *config)
{
    if (!config || (result != ncclSuccess && result != ncclInProgress)) {
        return result;
    }
    if (config->blocking == 0) {
        atomic_store(&nccl->nonblocking, true);
    }
    /* A child takes what its parent was made with; a program may know a shorter struct. */
    if (config->splitShare == 1 ||
        (config->size >= offsetof(ncclConfig_t, shrinkShare) + sizeof config->shrinkShare &&
         config->shrinkShare == 1)) {
        atomic_store(&nccl->shares_resources, true);
    }
    return result;
}

static void forget(ncclComm_t handle)
{
    struct lamprey_comm *comm = lamprey_comm_find(handle);
    if (comm) {
        lamprey_comm_remove(comm);
        lamprey_comm_release(comm);
    }
}

/* A fresh communicator may have the address of one that went away unseen. Inside a group the handle
 * may not be written yet: what stands there may be a living communicator's. */
static ncclResult_t made(struct lamprey_nccl *nccl, ncclResult_t result, const ncclComm_t *comm)
{
    if (passive()) {
        return result;
    }
    lamprey_hooks_refresh(atomic_load(&nccl->hooks));
    if ((result == ncclSuccess || result == ncclInProgress) && comm && *comm &&
        !lamprey_group_open(nccl)) {
        forget(*comm);
    }
    return result;
}

static void close_comm(ncclComm_t handle, enum lamprey_ending ending)
{
    if (!passive()) {
        lamprey_comm_close(handle, ending);
    }
}

static ncclResult_t on_CommInitRank(struct lamprey_nccl *nccl, ncclComm_t *comm, int nranks,
                                    ncclUniqueId id, int rank)
{
    return made(nccl, LAMPREY_ORIGINAL(nccl, CommInitRank)(comm, nranks, id, rank), comm);
}

static ncclResult_t on_CommInitAll(struct lamprey_nccl *nccl, ncclComm_t *comms, int ndev,
                                   const int *devices)
{
    ncclResult_t result = LAMPREY_ORIGINAL(nccl, CommInitAll)(comms, ndev, devices);
    for (int i = 0; result == ncclSuccess && comms && i < ndev; i++) {
        made(nccl, result, &comms[i]);
    }
    return result;
}

static ncclResult_t on_CommInitRankConfig(struct lamprey_nccl *nccl, ncclComm_t *comm, int nranks,
                                          ncclUniqueId id, int rank, ncclConfig_t *config)
{
    ncclResult_t result =
        LAMPREY_ORIGINAL(nccl, CommInitRankConfig)(comm, nranks, id, rank, config);
    return made(nccl, note_config(nccl, result, config), comm);
}

static ncclResult_t on_CommInitRankScalable(struct lamprey_nccl *nccl, ncclComm_t *comm, int nranks,
                                            int rank, int nids, ncclUniqueId *ids,
                                            ncclConfig_t *config)
{
    ncclResult_t result =
        LAMPREY_ORIGINAL(nccl, CommInitRankScalable)(comm, nranks, rank, nids, ids, config);
    return made(nccl, note_config(nccl, result, config), comm);
}

static ncclResult_t on_CommSplit(struct lamprey_nccl *nccl, ncclComm_t comm, int color, int key,
                                 ncclComm_t *child, ncclConfig_t *config)
{
    ncclResult_t result = LAMPREY_ORIGINAL(nccl, CommSplit)(comm, color, key, child, config);
    return made(nccl, note_config(nccl, result, config), child);
}

static ncclResult_t on_CommShrink(struct lamprey_nccl *nccl, ncclComm_t comm, int *exclude,
                                  int exclude_count, ncclComm_t *child, ncclConfig_t *config,
                                  int flags)
{
    const int shrink_abort = 1; /* NCCL_SHRINK_ABORT: what is in flight on the parent must leave */
    if (flags & shrink_abort) {
        close_comm(comm, LAMPREY_REVOKED);
    }
    ncclResult_t result =
        LAMPREY_ORIGINAL(nccl, CommShrink)(comm, exclude, exclude_count, child, config, flags);
    return made(nccl, note_config(nccl, result, config), child);
}

static ncclResult_t on_CommGrow(struct lamprey_nccl *nccl, ncclComm_t comm, int nranks,
                                const ncclUniqueId *id, int rank, ncclComm_t *child,
                                ncclConfig_t *config)
{
    ncclResult_t result = LAMPREY_ORIGINAL(nccl, CommGrow)(comm, nranks, id, rank, child, config);
    return made(nccl, note_config(nccl, result, config), child);
}

/* Finalized means that the work in flight is done. */
static void finish(struct lamprey_comm *comm)
{
    lamprey_comm_close(comm->handle, LAMPREY_FINALIZED);
    lamprey_comm_drain(comm, -1);
}

/* Also one without an all-reduce so far is known from now on: its first one is NCCL's to refuse. */
static ncclResult_t on_CommFinalize(struct lamprey_nccl *nccl, ncclComm_t handle)
{
    struct lamprey_comm *comm = passive() ? NULL : lamprey_comm_discover(nccl, handle);
    if (comm) {
        finish(comm);
        lamprey_comm_release(comm);
    }
    return LAMPREY_ORIGINAL(nccl, CommFinalize)(handle);
}

/* The entry stays in the table until NCCL has let the communicator go, so that an abort finds it
 * and no call takes the dying handle for a new one. */
static ncclResult_t on_CommDestroy(struct lamprey_nccl *nccl, ncclComm_t handle)
{
    struct lamprey_comm *comm = passive() ? NULL : lamprey_comm_find(handle);
    if (comm) {
        finish(comm);
    }
    ncclResult_t result = LAMPREY_ORIGINAL(nccl, CommDestroy)(handle);
    if (comm) {
        lamprey_comm_remove(comm);
        lamprey_comm_release(comm);
        lamprey_workspace_reap();
    }
    return result;
}

static ncclResult_t on_CommAbort(struct lamprey_nccl *nccl, ncclComm_t handle)
{
    struct lamprey_comm *comm = passive() ? NULL : lamprey_comm_find(handle);
    if (comm) {
        lamprey_comm_close(handle, LAMPREY_ABORTED);
        lamprey_comm_await_setup(comm);
    }
    ncclResult_t result = LAMPREY_ORIGINAL(nccl, CommAbort)(handle);
    if (comm) {
        lamprey_comm_remove(comm);
        lamprey_comm_drain(comm, 50);
        lamprey_comm_release(comm);
        lamprey_workspace_reap();
    }
    return result;
}

/* With flags NCCL refuses, and the communicator lives on. */
static ncclResult_t on_CommRevoke(struct lamprey_nccl *nccl, ncclComm_t handle, int flags)
{
    struct lamprey_comm *comm =
        passive() || flags != 0 ? NULL : lamprey_comm_discover(nccl, handle);
    if (comm) {
        lamprey_comm_close(handle, LAMPREY_REVOKED);
        lamprey_comm_release(comm);
    }
    return LAMPREY_ORIGINAL(nccl, CommRevoke)(handle, flags);
}

static void change_state(ncclComm_t handle, enum lamprey_comm_state from,
                         enum lamprey_comm_state to)
{
    struct lamprey_comm *comm = passive() ? NULL : lamprey_comm_find(handle);
    if (comm) {
        atomic_compare_exchange_strong(&comm->state, &from, to);
        lamprey_comm_release(comm);
    }
}

static ncclResult_t on_CommSuspend(struct lamprey_nccl *nccl, ncclComm_t comm, int flags)
{
    ncclResult_t result = LAMPREY_ORIGINAL(nccl, CommSuspend)(comm, flags);
    if (result == ncclSuccess) {
        change_state(comm, LAMPREY_COMM_SERVED, LAMPREY_COMM_SUSPENDED);
    }
    return result;
}

static ncclResult_t on_CommResume(struct lamprey_nccl *nccl, ncclComm_t comm)
{
    ncclResult_t result = LAMPREY_ORIGINAL(nccl, CommResume)(comm);
    if (result == ncclSuccess) {
        change_state(comm, LAMPREY_COMM_SUSPENDED, LAMPREY_COMM_SERVED);
    }
    return result;
}

static ncclResult_t on_CommGetAsyncError(struct lamprey_nccl *nccl, ncclComm_t handle,
                                         ncclResult_t *error)
{
    ncclResult_t result = LAMPREY_ORIGINAL(nccl, CommGetAsyncError)(handle, error);
    struct lamprey_comm *comm = passive() ? NULL : lamprey_comm_find(handle);
    struct lamprey_workspace *workspace = comm ? atomic_load(&comm->workspace) : NULL;
    if (result == ncclSuccess && *error == ncclSuccess && workspace &&
        (lamprey_workspace_timed_out(workspace) || lamprey_check_failed(workspace))) {
        *error = lamprey_check_failed(workspace) ? ncclInvalidUsage : ncclRemoteError;
    }
    lamprey_comm_release(comm);
    return result;
}

/* ---- collectives that stay NCCL's ---- */

#define LAMPREY_LIST(...) __VA_ARGS__

#define LAMPREY_ORDERED(name, parameters, arguments)                                               \
    static ncclResult_t on_##name(struct lamprey_nccl *nccl, LAMPREY_LIST parameters)              \
    {                                                                                              \
        struct lamprey_comm *known = passive() ? NULL : lamprey_comm_find(comm);                   \
        struct passage passage;                                                                    \
        enter_passage(nccl, known, stream, &passage);                                              \
        ncclResult_t result = LAMPREY_ORIGINAL(nccl, name) arguments;                              \
        leave_passage(stream, &passage);                                                           \
        lamprey_comm_release(known);                                                               \
        return result;                                                                             \
    }
LAMPREY_NCCL_ORDERED(LAMPREY_ORDERED)

/* ---- one copy of every wrapper per image, since a wrapper can't tell otherwise who called it ----
 */

#define LAMPREY_CALL_(function, nccl, ...) function(nccl __VA_OPT__(, ) __VA_ARGS__)
#define LAMPREY_CALL(...) LAMPREY_CALL_(__VA_ARGS__)

#define LAMPREY_WRAPPER(image, name, parameters, arguments)                                        \
    static ncclResult_t wrapper_##image##_##name parameters                                        \
    {                                                                                              \
        struct lamprey_nccl *nccl = &lamprey_nccls[image];                                         \
        (void)LAMPREY_ORIGINAL(nccl, name); /* whoever is here sees what attach.c wrote */         \
        return LAMPREY_CALL(on_##name, nccl, LAMPREY_LIST arguments);                              \
    }
#define LAMPREY_WRAPPER_0(name, parameters, arguments)                                             \
    LAMPREY_WRAPPER(0, name, parameters, arguments)
#define LAMPREY_WRAPPER_1(name, parameters, arguments)                                             \
    LAMPREY_WRAPPER(1, name, parameters, arguments)
#define LAMPREY_WRAPPER_2(name, parameters, arguments)                                             \
    LAMPREY_WRAPPER(2, name, parameters, arguments)
#define LAMPREY_WRAPPER_3(name, parameters, arguments)                                             \
    LAMPREY_WRAPPER(3, name, parameters, arguments)
#define LAMPREY_WRAPPERS(image)                                                                    \
    LAMPREY_NCCL_INTERCEPTED(LAMPREY_WRAPPER_##image)                                              \
    LAMPREY_NCCL_ORDERED(LAMPREY_WRAPPER_##image)

LAMPREY_WRAPPERS(0)
LAMPREY_WRAPPERS(1)
LAMPREY_WRAPPERS(2)
LAMPREY_WRAPPERS(3)

#define LAMPREY_ENTRY_0(name, parameters, arguments) (void *)wrapper_0_##name,
#define LAMPREY_ENTRY_1(name, parameters, arguments) (void *)wrapper_1_##name,
#define LAMPREY_ENTRY_2(name, parameters, arguments) (void *)wrapper_2_##name,
#define LAMPREY_ENTRY_3(name, parameters, arguments) (void *)wrapper_3_##name,
#define LAMPREY_ENTRIES(image)                                                                     \
    {                                                                                              \
        LAMPREY_NCCL_INTERCEPTED(LAMPREY_ENTRY_##image)                                            \
        LAMPREY_NCCL_ORDERED(LAMPREY_ENTRY_##image)                                                \
    }

void *const lamprey_replacements[LAMPREY_MAX_IMAGES][64] = {LAMPREY_ENTRIES(0), LAMPREY_ENTRIES(1),
                                                            LAMPREY_ENTRIES(2), LAMPREY_ENTRIES(3)};
