/* SPDX-License-Identifier: Apache-2.0 */
/* All-reduces with an epilogue: what kernels and host agree on beyond protocol.h.
 *
 * The message is rows (tokens) of hidden elements. A row is a cluster's: each of its CTAs, which
 * are lanes as in protocol.h, has a share of the row's vectors, a multiple of 32 of them but for
 * the last. In a round a cluster moves a slice of every share of one row, by the layouts of
 * protocol.h; once all slices have arrived, each CTA has its share of the sum in shared memory (or,
 * where a slice is the whole share, in registers) and the epilogue starts. Clusters take the rows
 * in turn. */
#ifndef LAMPREY_KERNELS_ROWS_H
#define LAMPREY_KERNELS_ROWS_H

#include "kernels/protocol.h"

#define LAMPREY_SEGMENT_VECTORS 32 /* whose squares are summed as a tree; a warp's */
#define LAMPREY_UNIT_ELEMENTS 16   /* that a thread quantises together; a block of NVFP4 */
#define LAMPREY_MAX_CLUSTER 8      /* what every GPU with clusters takes */

enum lamprey_quantisation {
    LAMPREY_QUANT_NONE,
    LAMPREY_QUANT_FP8_STATIC, /* e4m3, one scale that the caller gives */
    LAMPREY_QUANT_FP8_TOKEN,  /* e4m3, a scale a row, found here */
    LAMPREY_QUANT_FP8_GROUP,  /* e4m3, a power of two a group, packed exponents */
    LAMPREY_QUANT_NVFP4,      /* e2m1, an e4m3 scale a block of 16 */
};

enum lamprey_scale_layout {
    LAMPREY_SCALES_128X4,
    LAMPREY_SCALES_8X4,
    LAMPREY_SCALES_LINEAR,
};

#define LAMPREY_ROW_NORM 1u        /* RMSNorm */
#define LAMPREY_ROW_WIDE_GAMMA 2u  /* gamma is fp32, whatever the rows are */
#define LAMPREY_ROW_EARLY_GAMMA 4u /* nothing on the stream writes gamma any more */
#define LAMPREY_ROW_PRE_NORM 8u    /* RMSNorm before the residual too */

/* Pointers: NULL where that input or output isn't there. */
struct lamprey_row_args {
    const void *residual;
    const void *gamma;
    void *residual_out;
    void *norm_out;
    void *quant_out;
    void *scale_out;
    const float *scale; /* in device memory; NULL: scale_value */
    float scale_value;
    float epsilon;
    float weight_bias;
    uint32_t flags;
    uint64_t tokens;
    uint32_t hidden; /* elements of a row */
    uint32_t row_vectors;
    uint32_t share_vectors; /* of a CTA */
    uint32_t slice_vectors; /* of a share, that a round moves */
    uint32_t quantisation;  /* enum lamprey_quantisation */
    uint32_t layout;        /* enum lamprey_scale_layout */
    uint32_t group;         /* elements that share a scale */
    float inverse_hidden;   /* 1 / hidden, rounded */
};

enum lamprey_row_source {
    LAMPREY_ROWS_GIVEN,        /* send holds the rows */
    LAMPREY_ROWS_MOE_REDUCE,   /* experts' rows are scaled and added first */
    LAMPREY_ROWS_MOE_FINALIZE, /* rows are gathered by an index, scaled and added first */
};

/* What the rows are made of where send doesn't hold them. */
struct lamprey_moe {
    uint32_t source; /* enum lamprey_row_source */
    uint32_t count;  /* experts, or rows that make one */
    const void *inputs;
    const void *scales;     /* reduce: fp32 [count][tokens]; finalize: [tokens][count] or NULL */
    const int32_t *indices; /* finalize: [tokens][count]; negative: none */
    const void *added;      /* [tokens][hidden], last; NULL: none */
    float factor;           /* finalize: what the sum is multiplied with */
    uint32_t wide_scales;   /* finalize: scales are fp32 and not of the rows' type */
};

/* What happens to the sum before the residual is added. Pointers: NULL where it isn't there. */
struct lamprey_row_prelude {
    const void *bias;  /* [hidden] */
    const void *gamma; /* of LAMPREY_ROW_PRE_NORM; fp32 where the other one is */
};

struct lamprey_near_row_params {
    struct lamprey_row_args rows;
    struct lamprey_near_params lane; /* send: the input; recv: the all-reduce's output */
};

struct lamprey_row_params {
    struct lamprey_row_args rows;
    struct lamprey_moe moe;
    struct lamprey_row_prelude prelude;
    struct lamprey_all_reduce_params lane;
};

LAMPREY_ASSERT(sizeof(struct lamprey_row_args) == 112, "the same on host and device");
LAMPREY_ASSERT(sizeof(struct lamprey_moe) == 48, "the same on host and device");
LAMPREY_ASSERT(sizeof(struct lamprey_row_prelude) == 16, "the same on host and device");
LAMPREY_ASSERT(sizeof(struct lamprey_near_row_params) == 264, "the same on host and device");
LAMPREY_ASSERT(sizeof(struct lamprey_row_params) == 840, "the same on host and device");

#ifdef __CUDACC__
#define LAMPREY_BOTH static __host__ __device__ inline
#else
#define LAMPREY_BOTH static inline
#endif

#define LAMPREY_FLAG_STEPWISE 16u /* of the lane: sums are rounded to the type at each step */
#define LAMPREY_ROW_MAX_WARPS 16

/* Shared memory of a CTA, in this order: the share's vectors; what the cluster's CTAs tell each
 * other (row_exchange.cuh), twice, since rows take turns; the units' largest magnitudes. */
LAMPREY_BOTH uint32_t lamprey_share_segments(uint32_t share_vectors)
{
    return (share_vectors + LAMPREY_SEGMENT_VECTORS - 1) / LAMPREY_SEGMENT_VECTORS;
}

LAMPREY_BOTH uint32_t lamprey_share_units(uint32_t share_vectors, uint32_t vector_elements)
{
    return (share_vectors * vector_elements + LAMPREY_UNIT_ELEMENTS - 1) / LAMPREY_UNIT_ELEMENTS;
}

/* Of one row: a word a segment, and a word a warp. Both begin at multiples of a vector. */
LAMPREY_BOTH uint32_t lamprey_row_square_words(uint32_t share_vectors, uint32_t cluster)
{
    return (cluster * lamprey_share_segments(share_vectors) + 3) / 4 * 4;
}

LAMPREY_BOTH uint32_t lamprey_row_exchange_words(uint32_t share_vectors, uint32_t cluster)
{
    return lamprey_row_square_words(share_vectors, cluster) + cluster * LAMPREY_ROW_MAX_WARPS;
}

static inline uint32_t lamprey_row_shared_bytes(uint32_t share_vectors, uint32_t vector_elements,
                                                uint32_t cluster)
{
    const uint32_t words = 2 * lamprey_row_exchange_words(share_vectors, cluster) +
                           lamprey_share_units(share_vectors, vector_elements);
    return share_vectors * LAMPREY_VECTOR_BYTES + words * (uint32_t)sizeof(uint32_t);
}

#endif
