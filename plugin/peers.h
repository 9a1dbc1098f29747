/* SPDX-License-Identifier: Apache-2.0 */
/* Staging memory in the other ranks' reach: offered before a vote, mapped after it. Inside a
 * process it is mapped once more; on one host descriptors go through mailboxes; across hosts fabric
 * handles travel in the votes. */
#ifndef LAMPREY_PLUGIN_PEERS_H
#define LAMPREY_PLUGIN_PEERS_H

#include "plugin/comm.h"
#include "plugin/mailbox.h"

struct lamprey_peers {
    const struct lamprey_comm *comm;
    const struct lamprey_record *records;  /* of all ranks */
    const struct lamprey_mailbox *mailbox; /* that the own record names */
    struct lamprey_workspace *workspace;   /* own, with room for the peers' */
    int descriptor;                        /* of its memory while that is offered; -1: none */
};

/* Lets the process's other ranks find the memory, and names it for other processes: in the vote, or
 * by a descriptor. To be withdrawn, also after a failure. */
enum lamprey_status lamprey_peers_offer(struct lamprey_peers *peers, struct lamprey_vote *vote);
void lamprey_peers_withdraw(struct lamprey_peers *peers);

/* Sends the descriptor, if there is one, to the host's other processes. */
enum lamprey_status lamprey_peers_send(const struct lamprey_peers *peers);

/* Maps every peer's memory, which all have offered and send. votes: all ranks', as offered.
 * timeout_ms: the wait for one descriptor. *rank: the one whose memory can't be mapped, or -1 where
 * that isn't known. */
enum lamprey_status lamprey_peers_map(const struct lamprey_peers *peers,
                                      const struct lamprey_vote *votes, int timeout_ms, int *rank);

#endif
