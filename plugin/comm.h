/* SPDX-License-Identifier: Apache-2.0 */
/* What we know of a communicator, in a side table keyed by NCCL's handle, which stays untouched. */
#ifndef LAMPREY_PLUGIN_COMM_H
#define LAMPREY_PLUGIN_COMM_H

#include <stdatomic.h>

#include "plugin/decide.h"
#include "plugin/device.h"
#include "plugin/nccl.h"
#include "plugin/order.h"
#include "plugin/stats.h"
#include "plugin/workspace.h"

enum lamprey_comm_state {
    LAMPREY_COMM_NEW,     /* no exchange yet */
    LAMPREY_COMM_SERVED,  /* all ranks agreed */
    LAMPREY_COMM_REFUSED, /* NCCL's for ever */
    LAMPREY_COMM_BROKEN, /* a local failure inside the exchange: peers may wait there, so neither we
                          * nor NCCL can run an all-reduce */
    LAMPREY_COMM_CLOSED, /* finalized, revoked or aborted */
};

struct lamprey_comm {
    ncclComm_t handle;
    struct lamprey_nccl *nccl;
    struct lamprey_comm *next; /* in the table */
    atomic_uint references;    /* the table's and those of running calls */
    _Atomic(enum lamprey_comm_state) state;
    atomic_bool aborted;   /* ends a set-up's waits */
    atomic_int setting_up; /* set-ups under way: 0 or 1 */
    int rank;
    int nranks;
    struct lamprey_device *device; /* NULL where the GPU couldn't be opened */
    struct lamprey_agreed agreed;
    _Atomic(struct lamprey_workspace *)
        workspace; /* set once served, freed with the communicator */
    struct lamprey_order order;
    struct lamprey_counters counters;
};

/* The communicator with one more reference, or NULL if the table doesn't have it. Takes no lock
 * that a launch or a set-up holds. */
struct lamprey_comm *lamprey_comm_find(ncclComm_t handle);

/* As find, but adds an unknown one. NULL if NCCL says that the handle is no ready communicator. */
struct lamprey_comm *lamprey_comm_discover(struct lamprey_nccl *nccl, ncclComm_t handle);

/* Gives a reference back. What a kernel may still use is kept until it has ended. NULL is fine. */
void lamprey_comm_release(struct lamprey_comm *comm);

/* Waits until our latest work has ended, for as long as it takes unless the communicator is
 * aborted; after an abort, and with timeout_ms >= 0, no longer than that. */
void lamprey_comm_drain(const struct lamprey_comm *comm, int timeout_ms);

/* Takes comm out of the table, so that its address may be used again. */
void lamprey_comm_remove(struct lamprey_comm *comm);

/* Waits a bounded time for a set-up under way to notice an abort. */
void lamprey_comm_await_setup(const struct lamprey_comm *comm);

/* No further call is served; with abort, kernels in flight and set-ups leave. Fine for unknown
 * handles. */
void lamprey_comm_close(ncclComm_t handle, bool abort);

#endif
