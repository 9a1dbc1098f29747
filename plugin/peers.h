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
    const struct lamprey_mailbox *mailbox; /* that own's record names */
    struct lamprey_workspace *workspace;   /* own, with room for the peers' */
};

/* Lets the process's other ranks find the memory, until lamprey_published_remove, and names it for
 * other hosts in the vote where that is how it travels. */
enum lamprey_status lamprey_peers_offer(const struct lamprey_peers *peers,
                                        struct lamprey_vote *vote);

/* Sends the memory's descriptor to the host's other processes, or that there is none: a rank that
 * fails leaves none waiting. Nothing to do where memory travels otherwise. */
enum lamprey_status lamprey_peers_send(const struct lamprey_peers *peers);

/* Maps every peer's memory. votes: all ranks', as offered. */
enum lamprey_status lamprey_peers_map(const struct lamprey_peers *peers,
                                      const struct lamprey_vote *votes);

#endif
