/* SPDX-License-Identifier: Apache-2.0 */
/* What a call of lamprey.h works on: a communicator, or the world of a workspace. */
#ifndef LAMPREY_PLUGIN_TARGET_H
#define LAMPREY_PLUGIN_TARGET_H

#include "plugin/comm.h"
#include "plugin/lamprey.h"

struct lamprey_target {
    const char *function; /* for lampreyGetLastError, as is argument */
    const char *argument;
    struct lamprey_comm *comm; /* with a reference, once found */
};

/* Finds it by a handle that isn't NULL. ncclInvalidArgument: there is none. */
ncclResult_t lamprey_target_comm(struct lamprey_target *target, ncclComm_t comm);
ncclResult_t lamprey_target_workspace(struct lamprey_target *target, lampreyWorkspace_t workspace);

/* May it be called now, as far as this thread knows? */
ncclResult_t lamprey_target_admit(const struct lamprey_target *target);

/* ncclSuccess once it is served: a new communicator is set up, for which all ranks must come. */
ncclResult_t lamprey_target_ready(const struct lamprey_target *target);

#endif
