/* SPDX-License-Identifier: Apache-2.0 */
/* Every kernel that is compiled, and which of them serves a call. */
#ifndef LAMPREY_KERNELS_INSTANCES_H
#define LAMPREY_KERNELS_INSTANCES_H

#include "kernels/protocol.h"

#ifdef __cplusplus
extern "C" {
#endif

enum lamprey_operators {
    LAMPREY_SUM_ONLY,
    LAMPREY_ANY_OPERATOR, /* a parameter chooses */
    LAMPREY_ROW_SUM,      /* of rows: row_numbers.cuh */
};

/* X(name in the fatbin, algorithm, element, operators, ranks or 0 for any number). The types that
 * models are made of have kernels of their own for their sums; all else shares one kernel a type
 * and algorithm, and one for 2 ranks. */
#define LAMPREY_SUMS_OF(X, suffix, element)                                                        \
    X(lamprey_one_shot_sum_##suffix##_2, LAMPREY_ONE_SHOT, element, LAMPREY_SUM_ONLY, 2)           \
    X(lamprey_one_shot_sum_##suffix##_4, LAMPREY_ONE_SHOT, element, LAMPREY_SUM_ONLY, 4)           \
    X(lamprey_one_shot_sum_##suffix##_8, LAMPREY_ONE_SHOT, element, LAMPREY_SUM_ONLY, 8)           \
    X(lamprey_two_shot_sum_##suffix##_4, LAMPREY_TWO_SHOT, element, LAMPREY_SUM_ONLY, 4)           \
    X(lamprey_two_shot_sum_##suffix##_8, LAMPREY_TWO_SHOT, element, LAMPREY_SUM_ONLY, 8)

#define LAMPREY_ANY_OF(X, suffix, element)                                                         \
    X(lamprey_one_shot_any_##suffix##_2, LAMPREY_ONE_SHOT, element, LAMPREY_ANY_OPERATOR, 2)       \
    X(lamprey_one_shot_any_##suffix##_n, LAMPREY_ONE_SHOT, element, LAMPREY_ANY_OPERATOR, 0)       \
    X(lamprey_two_shot_any_##suffix##_n, LAMPREY_TWO_SHOT, element, LAMPREY_ANY_OPERATOR, 0)

/* Those that have a twin for fused launches, the name's with _fused behind it. */
#define LAMPREY_ANY_KERNELS(X)                                                                     \
    LAMPREY_ANY_OF(X, f16, LAMPREY_F16)                                                            \
    LAMPREY_ANY_OF(X, bf16, LAMPREY_BF16)                                                          \
    LAMPREY_ANY_OF(X, f32, LAMPREY_F32)                                                            \
    LAMPREY_ANY_OF(X, f64, LAMPREY_F64)                                                            \
    LAMPREY_ANY_OF(X, e4m3, LAMPREY_E4M3)                                                          \
    LAMPREY_ANY_OF(X, e5m2, LAMPREY_E5M2)                                                          \
    LAMPREY_ANY_OF(X, i8, LAMPREY_I8)                                                              \
    LAMPREY_ANY_OF(X, i32, LAMPREY_I32)                                                            \
    LAMPREY_ANY_OF(X, i64, LAMPREY_I64)

#define LAMPREY_KERNELS(X)                                                                         \
    LAMPREY_SUMS_OF(X, f16, LAMPREY_F16)                                                           \
    LAMPREY_SUMS_OF(X, bf16, LAMPREY_BF16)                                                         \
    LAMPREY_SUMS_OF(X, f32, LAMPREY_F32)                                                           \
    LAMPREY_ANY_KERNELS(X)

#define LAMPREY_COUNT_ONE(name, algorithm, element, operators, ranks) +1
enum { LAMPREY_KERNEL_COUNT = 0 LAMPREY_KERNELS(LAMPREY_COUNT_ONE) };

/* kernel: 0 to LAMPREY_KERNEL_COUNT - 1. */
const char *lamprey_kernel_name(int kernel);
const char *lamprey_fused_kernel_name(int kernel); /* its twin's; NULL: it has none */
uint32_t lamprey_kernel_threads(int kernel);       /* the most that a CTA of it may have */

/* The kernel for a call: the most special one. */
int lamprey_kernel_of(enum lamprey_algorithm algorithm, enum lamprey_element element,
                      enum lamprey_operator op, uint32_t nranks);

/* The kernel whose twin takes any calls of this algorithm and element in one launch. */
int lamprey_fused_kernel_of(enum lamprey_algorithm algorithm, enum lamprey_element element,
                            uint32_t nranks);

uint32_t lamprey_element_bytes(enum lamprey_element element);
uint32_t lamprey_element_vector_cells(enum lamprey_element element); /* packets.cuh: cells */

#ifdef __cplusplus
}
#endif

#endif
