/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels and the host agree on: the staging memory's layout, a lane's state, the
 * parameters of a launch.
 *
 * A CTA is a lane. It owns a piece of every rank's staging memory and a state record in its own
 * GPU's memory, so lanes share nothing. Staging memory of a rank, in units of 16-byte vectors:
 *     [lane][slot 0..2][source rank][vector 0..lane_capacity)
 * In a round, rank s pushes its data to [lane][slot][s] of every peer; the data itself says that it
 * has arrived, since every 32-bit word of a cleared slot is the sentinel and no pushed word is. A
 * round uses one slot and clears the slot of the round before; the third may already receive the
 * next round of a faster peer. */
#ifndef LAMPREY_KERNELS_PROTOCOL_H
#define LAMPREY_KERNELS_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#define LAMPREY_MAX_RANKS 8
#define LAMPREY_SLOTS 3
#define LAMPREY_VECTOR_BYTES 16
#define LAMPREY_CTA_THREADS                                                                        \
    128 /* small CTAs start fastest (2.20 us against 3.17 with 512 threads at 8 KiB, 2 x H200) */
#define LAMPREY_SENTINEL                                                                           \
    0xffffffffu /* a NaN in every float type; also what a memset of 0xff leaves */

struct lamprey_lane {
    uint32_t
        slot; /* the slot of the next round; kept apart from the round, since 2^32 mod 3 is not 0 */
    uint32_t dirty; /* vectors per source that the last round put into its slot */
    uint64_t round; /* rounds done */
};

#define LAMPREY_FLAG_SIGNAL                                                                        \
    1u /* let the next kernel of the stream start right after our own wait */

struct lamprey_all_reduce_params {
    const void *send;
    void *recv;
    uint64_t count;             /* elements */
    struct lamprey_lane *lanes; /* this rank's, one per CTA */
    const uint32_t *abort;      /* non-zero: leave */
    uint32_t rank;
    uint32_t nranks;
    uint32_t lane_vectors;  /* vectors a lane moves in this call; the last lane may have fewer */
    uint32_t lane_capacity; /* vectors a lane owns per slot and source */
    uint32_t flags;
    uint32_t reserved;
    unsigned char *staging[LAMPREY_MAX_RANKS]; /* every rank's, as mapped for this rank's GPU */
};

#ifdef __cplusplus
static_assert(sizeof(struct lamprey_lane) == 16, "one vector load");
static_assert(sizeof(struct lamprey_all_reduce_params) == 128, "the same on host and device");
#else
_Static_assert(sizeof(struct lamprey_lane) == 16, "one vector load");
_Static_assert(sizeof(struct lamprey_all_reduce_params) == 128, "the same on host and device");
#endif

/* The grid of a call. A pure function of the message and of what was agreed at set-up, so it is the
 * same on all ranks. */
struct lamprey_grid {
    uint32_t ctas;
    uint32_t threads;
    uint32_t lane_vectors;
};

/* vectors: 16-byte units of the message, at least 1; lanes: CTAs allowed, at least 1. No lane is
 * left empty. */
static inline struct lamprey_grid lamprey_grid_of(uint64_t vectors, uint32_t lanes)
{
    struct lamprey_grid grid;
    uint64_t threads = (vectors + 31) / 32 * 32;
    grid.threads = (uint32_t)(threads < LAMPREY_CTA_THREADS ? threads : LAMPREY_CTA_THREADS);
    uint64_t ctas = (vectors + grid.threads - 1) / grid.threads;
    if (ctas > lanes) {
        ctas = lanes;
    }
    uint64_t each = (vectors + ctas - 1) / ctas;
    each = (each + grid.threads - 1) / grid.threads * grid.threads;
    grid.lane_vectors = (uint32_t)each;
    grid.ctas = (uint32_t)((vectors + each - 1) / each);
    return grid;
}

/* Vectors a lane must own so that messages of up to max_vectors fit into lanes lanes. */
static inline uint32_t lamprey_lane_capacity(uint64_t max_vectors, uint32_t lanes)
{
    uint64_t each = (max_vectors + lanes - 1) / lanes;
    return (uint32_t)((each + LAMPREY_CTA_THREADS - 1) / LAMPREY_CTA_THREADS * LAMPREY_CTA_THREADS);
}

static inline uint64_t lamprey_staging_bytes(uint32_t nranks, uint32_t lanes,
                                             uint32_t lane_capacity)
{
    return (uint64_t)lanes * LAMPREY_SLOTS * nranks * lane_capacity * LAMPREY_VECTOR_BYTES;
}

#endif
