/* SPDX-License-Identifier: Apache-2.0 */
/* The first all-reduce on a communicator: exchange records, decide, map each other's memory, agree
 * that all did. */
#ifndef LAMPREY_PLUGIN_SETUP_H
#define LAMPREY_PLUGIN_SETUP_H

#include "plugin/comm.h"

/* Blocks until every rank of the communicator is here, then leaves it SERVED or REFUSED, which is
 * logged once with the reason. REFUSED too if NCCL fails or the communicator is aborted meanwhile:
 * then NCCL's next call tells. BROKEN if the exchange can't go on for a local reason (no memory at
 * all). Legal inside a stream capture. */
void lamprey_setup(struct lamprey_comm *comm);

/* The same for several communicators at once, so that none waits for another's peers. */
void lamprey_setup_all(struct lamprey_comm *const *comms, size_t count);

#endif
