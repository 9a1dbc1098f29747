/* SPDX-License-Identifier: Apache-2.0 */
/* Keeps all work of a served communicator in call order, ours and NCCL's, whatever streams it is
 * on, as NCCL keeps its own: eager work by an event that is recorded after each piece and waited
 * for when the stream changes; captured work by one external wait before a capture's first piece
 * and one external record after its last, so that replays are ordered with live calls and with
 * other replays. */
#ifndef LAMPREY_PLUGIN_ORDER_H
#define LAMPREY_PLUGIN_ORDER_H

#include <stdbool.h>

#include "plugin/driver.h"
#include "plugin/workspace.h"

#define LAMPREY_CAPTURES 32 /* captures of one communicator that may be under way together */
#define LAMPREY_TIPS 8      /* graph nodes in which one piece of work may end */

struct lamprey_capture {
    cuuint64_t id; /* 0: free */
    uint64_t last_use;
    uint64_t stream;                /* identity of the stream of the latest piece */
    CUgraphNode record;             /* the record node; NULL until the first piece is in */
    size_t tip_count;               /* 0 until the first piece is in */
    CUgraphNode tips[LAMPREY_TIPS]; /* where the latest piece ends */
};

struct lamprey_order {
    bool used;       /* some eager work was recorded */
    bool captured;   /* some capture was ever made: replays record the event behind our back */
    uint64_t stream; /* identity of the stream of the latest eager work */
    uint64_t uses;
    struct lamprey_capture captures[LAMPREY_CAPTURES];
};

/* What one piece of work carries from before to after. */
struct lamprey_order_step {
    uint64_t stream;
    struct lamprey_capture *capture; /* NULL: eager */
    CUgraph graph;
    bool skip; /* captured while the user has switched mixing off */
};

/* Before the work is issued on stream. A communicator's calls come from one thread at a time. */
enum lamprey_status lamprey_order_before(struct lamprey_order *order,
                                         struct lamprey_workspace *workspace, CUstream stream,
                                         struct lamprey_order_step *step);

/* After it was issued. */
enum lamprey_status lamprey_order_after(struct lamprey_order *order,
                                        struct lamprey_workspace *workspace, CUstream stream,
                                        const struct lamprey_order_step *step);

#endif
