/* SPDX-License-Identifier: Apache-2.0 */
/* How a message is laid over lanes, threads and rounds: a pure function of the message and of what
 * was agreed at set-up, so it is the same on all ranks. */
#ifndef LAMPREY_KERNELS_PLAN_H
#define LAMPREY_KERNELS_PLAN_H

#include "kernels/protocol.h"

#define LAMPREY_MIN_THREADS 128
#define LAMPREY_MAX_THREADS 512       /* registers for up to 8 ranks' vectors in flight */
#define LAMPREY_MAX_THREADS_PAIR 1024 /* one-shot for 2 ranks */

struct lamprey_plan {
    uint32_t ctas;
    uint32_t threads;
    uint32_t lane_vectors;
    uint32_t rounds;
};

static inline uint32_t lamprey_max_threads(enum lamprey_algorithm algorithm, uint32_t nranks)
{
    return algorithm == LAMPREY_ONE_SHOT && nranks == 2 ? LAMPREY_MAX_THREADS_PAIR
                                                        : LAMPREY_MAX_THREADS;
}

static inline uint64_t lamprey_divide_up(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

/* Vectors of one row that fit a lane: 0 if slot_cells is too small for so many ranks.
 * vector_cells: packets.cuh. */
static inline uint32_t lamprey_row_vectors(enum lamprey_algorithm algorithm, uint32_t nranks,
                                           uint32_t slot_cells, uint32_t vector_cells)
{
    return slot_cells / lamprey_rows(algorithm, nranks) / vector_cells;
}

/* vectors: of the message, at least 1. lanes: CTAs allowed, at least 1. row_vectors: at least 1.
 *
 * CTAs are as small as they can be while there are no more than 32: small ones start fastest, many
 * start slowly (2 x H200, us: 8 KiB 1.72 with 128 threads, 1.88 with 512; 1 MiB 6.20 and 4.95 with
 * 1024). */
static inline struct lamprey_plan lamprey_plan_of(enum lamprey_algorithm algorithm,
                                                  uint64_t vectors, uint32_t nranks, uint32_t lanes,
                                                  uint32_t row_vectors)
{
    const uint64_t each =
        lamprey_divide_up(vectors, algorithm == LAMPREY_TWO_SHOT ? nranks : 1); /* of a row */
    const uint32_t most = row_vectors < lamprey_max_threads(algorithm, nranks)
                              ? row_vectors
                              : lamprey_max_threads(algorithm, nranks);
    uint64_t width = LAMPREY_MIN_THREADS;
    while (width < lamprey_divide_up(each, 32)) {
        width *= 2;
    }
    width = width < most ? width : most;
    struct lamprey_plan plan;
    const uint64_t pieces = lamprey_divide_up(each, width);
    plan.ctas = (uint32_t)(pieces < lanes ? pieces : lanes);
    plan.rounds = (uint32_t)lamprey_divide_up(pieces, plan.ctas);
    if (plan.rounds > 1) {
        width = most;
        plan.rounds = (uint32_t)lamprey_divide_up(each, width * plan.ctas);
    }
    plan.lane_vectors = (uint32_t)lamprey_divide_up(each, (uint64_t)plan.ctas * plan.rounds);
    plan.threads = (uint32_t)lamprey_divide_up(plan.lane_vectors, 32) * 32;
    return plan;
}

/* The parameters that follow from the message and the plan. The caller adds send, recv, lanes,
 * abort, rank, op, the other flags and staging. */
static inline void lamprey_plan_params(const struct lamprey_plan *plan, uint32_t nranks,
                                       uint32_t slot_cells, uint64_t count, uint64_t vectors,
                                       struct lamprey_all_reduce_params *params)
{
    params->count = count;
    params->vectors = vectors;
    params->nranks = nranks;
    params->lane_vectors = plan->lane_vectors;
    params->slot_cells = slot_cells;
    params->row_cells[LAMPREY_ONE_SHOT] = slot_cells / lamprey_rows(LAMPREY_ONE_SHOT, nranks);
    params->row_cells[LAMPREY_TWO_SHOT] = slot_cells / lamprey_rows(LAMPREY_TWO_SHOT, nranks);
}

/* Whether vectors can be moved whole. */
static inline uint32_t lamprey_message_flags(const struct lamprey_plan *plan, const void *send,
                                             const void *recv, uint64_t bytes)
{
    if (((uintptr_t)send | (uintptr_t)recv | bytes) & (LAMPREY_VECTOR_BYTES - 1)) {
        return 0;
    }
    return plan->rounds == 1 ? LAMPREY_FLAG_WIDE | LAMPREY_FLAG_SIMPLE : LAMPREY_FLAG_WIDE;
}

#endif
