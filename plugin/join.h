/* SPDX-License-Identifier: Apache-2.0 */
/* The steps by which a rank joins the others of its world, whoever carries records and votes
 * between them: NCCL (setup.c) or the caller (handles.c). */
#ifndef LAMPREY_PLUGIN_JOIN_H
#define LAMPREY_PLUGIN_JOIN_H

#include "plugin/exchange.h"
#include "plugin/mailbox.h"
#include "plugin/peers.h"

struct lamprey_join {
    struct lamprey_comm *comm;
    struct lamprey_exchange exchange;
    struct lamprey_mailbox mailbox;
    struct lamprey_record *records;      /* of all ranks, as are the votes */
    struct lamprey_vote *votes;          /* the latest */
    struct lamprey_workspace *workspace; /* once offered; the caller's to release */
    struct lamprey_peers peers;
};

/* As lamprey_exchange_open. After a failure there is nothing to close. */
enum lamprey_status lamprey_join_open(struct lamprey_join *join, struct lamprey_comm *comm);

/* Takes back what was offered to the peers. */
void lamprey_join_close(struct lamprey_join *join);

/* What this rank says of itself, or why it refuses. Opens its mailbox. */
void lamprey_join_describe(struct lamprey_join *join, struct lamprey_record *record);

/* The following need the records of all ranks, and write into the vote why this rank can't go on.
 *
 * Makes the workspace and names it in the vote. It is cleared when this returns. */
void lamprey_join_offer(struct lamprey_join *join, uint32_t lanes, uint32_t slot_cells,
                        enum lamprey_sharing sharing, struct lamprey_vote *vote);

/* Maps the peers' memory, which all have offered by join->votes. */
void lamprey_join_map(struct lamprey_join *join, int timeout_ms, struct lamprey_vote *vote);

/* Tries stores to all of it, once all ranks have mapped it. */
void lamprey_join_try(struct lamprey_join *join, const struct lamprey_agreed *agreed,
                      uint32_t timeout_ms, struct lamprey_vote *vote);

/* Makes vote a no, for this reason. */
__attribute__((format(printf, 2, 3))) void lamprey_vote_refuse(struct lamprey_vote *vote,
                                                               const char *format, ...);

#endif
