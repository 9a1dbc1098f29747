/* SPDX-License-Identifier: Apache-2.0 */
/* Joining a world by handles that the caller carries between the ranks, once: what NCCL's exchange
 * would tell before the memory is there travels with it, and the last vote goes through the memory
 * itself. */
#ifndef LAMPREY_PLUGIN_HANDLES_H
#define LAMPREY_PLUGIN_HANDLES_H

#include "plugin/join.h"
#include "plugin/lamprey.h"

/* A rank's; all handles of a world have the same lanes and sharing. */
struct lamprey_handle {
    struct lamprey_record record;
    struct lamprey_vote offer; /* names the memory */
    uint32_t lanes;            /* for which it has room */
    uint32_t sharing;          /* enum lamprey_sharing */
};

/* Between a rank's offer and its joining. */
struct lamprey_handles {
    struct lamprey_join join;
    struct lamprey_handle own;
};

/* Lanes of a workspace of at most so many bytes, rounded up as drivers do; 0: not even one. */
uint32_t lamprey_handles_lanes(uint32_t nranks, uint64_t most_bytes);

/* A handle that says why its rank can't take part. */
void lamprey_handle_refuse(struct lamprey_handle *handle, uint32_t rank, uint32_t nranks,
                           const char *reason);

/* Makes comm's workspace and fills handles->own. A failure stands in its record too, with the
 * reason, and leaves nothing to give back but comm. The device's context must be current and the
 * thread's capture mode relaxed, here and below. */
enum lamprey_status lamprey_handles_offer(struct lamprey_handles *handles,
                                          struct lamprey_comm *comm, uint32_t lanes,
                                          enum lamprey_sharing sharing);

/* Takes the offer back, whether the rank has joined or not; also where the context is lost. */
void lamprey_handles_close(struct lamprey_handles *handles);

/* Are these all ranks' handles? reason: else why not, by the handle's name. Waits for nobody. */
bool lamprey_handles_fit(const struct lamprey_handles *handles,
                         const lampreyWorkspaceHandle_t *given, char *reason, size_t reason_size);

/* With handles that fit: waits for every rank, and leaves comm SERVED, or REFUSED with the reason.
 * LAMPREY_ERROR_TIMEOUT: some rank didn't come within timeout_ms, or couldn't go on. */
enum lamprey_status lamprey_handles_join(struct lamprey_handles *handles,
                                         const lampreyWorkspaceHandle_t *given, uint32_t timeout_ms,
                                         char *reason, size_t reason_size);

#endif
