/* SPDX-License-Identifier: Apache-2.0 */
/* All-reduces of ours onto a stream. */
#ifndef LAMPREY_PLUGIN_LAUNCH_H
#define LAMPREY_PLUGIN_LAUNCH_H

#include "plugin/comm.h"

/* The arguments of ncclAllReduce. */
struct lamprey_call {
    const void *send;
    void *recv;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t op;
    CUstream stream;
};

/* The kernel alone, in no order with anything. timeout_ms: 0 for none. */
enum lamprey_status lamprey_launch_kernel(const struct lamprey_workspace *workspace,
                                          const struct lamprey_call *call,
                                          const struct lamprey_way *way, uint32_t timeout_ms);

/* May kernels begin before their predecessors on the stream end (PDL)? A check's line of the log
 * comes between kernels, so then there is nothing to overlap. */
bool lamprey_launch_overlaps(const struct lamprey_workspace *workspace);

/* Launches calls that lamprey_decide has found to be ours on a served communicator: one, or up to
 * LAMPREY_FUSED on one stream whose way has the same fused kernel, where calls aren't checked.
 * Doesn't wait for the GPU. A failure can't go to NCCL any more, since the peers may have launched:
 * ncclUnhandledCudaError. */
ncclResult_t lamprey_launch(struct lamprey_comm *comm, const struct lamprey_call *calls,
                            size_t count, bool grouped);

#endif
