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

/* The conversions of the types of 16 and 8 bits (F16, BF16, E4M3, E5M2; no others). widen is exact;
 * narrow rounds to nearest even, and fp8 saturates. A NaN gives the canonical NaN. */
float lamprey_reference_widen(enum lamprey_reference_type type, uint16_t bits);
uint16_t lamprey_reference_narrow(enum lamprey_reference_type type, float value);

#ifdef __cplusplus
}
#endif

#endif
