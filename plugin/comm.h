/* SPDX-License-Identifier: Apache-2.0 */
/* What we know of a communicator, in a side table keyed by NCCL's handle, which stays untouched; or
 * of a world that a program has joined without NCCL. */
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
                          * nor NCCL can run an all-reduce, and calls return failure */
    LAMPREY_COMM_SUSPENDED, /* was served, and will be again: NCCL answers meanwhile */
    LAMPREY_COMM_CLOSED,    /* finalized or revoked: NCCL answers */
    LAMPREY_COMM_ABORTED,   /* NCCL is freeing it: the handle must not be used any more */
};

struct lamprey_comm {
    ncclComm_t handle; /* NULL without NCCL, as is nccl */
    struct lamprey_nccl *nccl;
    struct lamprey_comm *next; /* in the table */
    atomic_uint references;    /* the table's and those of running calls */
    _Atomic(enum lamprey_comm_state) state;
    atomic_bool aborted; /* ends a set-up's waits */
    atomic_int in_nccl;  /* our own calls of NCCL's functions under way */
    _Atomic(ncclResult_t) failure;
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

/* A new world without NCCL, in no table: released by its last reference. NULL: no memory. */
struct lamprey_comm *lamprey_comm_make(struct lamprey_device *device, int rank, int nranks);

/* Gives a reference back. What a kernel may still use is kept until it has ended. NULL is fine. */
void lamprey_comm_release(struct lamprey_comm *comm);

/* Waits until our latest work has ended, for as long as it takes unless the communicator is
 * aborted; after an abort, and with timeout_ms >= 0, no longer than that. False: it hasn't ended.
 */
bool lamprey_comm_drain(const struct lamprey_comm *comm, int timeout_ms);

/* Takes comm out of the table, so that its address may be used again. */
void lamprey_comm_remove(struct lamprey_comm *comm);

/* Calls of NCCL that the caller doesn't know of go between these. False: the communicator is
 * aborted, and NCCL may have freed it. */
bool lamprey_comm_enter_nccl(struct lamprey_comm *comm);
void lamprey_comm_leave_nccl(struct lamprey_comm *comm);

/* After an abort: waits a bounded time until the last of these calls has returned. */
void lamprey_comm_await_setup(const struct lamprey_comm *comm);

enum lamprey_ending {
    LAMPREY_FINALIZED, /* what is in flight ends as usual */
    LAMPREY_REVOKED,   /* kernels in flight and set-ups leave */
    LAMPREY_ABORTED,   /* likewise, and the handle dies */
};

/* No further call is served. */
void lamprey_comm_end(struct lamprey_comm *comm, enum lamprey_ending ending);

/* The same by handle; fine for unknown ones. */
void lamprey_comm_close(ncclComm_t handle, enum lamprey_ending ending);

#endif
