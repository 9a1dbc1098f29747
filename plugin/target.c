/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/target.h"

#include "plugin/api.h"
#include "plugin/attach.h"
#include "plugin/group.h"
#include "plugin/setup.h"
#include "plugin/workspaces.h"

/* A communicator that no hooked call has seen belongs to the one NCCL of the process. */
static struct lamprey_comm *find(ncclComm_t handle)
{
    struct lamprey_comm *comm = lamprey_comm_find(handle);
    if (!comm && lamprey_attach_loaded("call") == 1) {
        comm = lamprey_comm_discover(&lamprey_nccls[0], handle);
    }
    return comm;
}

ncclResult_t lamprey_target_comm(struct lamprey_target *target, ncclComm_t comm)
{
    target->argument = "comm";
    target->comm = atomic_load(&lamprey_forked) ? NULL : find(comm);
    return target->comm ? ncclSuccess
                        : lamprey_api_fail(ncclInvalidArgument,
                                           "%s: comm is no communicator that Lamprey knows; where "
                                           "a process has several NCCLs, call ncclAllReduce on it "
                                           "first",
                                           target->function);
}

ncclResult_t lamprey_target_workspace(struct lamprey_target *target, lampreyWorkspace_t workspace)
{
    target->argument = "workspace";
    if (!workspace) {
        return lamprey_api_fail(ncclInvalidArgument, "%s: workspace is NULL", target->function);
    }
    target->comm = lamprey_workspaces_find(workspace);
    return target->comm
               ? ncclSuccess
               : lamprey_api_fail(ncclInvalidArgument, "%s: workspace is none, or was destroyed",
                                  target->function);
}

ncclResult_t lamprey_target_admit(const struct lamprey_target *target)
{
    const struct lamprey_nccl *nccl = target->comm->nccl;
    return nccl && lamprey_group_open(nccl)
               ? lamprey_api_fail(ncclInvalidUsage,
                                  "%s: it may not stand between ncclGroupStart and ncclGroupEnd",
                                  target->function)
               : ncclSuccess;
}

ncclResult_t lamprey_target_ready(const struct lamprey_target *target)
{
    const char *function = target->function;
    const char *argument = target->argument;
    struct lamprey_comm *comm = target->comm;
    if (comm->nccl && atomic_load(&comm->state) == LAMPREY_COMM_NEW) {
        lamprey_setup(comm);
    }
    switch (atomic_load(&comm->state)) {
    case LAMPREY_COMM_SERVED:
        return ncclSuccess;
    case LAMPREY_COMM_NEW:
        return lamprey_api_fail(ncclInvalidUsage,
                                "%s: %s isn't complete; lampreyWorkspaceCreateFromHandles comes "
                                "first",
                                function, argument);
    case LAMPREY_COMM_BROKEN:
        return lamprey_api_fail(atomic_load(&comm->failure), "%s: %s's set-up failed", function,
                                argument);
    case LAMPREY_COMM_ABORTED:
        return lamprey_api_fail(ncclInternalError, "%s: %s is aborted", function, argument);
    case LAMPREY_COMM_CLOSED:
        return lamprey_api_fail(ncclInvalidUsage, "%s: %s is finalized or revoked", function,
                                argument);
    default:
        return lamprey_api_fail(ncclInvalidUsage, "%s: %s isn't served; NCCL_DEBUG=INFO says why",
                                function, argument);
    }
}
