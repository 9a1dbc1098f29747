/* SPDX-License-Identifier: Apache-2.0 */
/* How rows are laid over clusters, CTAs and rounds: a pure function of the call's shape and of what
 * was agreed at set-up, so it is the same on all ranks. */
#ifndef LAMPREY_KERNELS_ROW_PLAN_H
#define LAMPREY_KERNELS_ROW_PLAN_H

#include <stdbool.h>
#include <string.h>

#include "kernels/plan.h"
#include "kernels/row_instances.h"

#define LAMPREY_ROW_THREADS 512
#define LAMPREY_ROW_SHARED_BYTES (144u << 10) /* data-centre GPUs since A100; others have 99 */

struct lamprey_row_shape {
    enum lamprey_algorithm algorithm;
    uint32_t nranks;
    uint64_t tokens;
    uint32_t hidden;          /* elements */
    uint32_t vector_elements; /* of 16 bytes */
    uint32_t group;           /* elements that a CTA must have together; 1: any */
};

struct lamprey_row_plan {
    uint32_t cluster; /* CTAs a row; 0: the row is too long */
    uint32_t clusters;
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t row_vectors;
    uint32_t share_vectors;
    uint32_t slice_vectors;
    uint32_t lane_vectors; /* cells of a slot's row that a round fills */
    uint64_t rounds;
};

static inline uint32_t lamprey_greatest_divisor(uint32_t a, uint32_t b)
{
    while (b != 0) {
        const uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Vectors of which a share is a multiple: whole segments, units and groups. 0: more than fit. */
static inline uint32_t lamprey_row_grain(const struct lamprey_row_shape *shape)
{
    const uint32_t segment = LAMPREY_SEGMENT_VECTORS * shape->vector_elements;
    const uint64_t grain =
        (uint64_t)segment / lamprey_greatest_divisor(segment, shape->group) * shape->group;
    return grain > UINT32_MAX / 2 ? 0 : (uint32_t)(grain / shape->vector_elements);
}

/* The plan with this many CTAs a row; cluster 0 if that can't be. */
static inline struct lamprey_row_plan lamprey_row_plan_with(const struct lamprey_row_shape *shape,
                                                            uint32_t cluster, uint32_t lanes,
                                                            uint32_t slot_cells)
{
    struct lamprey_row_plan plan;
    memset(&plan, 0, sizeof plan);
    const uint32_t grain = lamprey_row_grain(shape);
    const uint32_t fit = lamprey_row_vectors(shape->algorithm, shape->nranks, slot_cells, 1);
    const uint32_t most = fit < LAMPREY_ROW_THREADS ? fit : LAMPREY_ROW_THREADS;
    const uint32_t shards = shape->algorithm == LAMPREY_TWO_SHOT ? shape->nranks : 1;
    plan.row_vectors = (uint32_t)lamprey_divide_up(shape->hidden, shape->vector_elements);
    const uint64_t share =
        grain == 0 || grain >= plan.row_vectors
            ? lamprey_divide_up(plan.row_vectors, LAMPREY_SEGMENT_VECTORS) * LAMPREY_SEGMENT_VECTORS
            : lamprey_divide_up(lamprey_divide_up(plan.row_vectors, cluster), grain) * grain;
    cluster = (uint32_t)lamprey_divide_up(plan.row_vectors, share);
    if (cluster > lanes || most == 0 || share > LAMPREY_ROW_SHARED_BYTES / LAMPREY_VECTOR_BYTES) {
        return plan;
    }
    plan.share_vectors = (uint32_t)share;
    plan.shared_bytes =
        lamprey_row_shared_bytes(plan.share_vectors, shape->vector_elements, cluster);
    if (plan.shared_bytes > LAMPREY_ROW_SHARED_BYTES) {
        return plan;
    }
    const uint64_t slices = lamprey_divide_up(share, (uint64_t)most * shards);
    plan.lane_vectors = (uint32_t)lamprey_divide_up(share, slices * shards);
    plan.slice_vectors = plan.lane_vectors * shards;
    const uint64_t clusters = lanes / cluster;
    plan.clusters = (uint32_t)(shape->tokens < clusters ? shape->tokens : clusters);
    plan.rounds = lamprey_divide_up(shape->tokens, plan.clusters) *
                  lamprey_divide_up(share, plan.slice_vectors);
    const uint64_t threads = share < LAMPREY_ROW_THREADS ? share : LAMPREY_ROW_THREADS;
    const uint64_t wide = threads < LAMPREY_MIN_THREADS ? LAMPREY_MIN_THREADS : threads;
    plan.threads = (uint32_t)lamprey_divide_up(wide, 32) * 32;
    plan.cluster = cluster;
    return plan;
}

/* lanes: CTAs allowed, at least 1. most_cluster: 1 where there are no clusters. As few rounds as
 * can be, and then as many CTAs a row as have a vector for each of 128 threads (2 x H200, 1 x 8192
 * of bf16, us: 3.01 with 8 CTAs, 3.21 with one). cluster 0: the row is too long. */
static inline struct lamprey_row_plan lamprey_row_plan_of(const struct lamprey_row_shape *shape,
                                                          uint32_t lanes, uint32_t most_cluster,
                                                          uint32_t slot_cells)
{
    struct lamprey_row_plan best;
    memset(&best, 0, sizeof best);
    const uint32_t row_vectors = (uint32_t)lamprey_divide_up(shape->hidden, shape->vector_elements);
    for (uint32_t cluster = most_cluster; cluster >= 1; cluster--) {
        const struct lamprey_row_plan plan =
            lamprey_row_plan_with(shape, cluster, lanes, slot_cells);
        const bool small = cluster > 1 && row_vectors < cluster * LAMPREY_MIN_THREADS;
        if (plan.cluster != 0 && !small && (best.cluster == 0 || plan.rounds < best.rounds)) {
            best = plan;
        }
    }
    return best;
}

/* The parameters that follow from shape and plan. The caller adds pointers, flags, the rank's own,
 * and what the epilogue is to do. */
static inline void lamprey_row_plan_params(const struct lamprey_row_shape *shape,
                                           const struct lamprey_row_plan *plan, uint32_t slot_cells,
                                           struct lamprey_row_args *rows,
                                           struct lamprey_all_reduce_params *lane)
{
    rows->tokens = shape->tokens;
    rows->hidden = shape->hidden;
    rows->inverse_hidden = 1.0f / (float)shape->hidden;
    rows->row_vectors = plan->row_vectors;
    rows->share_vectors = plan->share_vectors;
    rows->slice_vectors = plan->slice_vectors;
    lane->count = shape->tokens * shape->hidden;
    lane->vectors = shape->tokens * plan->row_vectors;
    lane->nranks = shape->nranks;
    lane->lane_vectors = plan->lane_vectors;
    lane->slot_cells = slot_cells;
    lane->row_cells[LAMPREY_ONE_SHOT] = slot_cells / lamprey_rows(LAMPREY_ONE_SHOT, shape->nranks);
    lane->row_cells[LAMPREY_TWO_SHOT] = slot_cells / lamprey_rows(LAMPREY_TWO_SHOT, shape->nranks);
}

/* Is a group a power of two of vectors of one warp? */
static inline bool lamprey_row_group_is_a_warps(uint32_t group, uint32_t vector_elements)
{
    const uint32_t vectors = group / vector_elements;
    return group % vector_elements == 0 && vectors <= 32 && (vectors & (vectors - 1)) == 0;
}

/* Which kernels take the call, its parameters being complete. Ranks may differ, by alignment for
 * one: a round is the same for all of them. */
static inline enum lamprey_row_form lamprey_row_form_of(const struct lamprey_row_shape *shape,
                                                        const struct lamprey_row_plan *plan,
                                                        const struct lamprey_row_params *params)
{
    const struct lamprey_row_args *rows = &params->rows;
    if (shape->algorithm != LAMPREY_ONE_SHOT || plan->slice_vectors < plan->share_vectors ||
        shape->hidden % shape->vector_elements != 0 ||
        (params->lane.flags & (LAMPREY_FLAG_WIDE | LAMPREY_FLAG_STEPWISE)) != LAMPREY_FLAG_WIDE ||
        params->moe.source != LAMPREY_ROWS_GIVEN || params->prelude.bias ||
        rows->flags & LAMPREY_ROW_PRE_NORM ||
        (rows->quantisation == LAMPREY_QUANT_FP8_GROUP &&
         !lamprey_row_group_is_a_warps(rows->group, shape->vector_elements))) {
        return LAMPREY_ROWS_ANY;
    }
    return rows->quantisation == LAMPREY_QUANT_NONE ? LAMPREY_ROWS_SINGLE
                                                    : LAMPREY_ROWS_SINGLE_QUANTISED;
}

#endif
