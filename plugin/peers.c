/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/peers.h"

#include <string.h>
#include <unistd.h>

#include "plugin/published.h"

_Static_assert(sizeof((struct lamprey_vote){0}.fabric) == sizeof(CUmemFabricHandle),
               "a vote carries a handle");

static bool same_process(const struct lamprey_peers *peers, int rank)
{
    const struct lamprey_record *own = &peers->records[peers->comm->rank];
    return memcmp(peers->records[rank].process, own->process, sizeof own->process) == 0;
}

static enum lamprey_sharing sharing(const struct lamprey_peers *peers)
{
    return peers->workspace->own.sharing;
}

static int ranks_elsewhere(const struct lamprey_peers *peers)
{
    int count = 0;
    for (int rank = 0; rank < peers->comm->nranks; rank++) {
        count += !same_process(peers, rank);
    }
    return count;
}

enum lamprey_status lamprey_peers_offer(struct lamprey_peers *peers, struct lamprey_vote *vote)
{
    const struct lamprey_comm *comm = peers->comm;
    if (ranks_elsewhere(peers) > 0) {
        union lamprey_memory_name name;
        enum lamprey_status status =
            lamprey_memory_export(comm->device, &peers->workspace->own, &name);
        if (status) {
            return status;
        }
        if (sharing(peers) == LAMPREY_BY_FABRIC) {
            memcpy(vote->fabric, &name.fabric, sizeof vote->fabric);
        } else {
            peers->descriptor = name.descriptor;
        }
    }
    return lamprey_published_add(peers->records[comm->rank].id, &peers->workspace->own);
}

void lamprey_peers_withdraw(struct lamprey_peers *peers)
{
    lamprey_published_remove(peers->records[peers->comm->rank].id);
    if (peers->descriptor >= 0) {
        close(peers->descriptor);
        peers->descriptor = -1;
    }
}

enum lamprey_status lamprey_peers_send(const struct lamprey_peers *peers)
{
    const struct lamprey_comm *comm = peers->comm;
    enum lamprey_status status = LAMPREY_OK;
    for (int rank = 0; rank < comm->nranks && peers->descriptor >= 0; rank++) {
        if (!same_process(peers, rank)) {
            enum lamprey_status sent = lamprey_mailbox_send(
                peers->records[rank].mailbox, (uint32_t)comm->rank, peers->descriptor);
            status = status ? status : sent;
        }
    }
    return status;
}

static enum lamprey_status import(const struct lamprey_peers *peers, int rank,
                                  const union lamprey_memory_name *name)
{
    const struct lamprey_memory *own = &peers->workspace->own;
    return lamprey_memory_import(peers->comm->device, own->sharing, name, own->bytes,
                                 &peers->workspace->peers[rank]);
}

/* In whatever order the descriptors come. */
static enum lamprey_status map_descriptors(const struct lamprey_peers *peers, int timeout_ms,
                                           int *culprit)
{
    const struct lamprey_comm *comm = peers->comm;
    const int expected = ranks_elsewhere(peers);
    enum lamprey_status status = LAMPREY_OK;
    for (int i = 0; i < expected && !status; i++) {
        union lamprey_memory_name name = {.descriptor = -1};
        uint32_t rank = 0;
        *culprit = -1;
        status = lamprey_mailbox_receive(peers->mailbox, timeout_ms, &comm->aborted, &rank,
                                         &name.descriptor);
        if (status) {
            return status;
        }
        if (rank >= (uint32_t)comm->nranks || same_process(peers, (int)rank) ||
            peers->workspace->peers[rank].address) {
            status = LAMPREY_ERROR_INVALID;
        } else {
            *culprit = (int)rank;
            status = import(peers, (int)rank, &name);
        }
        close(name.descriptor);
    }
    return status;
}

static enum lamprey_status map_fabric(const struct lamprey_peers *peers, int rank,
                                      const struct lamprey_vote *vote)
{
    union lamprey_memory_name name;
    memcpy(&name.fabric, vote->fabric, sizeof name.fabric);
    return import(peers, rank, &name);
}

enum lamprey_status lamprey_peers_map(const struct lamprey_peers *peers,
                                      const struct lamprey_vote *votes, int timeout_ms, int *rank)
{
    const struct lamprey_comm *comm = peers->comm;
    enum lamprey_status status = LAMPREY_OK;
    for (int peer = 0; peer < comm->nranks && !status; peer++) {
        *rank = peer;
        if (peer != comm->rank && same_process(peers, peer)) {
            status = lamprey_published_map(peers->records[peer].id, comm->device,
                                           &peers->workspace->peers[peer]);
        } else if (peer != comm->rank && sharing(peers) == LAMPREY_BY_FABRIC) {
            status = map_fabric(peers, peer, &votes[peer]);
        }
    }
    if (!status && sharing(peers) == LAMPREY_BY_DESCRIPTOR) {
        *rank = -1;
        status = map_descriptors(peers, timeout_ms, rank);
    }
    return status;
}
