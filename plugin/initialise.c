/* SPDX-License-Identifier: Apache-2.0 */
/* Workspaces back in the state of new ones. */
#include "plugin/api.h"
#include "plugin/exchange.h"
#include "plugin/target.h"

#define LEAVING_MS 5000 /* within which kernels leave after an abort */

static bool is_aborted(const struct lamprey_comm *comm)
{
    return !comm->nccl && comm->agreed.served && atomic_load(&comm->state) == LAMPREY_COMM_ABORTED;
}

static ncclResult_t initialise(const struct lamprey_target *target)
{
    struct lamprey_comm *comm = target->comm;
    struct lamprey_workspace *workspace = atomic_load(&comm->workspace);
    struct lamprey_exchange exchange;
    struct lamprey_visit visit;
    if (!lamprey_comm_drain(comm, is_aborted(comm) ? LEAVING_MS : -1)) {
        return lamprey_api_fail(ncclInternalError, "%s: a call is still under way",
                                target->function);
    }
    enum lamprey_status status = lamprey_visit_begin(comm->device, &visit);
    if (!status) {
        if (is_aborted(comm)) {
            atomic_store(&comm->aborted, false);
        }
        status = lamprey_exchange_open(comm, &exchange);
        if (!status) {
            status = lamprey_workspace_clear(workspace, exchange.stream);
            status = status ? status : lamprey_exchange_wait(&exchange);
            lamprey_exchange_close(&exchange);
        }
        lamprey_visit_end(&visit);
    }
    if (status) {
        return lamprey_api_fail(ncclUnhandledCudaError, "%s: %s can't be cleared (%s)",
                                target->function, target->argument, lamprey_status_name(status));
    }
    lamprey_workspace_rearm(workspace);
    if (is_aborted(comm)) {
        atomic_store(&comm->state, LAMPREY_COMM_SERVED);
    }
    return ncclSuccess;
}

static ncclResult_t find_to_initialise(struct lamprey_target *target, lampreyWorkspace_t workspace)
{
    ncclResult_t result = lamprey_target_workspace(target, workspace);
    if (result == ncclSuccess) {
        result = lamprey_target_admit(target);
    }
    return result != ncclSuccess || is_aborted(target->comm) ? result
                                                             : lamprey_target_ready(target);
}

static ncclResult_t initialise_list(const char *function, const lampreyWorkspace_t *list,
                                    size_t count)
{
    ncclResult_t result = ncclSuccess;
    for (int pass = 0; pass < 2; pass++) { /* looks at all of them before it touches one */
        for (size_t i = 0; i < count && result == ncclSuccess; i++) {
            struct lamprey_target target = {.function = function};
            result = find_to_initialise(&target, list[i]);
            if (result == ncclSuccess && pass == 1) {
                result = initialise(&target);
            }
            lamprey_comm_release(target.comm);
        }
    }
    return result;
}

ncclResult_t lampreyLamportInitialize(lampreyWorkspace_t workspace)
{
    lamprey_api_begin();
    return initialise_list("lampreyLamportInitialize", &workspace, 1);
}

ncclResult_t lampreyLamportInitializeAll(const lampreyWorkspace_t *workspaces, size_t count)
{
    lamprey_api_begin();
    if (!workspaces && count > 0) {
        return lamprey_api_fail(ncclInvalidArgument,
                                "lampreyLamportInitializeAll: workspaces is NULL");
    }
    return initialise_list("lampreyLamportInitializeAll", workspaces, count);
}
