/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels and the host agree on: the staging memory's layout, a lane's state, the
 * parameters of a launch.
 *
 * A CTA is a lane. It owns a piece of every rank's staging memory and a state record in its own
 * GPU's memory, so lanes share nothing. Staging memory of a rank, in cells of 16 bytes:
 *     [lane][slot 0..2][row][cell 0..row_cells)
 * In a round, a rank writes to a row of its own in every peer's slot; the data itself says that it
 * has arrived, since a cleared slot is all ones and no cell that was sent is (packets.cuh). A round
 * uses one slot and clears the slot of the round before; the third may already receive the next
 * round of a faster peer. Rows of a slot:
 *     one-shot   row r: rank r's data
 *     two-shot   row r: rank r's part of our shard; row nranks + r: rank r's finished shard
 * Each thread moves one vector of 16 bytes a round (two-shot: one a shard), and a message takes as
 * many rounds as it needs. */
#ifndef LAMPREY_KERNELS_PROTOCOL_H
#define LAMPREY_KERNELS_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#define LAMPREY_MAX_RANKS 72 /* an NVLink domain */
#define LAMPREY_NEAR_RANKS 8 /* what the kernels for 2, 4 and 8 ranks have room for */
#define LAMPREY_SLOTS 3
#define LAMPREY_VECTOR_BYTES 16
#define LAMPREY_SENTINEL 0xffffffffu /* in every word of a cleared cell */

enum lamprey_algorithm {
    LAMPREY_ONE_SHOT,
    LAMPREY_TWO_SHOT,
    LAMPREY_ALGORITHMS,
};

enum lamprey_operator {
    LAMPREY_SUM,
    LAMPREY_PROD,
    LAMPREY_MIN,
    LAMPREY_MAX,
    LAMPREY_AVG,
};

enum lamprey_element {
    LAMPREY_F16,
    LAMPREY_BF16,
    LAMPREY_F32,
    LAMPREY_F64,
    LAMPREY_E4M3,
    LAMPREY_E5M2,
    LAMPREY_I8, /* integers signed and unsigned: LAMPREY_FLAG_SIGNED */
    LAMPREY_I32,
    LAMPREY_I64,
    LAMPREY_ELEMENTS,
};

struct lamprey_lane {
    uint32_t slot;  /* of the next round; kept apart from the round, since 2^32 mod 3 is not 0 */
    uint32_t dirty; /* what the last round filled: cells of each row, and LAMPREY_DIRTY_TWO_SHOT */
    uint64_t round; /* rounds done */
    uint32_t dead;  /* non-zero: a call was left, so the ranks are out of step for good */
    uint32_t reserved[3];
};

#define LAMPREY_DIRTY_TWO_SHOT 0x80000000u

#define LAMPREY_ALARM_ABORT 0     /* written by the host; non-zero: leave */
#define LAMPREY_ALARM_TIMED_OUT 1 /* written by a kernel whose time was up */

#define LAMPREY_FLAG_SIGNAL 1u /* let the stream's next kernel start right after our own wait */
#define LAMPREY_FLAG_WIDE 2u   /* send and recv lie at multiples of 16, and so does their end */
#define LAMPREY_FLAG_SIGNED 4u /* of integers */
#define LAMPREY_FLAG_SIMPLE 8u /* wide, and of one round: kernels have a short way for it */

#define LAMPREY_PARAMS(ranks)                                                                      \
    const void *send;                                                                              \
    void *recv;                                                                                    \
    uint64_t count;             /* elements */                                                     \
    uint64_t vectors;           /* of 16 bytes, the last perhaps not full */                       \
    struct lamprey_lane *lanes; /* this rank's, one per CTA */                                     \
    uint32_t *alarm;            /* LAMPREY_ALARM_ words in host memory */                          \
    uint32_t rank;                                                                                 \
    uint32_t nranks;                                                                               \
    uint32_t lane_vectors; /* vectors of a row that a lane moves in a round */                     \
    uint32_t slot_cells;                                                                           \
    uint32_t row_cells[LAMPREY_ALGORITHMS];                                                        \
    uint32_t flags;                                                                                \
    uint32_t op;         /* enum lamprey_operator */                                               \
    uint32_t timeout_ms; /* how long a kernel waits for one vector; 0: for ever */                 \
    uint32_t reserved;                                                                             \
    unsigned char *staging[ranks]; /* every rank's, as mapped for this rank's GPU */

/* Kernels for 2, 4 and 8 ranks take the first bytes of it, since parameters cost time. */
struct lamprey_all_reduce_params {
    LAMPREY_PARAMS(LAMPREY_MAX_RANKS)
};

struct lamprey_near_params {
    LAMPREY_PARAMS(LAMPREY_NEAR_RANKS)
};

/* A fused launch: several calls of one kernel, to the lanes as if each had been launched. What is a
 * message's own is not looked at in common. */
#define LAMPREY_FUSED 32 /* messages at most: what stands here is copied at every launch */

struct lamprey_message {
    const void *send;
    void *recv;
    uint64_t count;
    uint64_t vectors;
    uint32_t lane_vectors;
    uint32_t flags; /* but LAMPREY_FLAG_SIGNAL, which is common */
    uint32_t op;
    uint32_t ctas; /* of its plan; lanes beyond have no part in it */
};

#define LAMPREY_FUSED_PARAMS(type)                                                                 \
    struct lamprey_message messages[LAMPREY_FUSED];                                                \
    uint64_t message_count;                                                                        \
    struct type common;

struct lamprey_fused_params {
    LAMPREY_FUSED_PARAMS(lamprey_all_reduce_params)
};

struct lamprey_near_fused_params {
    LAMPREY_FUSED_PARAMS(lamprey_near_params)
};

#ifdef __cplusplus
#define LAMPREY_ASSERT static_assert
#else
#define LAMPREY_ASSERT _Static_assert
#endif
LAMPREY_ASSERT(sizeof(struct lamprey_lane) == 32, "its first half is one vector load");
LAMPREY_ASSERT(sizeof(struct lamprey_near_params) == 152, "the same on host and device");
LAMPREY_ASSERT(sizeof(struct lamprey_all_reduce_params) == 664, "the same on host and device");
LAMPREY_ASSERT(offsetof(struct lamprey_all_reduce_params, staging) ==
                   offsetof(struct lamprey_near_params, staging),
               "one begins the other");
LAMPREY_ASSERT(sizeof(struct lamprey_message) == 48, "the same on host and device");
LAMPREY_ASSERT(sizeof(struct lamprey_fused_params) ==
                   48 * LAMPREY_FUSED + 8 + sizeof(struct lamprey_all_reduce_params),
               "the same on host and device");
LAMPREY_ASSERT(offsetof(struct lamprey_fused_params, common) ==
                   offsetof(struct lamprey_near_fused_params, common),
               "one begins the other");

static inline uint32_t lamprey_rows(enum lamprey_algorithm algorithm, uint32_t nranks)
{
    return algorithm == LAMPREY_TWO_SHOT ? 2 * nranks : nranks;
}

static inline uint64_t lamprey_staging_bytes(uint32_t lanes, uint32_t slot_cells)
{
    return (uint64_t)lanes * LAMPREY_SLOTS * slot_cells * LAMPREY_VECTOR_BYTES;
}

#endif
