/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/handles.h"

#include <stdio.h>
#include <string.h>

#include "kernels/plan.h"
#include "plugin/config.h"
#include "plugin/selftest.h"

_Static_assert(sizeof(struct lamprey_handle) <= LAMPREY_HANDLE_BYTES, "fits");

uint32_t lamprey_handles_lanes(uint32_t nranks, uint64_t most_bytes)
{
    const uint64_t room = most_bytes / LAMPREY_MEMORY_GRANULARITY * LAMPREY_MEMORY_GRANULARITY;
    uint32_t lanes = (uint32_t)lamprey_config_get()->max_ctas;
    while (lanes > 0 && lamprey_workspace_bytes(nranks, lanes, LAMPREY_SLOT_CELLS) > room) {
        lanes--;
    }
    return lanes;
}

void lamprey_handle_refuse(struct lamprey_handle *handle, uint32_t rank, uint32_t nranks,
                           const char *reason)
{
    struct lamprey_record *record = &handle->record;
    record->magic = LAMPREY_RECORD_MAGIC;
    record->version = LAMPREY_RECORD_VERSION;
    record->bytes = sizeof *record;
    record->rank = rank;
    record->nranks = nranks;
    record->refuses = 1;
    snprintf(record->reason, sizeof record->reason, "%s", reason);
}

enum lamprey_status lamprey_handles_offer(struct lamprey_handles *handles,
                                          struct lamprey_comm *comm, uint32_t lanes,
                                          enum lamprey_sharing sharing)
{
    struct lamprey_join *join = &handles->join;
    struct lamprey_handle *own = &handles->own;
    memset(own, 0, sizeof *own);
    own->lanes = lanes;
    own->sharing = sharing;
    enum lamprey_status status = lamprey_join_open(join, comm);
    if (status) {
        lamprey_handle_refuse(own, (uint32_t)comm->rank, (uint32_t)comm->nranks,
                              lamprey_status_name(status));
        return status;
    }
    lamprey_join_describe(join, &own->record);
    if (!own->record.refuses) {
        join->records[comm->rank] = own->record; /* the others', unknown, are other processes' */
        lamprey_join_offer(join, lanes, LAMPREY_SLOT_CELLS, sharing, &own->offer);
        atomic_store(&comm->workspace, join->workspace);
    }
    if (own->offer.refuses) {
        lamprey_handle_refuse(own, own->record.rank, own->record.nranks, own->offer.reason);
    }
    if (own->record.refuses) {
        lamprey_join_close(join);
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    return LAMPREY_OK;
}

void lamprey_handles_close(struct lamprey_handles *handles)
{
    lamprey_join_close(&handles->join);
}

static void unpack(const lampreyWorkspaceHandle_t *given, struct lamprey_handle *handle)
{
    memcpy(handle, given->internal, sizeof *handle);
}

bool lamprey_handles_fit(const struct lamprey_handles *handles,
                         const lampreyWorkspaceHandle_t *given, char *reason, size_t reason_size)
{
    const struct lamprey_comm *comm = handles->join.comm;
    for (int rank = 0; rank < comm->nranks; rank++) {
        struct lamprey_handle handle;
        unpack(&given[rank], &handle);
        if (handle.record.magic != LAMPREY_RECORD_MAGIC) {
            snprintf(reason, reason_size, "handles[%d] is no handle", rank);
        } else if (handle.record.version != LAMPREY_RECORD_VERSION) {
            snprintf(reason, reason_size, "handles[%d] is another version's", rank);
        } else if (handle.record.nranks != (uint32_t)comm->nranks) {
            snprintf(reason, reason_size, "handles[%d] is of a world of %u ranks, not %d", rank,
                     handle.record.nranks, comm->nranks);
        } else if (handle.record.rank != (uint32_t)rank) {
            snprintf(reason, reason_size, "handles[%d] is rank %u's", rank, handle.record.rank);
        } else if (rank == comm->rank && memcmp(&handle, &handles->own, sizeof handle) != 0) {
            snprintf(reason, reason_size, "handles[%d] isn't what this workspace's export gave",
                     rank);
        } else {
            continue;
        }
        return false;
    }
    return true;
}

/* By the handles alone, so all ranks find the same. */
static bool agree(struct lamprey_handles *handles, const lampreyWorkspaceHandle_t *given,
                  struct lamprey_agreed *agreed, char *reason, size_t reason_size)
{
    struct lamprey_join *join = &handles->join;
    const int nranks = join->comm->nranks;
    struct lamprey_handle first;
    unpack(&given[0], &first);
    for (int rank = 0; rank < nranks; rank++) {
        struct lamprey_handle handle;
        unpack(&given[rank], &handle);
        join->records[rank] = handle.record;
        join->votes[rank] = handle.offer;
    }
    *agreed = lamprey_agree(join->records, nranks, reason, reason_size);
    for (int rank = 0; rank < nranks && agreed->served; rank++) {
        struct lamprey_handle handle;
        unpack(&given[rank], &handle);
        if (handle.lanes != first.lanes || handle.sharing != first.sharing) {
            snprintf(reason, reason_size, "ranks 0 and %d exported with different %s", rank,
                     handle.lanes != first.lanes ? "most_bytes" : "flags");
            agreed->served = false;
        }
    }
    if (agreed->served && agreed->across_hosts && first.sharing != LAMPREY_BY_FABRIC) {
        snprintf(reason, reason_size,
                 "the ranks are on several hosts, but flags lacks LAMPREY_WORKSPACE_ACROSS_HOSTS");
        agreed->served = false;
    }
    agreed->lanes = agreed->lanes < first.lanes ? agreed->lanes : first.lanes;
    agreed->row_lanes = agreed->row_lanes < agreed->lanes ? agreed->row_lanes : agreed->lanes;
    return agreed->served;
}

/* Maps, tries, votes. A rank that can't go on has no way to say so before the vote: the others wait
 * for it in the self-test. */
static enum lamprey_status meet(struct lamprey_join *join, const struct lamprey_agreed *agreed,
                                uint32_t timeout_ms, char *reason, size_t reason_size)
{
    struct lamprey_vote vote = {0};
    int refusing = -1;
    lamprey_join_map(join, (int)timeout_ms, &vote);
    if (vote.refuses) {
        snprintf(reason, reason_size, "%s", vote.reason);
        return LAMPREY_ERROR_SYSTEM;
    }
    lamprey_join_try(join, agreed, timeout_ms, &vote);
    enum lamprey_status status = LAMPREY_ERROR_TIMEOUT;
    if (!lamprey_workspace_timed_out(join->workspace)) {
        status = lamprey_selftest_vote(&join->exchange, agreed, join->workspace, timeout_ms,
                                       vote.refuses, &refusing);
    }
    if (status == LAMPREY_ERROR_TIMEOUT) {
        snprintf(reason, reason_size, "a rank didn't come within %u ms, or couldn't go on",
                 timeout_ms);
    } else if (status) {
        snprintf(reason, reason_size, "%s",
                 vote.refuses ? vote.reason : lamprey_status_name(status));
    } else if (refusing >= 0) {
        snprintf(reason, reason_size, "rank %d: stores to the peers' memory don't arrive",
                 refusing);
        status = LAMPREY_ERROR_SYSTEM;
    }
    return status;
}

enum lamprey_status lamprey_handles_join(struct lamprey_handles *handles,
                                         const lampreyWorkspaceHandle_t *given, uint32_t timeout_ms,
                                         char *reason, size_t reason_size)
{
    struct lamprey_join *join = &handles->join;
    struct lamprey_comm *comm = join->comm;
    struct lamprey_agreed agreed;
    enum lamprey_comm_state fresh = LAMPREY_COMM_NEW; /* unless aborted meanwhile */
    enum lamprey_status status = LAMPREY_ERROR_UNSUPPORTED;
    if (agree(handles, given, &agreed, reason, reason_size)) {
        status = meet(join, &agreed, timeout_ms, reason, reason_size);
    }
    if (atomic_load(&comm->aborted)) {
        snprintf(reason, reason_size, "it was aborted");
        status = LAMPREY_ERROR_ABORTED;
    }
    if (!status) {
        comm->agreed = agreed;
        join->workspace->checked = agreed.check;
    }
    atomic_compare_exchange_strong(&comm->state, &fresh,
                                   status ? LAMPREY_COMM_REFUSED : LAMPREY_COMM_SERVED);
    return status;
}
