/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/peers.h"

#include <string.h>
#include <unistd.h>

#include "plugin/published.h"

#define MAILBOX_TIMEOUT_MS                                                                         \
    10000 /* every rank is past the vote that comes before, so nobody is late by much */

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

enum lamprey_status lamprey_peers_offer(const struct lamprey_peers *peers,
                                        struct lamprey_vote *vote)
{
    const struct lamprey_comm *comm = peers->comm;
    union lamprey_memory_name name;
    enum lamprey_status status = LAMPREY_OK;
    if (sharing(peers) == LAMPREY_BY_FABRIC) {
        status = lamprey_memory_export(comm->device, &peers->workspace->own, &name);
    }
    if (!status) {
        status = lamprey_published_add(peers->records[comm->rank].id, &peers->workspace->own);
    }
    if (!status && sharing(peers) == LAMPREY_BY_FABRIC) {
        memcpy(vote->fabric, &name.fabric, sizeof vote->fabric);
    }
    return status;
}

enum lamprey_status lamprey_peers_send(const struct lamprey_peers *peers)
{
    const struct lamprey_comm *comm = peers->comm;
    union lamprey_memory_name name = {.descriptor = -1};
    bool exported = false;
    enum lamprey_status status = LAMPREY_OK;
    for (int rank = 0; rank < comm->nranks && sharing(peers) == LAMPREY_BY_DESCRIPTOR; rank++) {
        if (same_process(peers, rank)) {
            continue;
        }
        if (!exported) {
            exported = true;
            status = lamprey_memory_export(comm->device, &peers->workspace->own, &name);
        }
        enum lamprey_status sent = lamprey_mailbox_send(peers->records[rank].mailbox,
                                                        (uint32_t)comm->rank, name.descriptor);
        status = status ? status : sent;
    }
    if (name.descriptor >= 0) {
        close(name.descriptor);
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
static enum lamprey_status map_descriptors(const struct lamprey_peers *peers)
{
    const struct lamprey_comm *comm = peers->comm;
    int expected = 0;
    for (int rank = 0; rank < comm->nranks; rank++) {
        expected += !same_process(peers, rank);
    }
    enum lamprey_status status = LAMPREY_OK;
    for (int i = 0; i < expected && !status; i++) {
        union lamprey_memory_name name = {.descriptor = -1};
        uint32_t rank = 0;
        status = lamprey_mailbox_receive(peers->mailbox, MAILBOX_TIMEOUT_MS, &comm->aborted, &rank,
                                         &name.descriptor);
        if (status) {
            return status;
        }
        if (name.descriptor < 0 || rank >= (uint32_t)comm->nranks ||
            same_process(peers, (int)rank) || peers->workspace->peers[rank].address) {
            status = LAMPREY_ERROR_INVALID;
        } else {
            status = import(peers, (int)rank, &name);
        }
        if (name.descriptor >= 0) {
            close(name.descriptor);
        }
    }
    return status;
}

static enum lamprey_status map_fabric(const struct lamprey_peers *peers,
                                      const struct lamprey_vote *votes)
{
    enum lamprey_status status = LAMPREY_OK;
    for (int rank = 0; rank < peers->comm->nranks && !status; rank++) {
        union lamprey_memory_name name;
        memcpy(&name.fabric, votes[rank].fabric, sizeof name.fabric);
        status = same_process(peers, rank) ? LAMPREY_OK : import(peers, rank, &name);
    }
    return status;
}

enum lamprey_status lamprey_peers_map(const struct lamprey_peers *peers,
                                      const struct lamprey_vote *votes)
{
    const struct lamprey_comm *comm = peers->comm;
    enum lamprey_status status = LAMPREY_OK;
    for (int rank = 0; rank < comm->nranks && !status; rank++) {
        if (rank != comm->rank && same_process(peers, rank)) {
            status = lamprey_published_map(peers->records[rank].id, comm->device,
                                           &peers->workspace->peers[rank]);
        }
    }
    if (status) {
        return status;
    }
    return sharing(peers) == LAMPREY_BY_FABRIC ? map_fabric(peers, votes) : map_descriptors(peers);
}
