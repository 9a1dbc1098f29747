/* SPDX-License-Identifier: Apache-2.0 */
/* LAMPREY_CHECK=1: before an all-reduce every rank sends every other one what it was called with,
 * and compares. In a kernel, memory and numbers of its own: where calls differ their plans do too,
 * and nothing of the all-reduce's own protocol can be relied on.
 *
 * Memory of a rank that its peers write to, in cells of 16 bytes:
 *     [slot 0..1][rank 0..nranks)[LAMPREY_CHECK_CELLS]
 * A cell is two scalars of 64 bits: 32 of the signature, and above them 32 of the call's number,
 * which tell that the scalar has arrived. Two slots do without a clear: a peer sends its next but
 * one signature after it has seen our next one, which we send after we have read this one. */
#ifndef LAMPREY_KERNELS_CHECK_H
#define LAMPREY_KERNELS_CHECK_H

#include "kernels/protocol.h"

#define LAMPREY_CHECK_KERNEL "lamprey_check"
#define LAMPREY_CHECK_SLOTS 2
#define LAMPREY_CHECK_CELLS 2

struct lamprey_signature {
    uint64_t count;  /* elements, or rows */
    uint32_t kind;   /* what the host says of type and operator; equal or not is all that counts */
    uint32_t hidden; /* elements of a row; 0: no rows */
};

struct lamprey_check_state {
    uint64_t calls; /* checked so far; the next call's number is one more */
    uint32_t dead;  /* as a lane's */
    uint32_t reserved;
};

/* Behind the two words of protocol.h. What is found is there when LAMPREY_ALARM_MISMATCH is. */
enum {
    LAMPREY_ALARM_MISMATCH = 2, /* non-zero: the rank that called otherwise, plus 1 */
    LAMPREY_ALARM_NUMBER,       /* of the call: low, high */
    LAMPREY_ALARM_OWN = LAMPREY_ALARM_NUMBER + 2, /* signature: count low, high, kind, hidden */
    LAMPREY_ALARM_OTHER = LAMPREY_ALARM_OWN + 4,
    LAMPREY_ALARM_WORDS = LAMPREY_ALARM_OTHER + 4,
};

struct lamprey_check_params {
    struct lamprey_signature own;
    struct lamprey_check_state *state;
    struct lamprey_lane *lanes; /* nobody may use them after a mismatch */
    uint32_t *alarm;
    uint32_t nlanes;
    uint32_t rank;
    uint32_t nranks;
    uint32_t timeout_ms;
    unsigned char *cells[LAMPREY_MAX_RANKS]; /* every rank's, as mapped for this rank's GPU */
};

LAMPREY_ASSERT(sizeof(struct lamprey_check_state) == 16, "one vector load");
LAMPREY_ASSERT(sizeof(struct lamprey_check_params) == 56 + 8 * LAMPREY_MAX_RANKS,
               "the same on host and device");

static inline uint64_t lamprey_check_bytes(uint32_t nranks)
{
    return (uint64_t)LAMPREY_CHECK_SLOTS * nranks * LAMPREY_CHECK_CELLS * LAMPREY_VECTOR_BYTES;
}

#endif
