/* SPDX-License-Identifier: Apache-2.0 */
/* The device memory of a served communicator: own staging memory, the peers' as mapped here, lane
 * states, alarm. It outlives the communicator while a CUDA graph that uses it exists. */
#ifndef LAMPREY_PLUGIN_WORKSPACE_H
#define LAMPREY_PLUGIN_WORKSPACE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "kernels/protocol.h"
#include "plugin/memory.h"

#define LAMPREY_SCRATCH_BYTES (2 * LAMPREY_MAX_RANKS * LAMPREY_VECTOR_BYTES)

struct lamprey_workspace {
    atomic_uint references; /* the communicator's and those of graphs */
    struct lamprey_workspace *next_dead;
    const struct lamprey_device *device;
    uint32_t rank;
    uint32_t nranks;
    uint32_t lanes;
    uint32_t slot_cells;
    struct lamprey_memory own;
    struct lamprey_memory peers[LAMPREY_MAX_RANKS]; /* own rank's entry unused */
    CUdeviceptr lane_states;
    CUdeviceptr scratch;     /* LAMPREY_SCRATCH_BYTES for the self-test; no peer's business */
    CUdeviceptr check_cells; /* kernels/check.h; the peers' lie at the same offset of theirs */
    CUdeviceptr check_state;
    bool checked; /* every call is checked: LAMPREY_CHECK on some rank */
    atomic_bool mismatch_told;
    atomic_uint *alarm;       /* host view */
    CUdeviceptr device_alarm; /* the kernels' view */
    CUevent serial;           /* recorded after the communicator's latest work; order.h */
    CUevent join;             /* joins the streams of a group; group.c */
};

/* Memory for this rank, that the peers can map in the given way, its slots cleared by work on
 * stream, which must be complete before any peer pushes. */
enum lamprey_status lamprey_workspace_create(const struct lamprey_device *device, uint32_t rank,
                                             uint32_t nranks, uint32_t lanes, uint32_t slot_cells,
                                             enum lamprey_sharing sharing, CUstream stream,
                                             struct lamprey_workspace **workspace);

/* Bytes of its memory on every rank, before the driver rounds them up. */
size_t lamprey_workspace_bytes(uint32_t nranks, uint32_t lanes, uint32_t slot_cells);

/* Back to the state of a new one, by work on stream: when no kernel of any rank uses it. */
enum lamprey_status lamprey_workspace_clear(struct lamprey_workspace *workspace, CUstream stream);

/* One reference less. At zero a later lamprey_workspace_reap frees it: this may be called from a
 * graph's destructor, which may not call the driver. NULL is fine. */
void lamprey_workspace_release(struct lamprey_workspace *workspace);

/* Has the communicator's latest work ended? The device's context must be current. */
bool lamprey_workspace_idle(const struct lamprey_workspace *workspace);

/* Makes graph hold a reference for as long as it or an executable made from it exists. */
enum lamprey_status lamprey_workspace_retain_by_graph(struct lamprey_workspace *workspace,
                                                      CUgraph graph);

/* Frees what was released and is idle. May wait for the GPU, so not for use where peers wait for
 * this rank. */
void lamprey_workspace_reap(void);

/* Makes kernels in flight leave. Async-signal-safe: one store. */
void lamprey_workspace_abort(struct lamprey_workspace *workspace);

/* Takes an abort, a time-out or a mismatch back, once no kernel runs. */
void lamprey_workspace_rearm(struct lamprey_workspace *workspace);

/* Has a kernel left because a peer didn't come within LAMPREY_TIMEOUT? */
bool lamprey_workspace_timed_out(const struct lamprey_workspace *workspace);

#endif
