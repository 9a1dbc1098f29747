/* SPDX-License-Identifier: Apache-2.0 */
/* Prints where the fields of lamprey.h's structs lie, for bindings to compare:
 *   <struct> <field> <offset> <bytes>, and <struct> - <bytes of all> 0 */
#include <stdio.h>

#include "plugin/lamprey.h"

#define FIELD(type, name)                                                                          \
    printf(#type " " #name " %zu %zu\n", offsetof(struct type, name),                              \
           sizeof((struct type *)0)->name)
#define END(type) printf(#type " - %zu 0\n", sizeof(struct type))

static void print_results(void) {
    FIELD(lampreyStats, size);
    FIELD(lampreyStats, served);
    FIELD(lampreyStats, served_captured);
    FIELD(lampreyStats, served_grouped);
    FIELD(lampreyStats, fallback_communicator);
    FIELD(lampreyStats, fallback_type);
    FIELD(lampreyStats, fallback_operator);
    FIELD(lampreyStats, fallback_size);
    FIELD(lampreyStats, fallback_empty);
    FIELD(lampreyStats, fallback_closed);
    FIELD(lampreyStats, failed);
    FIELD(lampreyStats, communicators_served);
    FIELD(lampreyStats, communicators_refused);
    END(lampreyStats);
}

static void print_workspace(void) {
    FIELD(lampreyWorkspaceArgs, size);
    FIELD(lampreyWorkspaceArgs, nranks);
    FIELD(lampreyWorkspaceArgs, rank);
    FIELD(lampreyWorkspaceArgs, device);
    FIELD(lampreyWorkspaceArgs, flags);
    FIELD(lampreyWorkspaceArgs, most_bytes);
    FIELD(lampreyWorkspaceArgs, timeout_ms);
    END(lampreyWorkspaceArgs);
}

static void print_fused(void) {
    FIELD(lampreyFusedArgs, size);
    FIELD(lampreyFusedArgs, tokens);
    FIELD(lampreyFusedArgs, hidden);
    FIELD(lampreyFusedArgs, type);
    FIELD(lampreyFusedArgs, strategy);
    FIELD(lampreyFusedArgs, flags);
    FIELD(lampreyFusedArgs, in);
    FIELD(lampreyFusedArgs, all_reduce_out);
    FIELD(lampreyFusedArgs, residual_in);
    FIELD(lampreyFusedArgs, residual_out);
    FIELD(lampreyFusedArgs, gamma);
    FIELD(lampreyFusedArgs, gamma_type);
    FIELD(lampreyFusedArgs, epsilon);
    FIELD(lampreyFusedArgs, weight_bias);
    FIELD(lampreyFusedArgs, norm_out);
    FIELD(lampreyFusedArgs, quantize);
    FIELD(lampreyFusedArgs, layout);
    FIELD(lampreyFusedArgs, group);
    FIELD(lampreyFusedArgs, scale_value);
    FIELD(lampreyFusedArgs, scale);
    FIELD(lampreyFusedArgs, quant_out);
    FIELD(lampreyFusedArgs, scale_out);
    FIELD(lampreyFusedArgs, workspace);
    END(lampreyFusedArgs);
}

static void print_steps(void) {
    FIELD(lampreyMoeReduceArgs, size);
    FIELD(lampreyMoeReduceArgs, experts);
    FIELD(lampreyMoeReduceArgs, scales);
    FIELD(lampreyMoeReduceArgs, rows);
    FIELD(lampreyMoeReduceArgs, added);
    END(lampreyMoeReduceArgs);
    FIELD(lampreyMoeFinalizeArgs, size);
    FIELD(lampreyMoeFinalizeArgs, top_k);
    FIELD(lampreyMoeFinalizeArgs, indices);
    FIELD(lampreyMoeFinalizeArgs, scales);
    FIELD(lampreyMoeFinalizeArgs, scales_type);
    FIELD(lampreyMoeFinalizeArgs, factor);
    FIELD(lampreyMoeFinalizeArgs, rows);
    FIELD(lampreyMoeFinalizeArgs, added);
    END(lampreyMoeFinalizeArgs);
    FIELD(lampreyCustomArgs, size);
    FIELD(lampreyCustomArgs, op);
    FIELD(lampreyCustomArgs, bias);
    FIELD(lampreyCustomArgs, pre_gamma);
    END(lampreyCustomArgs);
}

int main(void) {
    print_results();
    print_workspace();
    print_fused();
    print_steps();
    return 0;
}
