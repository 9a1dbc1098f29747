/* SPDX-License-Identifier: Apache-2.0 */
/* All-reduces with an epilogue: lamprey.h. */
#ifndef LAMPREY_PLUGIN_FUSED_H
#define LAMPREY_PLUGIN_FUSED_H

#include "kernels/row_instances.h"
#include "plugin/launch.h"
#include "plugin/lamprey.h"

/* A call: moe.source says what the rows are made of. */
struct lamprey_fused {
    const char *name; /* of the function that was called */
    struct lampreyFusedArgs args;
    struct lamprey_moe moe;
    struct lamprey_row_prelude prelude;
    bool norm; /* whatever args say */
    bool pre_norm;
    enum lamprey_element element;
    uint32_t element_bytes;
};

/* Checks what one rank can, with nothing done: ncclInvalidArgument, and the text names the
 * argument. Fills in what follows from args. */
ncclResult_t lamprey_fused_check(struct lamprey_fused *call);

/* Carries it out with args, on comm or on args->workspace. moe.source stands in call. */
ncclResult_t lamprey_fused_call(struct lamprey_fused *call, const struct lampreyFusedArgs *args,
                                ncclComm_t comm, cudaStream_t stream);

/* Launches it on a served communicator, in order with all other work of it, as lamprey_launch.
 * Afterwards lampreyGetLastError tells what failed. */
ncclResult_t lamprey_fused_launch(struct lamprey_comm *comm, const struct lamprey_fused *call,
                                  CUstream stream);

/* Can the calls' vectors be moved whole on this rank? */
bool lamprey_fused_is_wide(const struct lamprey_fused *call);

#endif
