/* SPDX-License-Identifier: Apache-2.0 */
/* Every kernel for rows that is compiled, and which of them serves a call. */
#ifndef LAMPREY_KERNELS_ROW_INSTANCES_H
#define LAMPREY_KERNELS_ROW_INSTANCES_H

#include <stdbool.h>

#include "kernels/rows.h"

#ifdef __cplusplus
extern "C" {
#endif

enum lamprey_row_form {
    LAMPREY_ROWS_ANY,
    /* A share is moved in one round of one-shot, a vector a thread; all memory is at multiples of
     * 16, the sum is in fp32, the rows are given, groups are a warp's (row_plan.h), and ... */
    LAMPREY_ROWS_SINGLE,           /* nothing is quantised */
    LAMPREY_ROWS_SINGLE_QUANTISED, /* or something may be */
};

/* X(name in the fatbin, algorithm, element, ranks or 0 for any number, form) */
#define LAMPREY_SINGLE_ROWS_OF(X, suffix, element, ranks)                                          \
    X(lamprey_rows_##suffix##_##ranks, LAMPREY_ONE_SHOT, element, ranks, LAMPREY_ROWS_SINGLE)      \
    X(lamprey_rows_quantised_##suffix##_##ranks, LAMPREY_ONE_SHOT, element, ranks,                 \
      LAMPREY_ROWS_SINGLE_QUANTISED)

#define LAMPREY_ROWS_OF(X, suffix, element)                                                        \
    LAMPREY_SINGLE_ROWS_OF(X, suffix, element, 2)                                                  \
    LAMPREY_SINGLE_ROWS_OF(X, suffix, element, 4)                                                  \
    LAMPREY_SINGLE_ROWS_OF(X, suffix, element, 8)                                                  \
    X(lamprey_rows_one_shot_##suffix, LAMPREY_ONE_SHOT, element, 0, LAMPREY_ROWS_ANY)              \
    X(lamprey_rows_two_shot_##suffix, LAMPREY_TWO_SHOT, element, 0, LAMPREY_ROWS_ANY)

#define LAMPREY_ROW_KERNELS(X)                                                                     \
    LAMPREY_ROWS_OF(X, f16, LAMPREY_F16)                                                           \
    LAMPREY_ROWS_OF(X, bf16, LAMPREY_BF16)                                                         \
    LAMPREY_ROWS_OF(X, f32, LAMPREY_F32)

#define LAMPREY_COUNT_ROW(name, algorithm, element, ranks, form) +1
enum { LAMPREY_ROW_KERNEL_COUNT = 0 LAMPREY_ROW_KERNELS(LAMPREY_COUNT_ROW) };

/* kernel: 0 to LAMPREY_ROW_KERNEL_COUNT - 1. */
const char *lamprey_row_kernel_name(int kernel);
bool lamprey_row_kernel_is_near(int kernel); /* takes struct lamprey_near_row_params */

/* form: the call meets what it asks for. */
int lamprey_row_kernel_of(enum lamprey_algorithm algorithm, enum lamprey_element element,
                          uint32_t nranks, enum lamprey_row_form form);

#ifdef __cplusplus
}
#endif

#endif
