/* SPDX-License-Identifier: Apache-2.0 */
/* All-gathers of small host records over a communicator's own NCCL, on a private stream, for
 * set-up. */
#ifndef LAMPREY_PLUGIN_EXCHANGE_H
#define LAMPREY_PLUGIN_EXCHANGE_H

#include "plugin/comm.h"

struct lamprey_exchange_buffer;

struct lamprey_exchange {
    struct lamprey_comm *comm;
    CUstream stream; /* private, non-blocking */
    struct lamprey_exchange_buffer *buffer;
    bool nonblocking; /* NCCL has answered ncclInProgress: the communicator must stay NCCL's */
};

/* The device's context must be current and the thread's capture mode relaxed. Close with
 * lamprey_exchange_close. A world without NCCL has the stream alone. */
enum lamprey_status lamprey_exchange_open(struct lamprey_comm *comm,
                                          struct lamprey_exchange *exchange);
void lamprey_exchange_close(struct lamprey_exchange *exchange);

/* Sends own (bytes of host memory) and receives those of all ranks, in rank order, into all. Waits
 * for every rank, as long as it takes, unless the communicator is aborted or reports an error;
 * after 10 s says which ranks are missing. */
enum lamprey_status lamprey_exchange_gather(struct lamprey_exchange *exchange, const void *own,
                                            size_t bytes, void *all);

/* Waits for the private stream in the same way. */
enum lamprey_status lamprey_exchange_wait(struct lamprey_exchange *exchange);

#endif
