/* SPDX-License-Identifier: Apache-2.0 */
/* What a thread does between ncclGroupStart and ncclGroupEnd of an image: our all-reduces are held
 * back and go out once the outermost End has launched NCCL's own part. */
#ifndef LAMPREY_PLUGIN_GROUP_H
#define LAMPREY_PLUGIN_GROUP_H

#include "plugin/launch.h"

/* True between Start and End in this thread. */
bool lamprey_group_open(const struct lamprey_nccl *nccl);

/* Start and its undoing. A GroupEnd that was never started here (we came in the middle) isn't
 * counted. */
void lamprey_group_enter(const struct lamprey_nccl *nccl);

/* Holds a call back; takes a reference of comm. False: no memory. */
bool lamprey_group_hold(struct lamprey_comm *comm, const struct lamprey_call *call);

/* Would NCCL refuse a call of comm on stream, since the group has a call of comm outside of the
 * stream's capture? Then NCCL has been given the call that we hold, so that it sees both. */
bool lamprey_group_refuses(struct lamprey_comm *comm, CUstream stream);

/* Returns result; in a group also makes it the group's, of which nothing will run. */
ncclResult_t lamprey_group_fail(const struct lamprey_nccl *nccl, ncclResult_t result);

/* Has NCCL's own all-reduce of a checked communicator checked before NCCL launches it. False: no
 * memory. */
bool lamprey_group_check(struct lamprey_comm *comm, const struct lamprey_call *call);

/* Notes that NCCL's own part has work of comm on stream, which must be kept in order with ours. */
void lamprey_group_note(struct lamprey_comm *comm, CUstream stream);

/* ncclGroupEnd. */
ncclResult_t lamprey_group_end(struct lamprey_nccl *nccl);

/* Gives the held calls of an outermost group to NCCL after all, so that its simulation sees them.
 */
void lamprey_group_surrender(struct lamprey_nccl *nccl);

/* One End less without launching anything (ncclGroupSimulateEnd). */
void lamprey_group_drop(const struct lamprey_nccl *nccl);

#endif
