/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/workspaces.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/api.h"
#include "plugin/handles.h"
#include "plugin/log.h"
#include "plugin/target.h"

#define DEFAULT_BYTES (16ull << 20)
#define DEFAULT_TIMEOUT_MS 60000
#define LEAVING_MS 5000 /* within which kernels leave after an abort */

_Static_assert(sizeof(struct lampreyWorkspaceArgs) == 40 &&
                   sizeof(lampreyWorkspaceHandle_t) == LAMPREY_HANDLE_BYTES,
               "programs in other languages know them");

struct lampreyWorkspace {
    struct lampreyWorkspace *next;
    struct lamprey_comm *comm;
    struct lamprey_handles *handles; /* until the creation from them begins */
    uint32_t timeout_ms;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* held for look-ups only */
static struct lampreyWorkspace *workspaces;

static struct lampreyWorkspace **find_locked(lampreyWorkspace_t workspace)
{
    struct lampreyWorkspace **link = &workspaces;
    while (*link && *link != workspace) {
        link = &(*link)->next;
    }
    return link;
}

struct lamprey_comm *lamprey_workspaces_find(lampreyWorkspace_t workspace)
{
    if (!workspace || atomic_load(&lamprey_forked)) {
        return NULL;
    }
    pthread_mutex_lock(&mutex);
    const struct lampreyWorkspace *found = *find_locked(workspace);
    struct lamprey_comm *comm = found ? found->comm : NULL;
    if (comm) {
        atomic_fetch_add(&comm->references, 1);
    }
    pthread_mutex_unlock(&mutex);
    return comm;
}

static void add(struct lampreyWorkspace *workspace)
{
    pthread_mutex_lock(&mutex);
    workspace->next = workspaces;
    workspaces = workspace;
    pthread_mutex_unlock(&mutex);
}

static struct lampreyWorkspace *remove_from_list(lampreyWorkspace_t workspace)
{
    pthread_mutex_lock(&mutex);
    struct lampreyWorkspace **link = find_locked(workspace);
    struct lampreyWorkspace *found = *link;
    if (found) {
        *link = found->next;
    }
    pthread_mutex_unlock(&mutex);
    return found;
}

/* A workspace's own handles, for who first comes with all ranks'. NULL: result and
 * lampreyGetLastError say why. */
static struct lamprey_handles *take_handles(const char *function, lampreyWorkspace_t workspace,
                                            const lampreyWorkspaceHandle_t *given, uint32_t count,
                                            uint32_t *timeout_ms, ncclResult_t *result)
{
    char reason[256] = "";
    pthread_mutex_lock(&mutex);
    struct lampreyWorkspace *found = *find_locked(workspace);
    struct lamprey_handles *handles = found ? found->handles : NULL;
    if (!handles) {
        *result = lamprey_api_fail(ncclInvalidUsage,
                                   "%s: workspace isn't one of lampreyWorkspaceExport that waits "
                                   "for handles",
                                   function);
    } else if (count != (uint32_t)found->comm->nranks) {
        *result = lamprey_api_fail(ncclInvalidArgument,
                                   "%s: count is %u, but workspace's world has %d ranks", function,
                                   count, found->comm->nranks);
        handles = NULL;
    } else if (!lamprey_handles_fit(handles, given, reason, sizeof reason)) {
        *result = lamprey_api_fail(ncclInvalidArgument, "%s: %s", function, reason);
        handles = NULL;
    } else {
        *timeout_ms = found->timeout_ms;
        found->handles = NULL;
    }
    pthread_mutex_unlock(&mutex);
    return handles;
}

static ncclResult_t no_memory(const char *function)
{
    return lamprey_api_fail(ncclSystemError, "%s: no host memory", function);
}

static ncclResult_t check_size(const char *function, uint32_t nranks, uint64_t *most_bytes)
{
    if (nranks < 2 || nranks > LAMPREY_MAX_RANKS) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: nranks is %u, not 2 to %d", function,
                                nranks, LAMPREY_MAX_RANKS);
    }
    *most_bytes = *most_bytes ? *most_bytes : DEFAULT_BYTES;
    return *most_bytes < LAMPREY_MEMORY_GRANULARITY || *most_bytes > LAMPREY_STAGING_CAP
               ? lamprey_api_fail(ncclInvalidArgument, "%s: most_bytes is %llu, not 2 to 64 MiB",
                                  function, (unsigned long long)*most_bytes)
               : ncclSuccess;
}

ncclResult_t lampreyWorkspaceSize(uint32_t nranks, uint64_t most_bytes, uint64_t *bytes,
                                  uint64_t *handle_bytes)
{
    lamprey_api_begin();
    if (!bytes) {
        return lamprey_api_fail(ncclInvalidArgument, "lampreyWorkspaceSize: bytes is NULL");
    }
    ncclResult_t result = check_size("lampreyWorkspaceSize", nranks, &most_bytes);
    if (result != ncclSuccess) {
        return result;
    }
    const uint64_t used = lamprey_workspace_bytes(nranks, lamprey_handles_lanes(nranks, most_bytes),
                                                  LAMPREY_SLOT_CELLS);
    *bytes = lamprey_divide_up(used, LAMPREY_MEMORY_GRANULARITY) * LAMPREY_MEMORY_GRANULARITY;
    if (handle_bytes) {
        *handle_bytes = sizeof(lampreyWorkspaceHandle_t);
    }
    return ncclSuccess;
}

ncclResult_t lampreyWorkspaceCreate(ncclComm_t comm, lampreyWorkspace_t *workspace)
{
    struct lamprey_target target = {.function = "lampreyWorkspaceCreate"};
    lamprey_api_begin();
    if (!comm || !workspace) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: %s is NULL", target.function,
                                comm ? "workspace" : "comm");
    }
    struct lampreyWorkspace *made = calloc(1, sizeof *made);
    ncclResult_t result = made ? lamprey_target_comm(&target, comm) : no_memory(target.function);
    if (result == ncclSuccess) {
        result = lamprey_target_admit(&target);
    }
    if (result == ncclSuccess) {
        result = lamprey_target_ready(&target);
    }
    if (result != ncclSuccess) {
        lamprey_comm_release(target.comm);
        free(made);
        return result;
    }
    made->comm = target.comm;
    add(made);
    *workspace = made;
    return ncclSuccess;
}

static ncclResult_t check_export(const char *function, const struct lampreyWorkspaceArgs *args,
                                 const void *handle, const void *workspace)
{
    if (!args || !handle || !workspace) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: %s is NULL", function,
                                !args     ? "args"
                                : !handle ? "handle"
                                          : "workspace");
    }
    if (args->size != sizeof *args) {
        return lamprey_api_fail(ncclInvalidArgument,
                                "%s: args->size isn't that of any version of struct "
                                "lampreyWorkspaceArgs",
                                function);
    }
    if (args->rank >= args->nranks) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: rank is %u, nranks %u", function,
                                args->rank, args->nranks);
    }
    if (args->device < 0) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: device is %d", function, args->device);
    }
    if (args->timeout_ms > INT32_MAX) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: timeout_ms is %u", function,
                                args->timeout_ms);
    }
    return args->flags & ~LAMPREY_WORKSPACE_ACROSS_HOSTS
               ? lamprey_api_fail(ncclInvalidArgument,
                                  "%s: flags has bits that mean nothing (0x%x)", function,
                                  args->flags)
               : ncclSuccess;
}

/* What is made is in workspace, also after a failure. */
static enum lamprey_status offer(struct lampreyWorkspace *workspace,
                                 const struct lampreyWorkspaceArgs *args, uint32_t lanes)
{
    struct lamprey_handle *own = &workspace->handles->own;
    struct lamprey_device *device = NULL;
    struct lamprey_visit visit;
    enum lamprey_status status = lamprey_device_get(args->device, &device);
    if (!status) {
        workspace->comm = lamprey_comm_make(device, (int)args->rank, (int)args->nranks);
        status = workspace->comm ? lamprey_visit_begin(device, &visit) : LAMPREY_ERROR_MEMORY;
    }
    if (status) {
        char reason[96];
        snprintf(reason, sizeof reason, "GPU %d can't be opened (%s)", args->device,
                 lamprey_status_name(status));
        lamprey_handle_refuse(own, args->rank, args->nranks, reason);
        return status;
    }
    status = lamprey_handles_offer(
        workspace->handles, workspace->comm, lanes,
        args->flags & LAMPREY_WORKSPACE_ACROSS_HOSTS ? LAMPREY_BY_FABRIC : LAMPREY_BY_DESCRIPTOR);
    lamprey_visit_end(&visit);
    return status;
}

ncclResult_t lampreyWorkspaceExport(const struct lampreyWorkspaceArgs *args,
                                    lampreyWorkspaceHandle_t *handle, lampreyWorkspace_t *workspace)
{
    static const char function[] = "lampreyWorkspaceExport";
    lamprey_api_begin();
    ncclResult_t result = check_export(function, args, handle, workspace);
    uint64_t most_bytes = result == ncclSuccess ? args->most_bytes : 0;
    if (result == ncclSuccess) {
        result = check_size(function, args->nranks, &most_bytes);
    }
    if (result != ncclSuccess) {
        return result;
    }
    struct lampreyWorkspace *made = calloc(1, sizeof *made);
    struct lamprey_handles *handles = calloc(1, sizeof *handles);
    if (!made || !handles) {
        free(made);
        free(handles);
        return no_memory(function);
    }
    made->handles = handles;
    made->timeout_ms = args->timeout_ms ? args->timeout_ms : DEFAULT_TIMEOUT_MS;
    enum lamprey_status status = offer(made, args, lamprey_handles_lanes(args->nranks, most_bytes));
    memset(handle, 0, sizeof *handle);
    memcpy(handle->internal, &handles->own, sizeof handles->own);
    *workspace = status ? NULL : made;
    if (!status) {
        add(made);
        return ncclSuccess;
    }
    result = lamprey_api_fail(ncclSystemError, "%s: this rank can't take part: %s", function,
                              handles->own.record.reason);
    lamprey_comm_release(made->comm);
    lamprey_workspace_reap();
    free(handles);
    free(made);
    return result;
}

static void report(const struct lamprey_comm *comm, enum lamprey_status status, const char *reason)
{
    const struct lamprey_workspace *workspace = atomic_load(&comm->workspace);
    if (status) {
        lamprey_info("a workspace of rank %d of %d isn't served: %s", comm->rank, comm->nranks,
                     reason);
    } else {
        lamprey_info("a workspace of rank %d of %d is served (%s, %u lanes, %llu KiB staging "
                     "memory)",
                     comm->rank, comm->nranks,
                     workspace->own.sharing == LAMPREY_BY_FABRIC ? "fabric handles" : "one host",
                     comm->agreed.lanes, (unsigned long long)(workspace->own.bytes >> 10));
    }
}

static ncclResult_t join(const char *function, struct lamprey_handles *handles,
                         const lampreyWorkspaceHandle_t *given, uint32_t timeout_ms)
{
    struct lamprey_comm *comm = handles->join.comm;
    char reason[256] = "";
    struct lamprey_visit visit;
    enum lamprey_status status = lamprey_visit_begin(comm->device, &visit);
    const bool visiting = !status;
    if (visiting) {
        status = lamprey_handles_join(handles, given, timeout_ms, reason, sizeof reason);
    }
    lamprey_handles_close(handles);
    if (visiting) {
        lamprey_visit_end(&visit);
    }
    report(comm, status, reason);
    if (!status) {
        return ncclSuccess;
    }
    return lamprey_api_fail(status == LAMPREY_ERROR_TIMEOUT   ? ncclRemoteError
                            : status == LAMPREY_ERROR_ABORTED ? ncclInternalError
                                                              : ncclSystemError,
                            "%s: %s", function, reason[0] ? reason : lamprey_status_name(status));
}

ncclResult_t lampreyWorkspaceCreateFromHandles(lampreyWorkspace_t workspace,
                                               const lampreyWorkspaceHandle_t *handles,
                                               uint32_t count)
{
    struct lamprey_target target = {.function = "lampreyWorkspaceCreateFromHandles"};
    uint32_t timeout_ms = 0;
    lamprey_api_begin();
    if (!handles) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: handles is NULL", target.function);
    }
    ncclResult_t result = lamprey_target_workspace(&target, workspace);
    if (result != ncclSuccess) {
        return result;
    }
    struct lamprey_handles *own =
        take_handles(target.function, workspace, handles, count, &timeout_ms, &result);
    if (own) {
        result = join(target.function, own, handles, timeout_ms);
        free(own);
    }
    lamprey_comm_release(target.comm);
    return result;
}

ncclResult_t lampreyWorkspaceDestroy(lampreyWorkspace_t workspace)
{
    lamprey_api_begin();
    if (!workspace) {
        return ncclSuccess;
    }
    struct lampreyWorkspace *found = remove_from_list(workspace);
    if (!found) {
        return lamprey_api_fail(ncclInvalidArgument,
                                "lampreyWorkspaceDestroy: workspace is none, or was destroyed");
    }
    struct lamprey_comm *comm = found->comm;
    if (found->handles) {
        struct lamprey_visit visit;
        const bool visiting = lamprey_visit_begin(comm->device, &visit) == LAMPREY_OK;
        lamprey_handles_close(found->handles);
        if (visiting) {
            lamprey_visit_end(&visit);
        }
    }
    if (!comm->nccl && !lamprey_comm_drain(comm, -1)) {
        lamprey_comm_drain(comm, LEAVING_MS); /* aborted */
    }
    lamprey_comm_release(comm);
    lamprey_workspace_reap();
    free(found->handles);
    free(found);
    return ncclSuccess;
}

ncclResult_t lampreyWorkspaceAbort(lampreyWorkspace_t workspace)
{
    struct lamprey_target target = {.function = "lampreyWorkspaceAbort"};
    lamprey_api_begin();
    ncclResult_t result = lamprey_target_workspace(&target, workspace);
    if (result == ncclSuccess && target.comm->nccl) {
        result = lamprey_api_fail(ncclInvalidUsage,
                                  "%s: workspace is a communicator's: call ncclCommAbort",
                                  target.function);
    } else if (result == ncclSuccess) {
        lamprey_comm_end(target.comm, LAMPREY_ABORTED);
    }
    lamprey_comm_release(target.comm);
    return result;
}
