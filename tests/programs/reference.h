/* SPDX-License-Identifier: Apache-2.0 */
/* Inputs made from a seed and the all-reduce that they must give, element by element, for every
 * type and operator. */
#ifndef LAMPREY_TESTS_PROGRAMS_REFERENCE_H
#define LAMPREY_TESTS_PROGRAMS_REFERENCE_H

#include <nccl.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

size_t reference_type_size(ncclDataType_t type);
const char *reference_type_name(ncclDataType_t type);
const char *reference_op_name(ncclRedOp_t op);

/* The elements first .. first + count of a rank's input. Small enough that no result overflows. */
void reference_fill(void *data, size_t first, size_t count, ncclDataType_t type, ncclRedOp_t op,
                    uint64_t seed, int rank, int nranks);

/* Compares a result with the reduction of all ranks' inputs: fp32 (fp64 for double) in rank order,
 * rounded once. Integers, minimum and maximum must match exactly. Other floats must match exactly
 * if exact is set (never for averages), else within the error that rounding after every addition in
 * any order can make. Returns the number of wrong elements and tells the first one on stderr. */
size_t reference_check(const void *data, size_t first, size_t count, ncclDataType_t type,
                       ncclRedOp_t op, uint64_t seed, int nranks, int exact, const char *what);

#ifdef __cplusplus
}
#endif

#endif
