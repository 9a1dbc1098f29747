/* SPDX-License-Identifier: Apache-2.0 */
/* The first all-reduce on a communicator: exchange records, decide, map each other's memory, agree
 * that all did. */
#ifndef LAMPREY_PLUGIN_SETUP_H
#define LAMPREY_PLUGIN_SETUP_H

#include "plugin/comm.h"

/* Blocks until every rank of the communicator is here, then leaves it SERVED or REFUSED (logged
 * once, with the reason); LAMPREY_OK in both cases. Any other status: the exchange itself broke
 * (NCCL error, abort); the communicator is REFUSED then, and its NCCL is broken or aborted too.
 * Legal inside a stream capture. */
enum lamprey_status lamprey_setup(struct lamprey_comm *comm);

/* The same for several communicators at once, each in a thread of its own, so that none waits for
 * another's peers. */
void lamprey_setup_all(struct lamprey_comm *const *comms, size_t count);

#endif
