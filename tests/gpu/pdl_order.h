/* SPDX-License-Identifier: Apache-2.0 */
/* Parameters of the kernels in pdl_order.cuh. */
#ifndef LAMPREY_TESTS_GPU_PDL_ORDER_H
#define LAMPREY_TESTS_GPU_PDL_ORDER_H

#include <stdint.h>

/* Vectors of 16 bytes that were not this round's. */
struct pdl_order_counts {
    uint64_t before;      /* read before the reader's own wait */
    uint64_t only_cached; /* of these: right in the L2 cache, and then wrong by a plain load */
    uint64_t after;       /* read after the wait */
};

struct pdl_order_params {
    void *message;   /* the all-reduce's input to produce, or its output to consume */
    uint32_t *round; /* on this GPU: rounds begun */
    struct pdl_order_counts *counts;
    uint32_t vectors;
    uint32_t rank;
};

#endif
