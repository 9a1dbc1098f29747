/* SPDX-License-Identifier: Apache-2.0 */
/* What an all-reduce must give, bit for bit: the rules of NUMERICS.md in plain C. Shares no code
 * with the kernels, which are judged by it. For hosts that are little-endian, round to nearest and
 * keep subnormals. */
#ifndef LAMPREY_KERNELS_REFERENCE_H
#define LAMPREY_KERNELS_REFERENCE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum lamprey_reference_type {
    LAMPREY_REFERENCE_F16,
    LAMPREY_REFERENCE_BF16,
    LAMPREY_REFERENCE_F32,
    LAMPREY_REFERENCE_F64,
    LAMPREY_REFERENCE_E4M3,
    LAMPREY_REFERENCE_E5M2,
    LAMPREY_REFERENCE_I8,
    LAMPREY_REFERENCE_U8,
    LAMPREY_REFERENCE_I32,
    LAMPREY_REFERENCE_U32,
    LAMPREY_REFERENCE_I64,
    LAMPREY_REFERENCE_U64,
    LAMPREY_REFERENCE_E2M1, /* half a byte: for the conversions of numbers alone */
};

enum lamprey_reference_op {
    LAMPREY_REFERENCE_SUM,
    LAMPREY_REFERENCE_PROD,
    LAMPREY_REFERENCE_MIN,
    LAMPREY_REFERENCE_MAX,
    LAMPREY_REFERENCE_AVG,
};

/* Bytes of an element. */
size_t lamprey_reference_size(enum lamprey_reference_type type);

/* inputs holds nranks >= 1 pointers to count elements each, in rank order; no pointer need be
 * aligned. output may be one of the inputs, but overlaps none of them otherwise. */
void lamprey_reference_all_reduce(enum lamprey_reference_type type, enum lamprey_reference_op op,
                                  int nranks, const void *const *inputs, void *output,
                                  size_t count);

/* The conversions of the types of 16 bits and less (F16, BF16, E4M3, E5M2, E2M1; no others). widen
 * is exact; narrow rounds to nearest even, and fp8 and fp4 saturate. A NaN gives the canonical NaN,
 * in fp4, which has none, the largest number. */
float lamprey_reference_widen(enum lamprey_reference_type type, uint16_t bits);
uint16_t lamprey_reference_narrow(enum lamprey_reference_type type, float value);

/* The same for fp32 too, in memory (no pointer need be aligned; not E2M1); round is there and back.
 */
float lamprey_reference_load(enum lamprey_reference_type type, const void *input, size_t index);
void lamprey_reference_store(enum lamprey_reference_type type, void *output, size_t index,
                             float value);
float lamprey_reference_round(enum lamprey_reference_type type, float value);

#ifdef __cplusplus
}
#endif

#endif
