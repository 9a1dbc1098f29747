/* SPDX-License-Identifier: Apache-2.0 */
/* What the quantised outputs of a fused all-reduce must hold, bit for bit: the rules of NUMERICS.md
 * in plain C, beside reference.h. */
#ifndef LAMPREY_KERNELS_QUANTISE_REFERENCE_H
#define LAMPREY_KERNELS_QUANTISE_REFERENCE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum lamprey_reference_format {
    LAMPREY_REFERENCE_UNQUANTISED,
    LAMPREY_REFERENCE_FP8,       /* e4m3 by a scale that the caller gives */
    LAMPREY_REFERENCE_FP8_TOKEN, /* e4m3, an fp32 scale a row */
    LAMPREY_REFERENCE_FP8_GROUP, /* e4m3, a power of two a group, packed */
    LAMPREY_REFERENCE_NVFP4,     /* e2m1, an e4m3 scale per 16 elements */
};

/* Where NVFP4's scales lie. */
enum lamprey_reference_layout {
    LAMPREY_REFERENCE_128X4,
    LAMPREY_REFERENCE_8X4,
    LAMPREY_REFERENCE_LINEAR,
};

struct lamprey_reference_quantisation {
    enum lamprey_reference_format format;
    float scale_factor;                   /* FP8 divides by it, NVFP4 multiplies by it */
    size_t group;                         /* FP8_GROUP: elements of a group; divides hidden */
    enum lamprey_reference_layout layout; /* NVFP4 */
};

/* Bytes of the codes and of the scales, padding counted. hidden is a multiple of the group, for
 * NVFP4 of 16. */
size_t lamprey_reference_code_bytes(const struct lamprey_reference_quantisation *quantisation,
                                    size_t tokens, size_t hidden);
size_t lamprey_reference_scale_bytes(const struct lamprey_reference_quantisation *quantisation,
                                     size_t tokens, size_t hidden);

/* Bytes of a matrix of NVFP4 scales, padding counted, and where one of them lies. */
size_t lamprey_reference_fp4_scale_bytes(enum lamprey_reference_layout layout, size_t rows,
                                         size_t columns);
size_t lamprey_reference_fp4_scale_index(enum lamprey_reference_layout layout, size_t columns,
                                         size_t row, size_t column);

/* Row row of tokens, given as hidden values. Writes its codes, its scales and the padding behind
 * them; the last row writes the padding below it too. Bytes that NUMERICS.md calls unwritten stay
 * as they are. scales may be NULL where the format has none. */
void lamprey_reference_quantise_row(const struct lamprey_reference_quantisation *quantisation,
                                    size_t tokens, size_t hidden, size_t row, const float *values,
                                    void *codes, void *scales);

#ifdef __cplusplus
}
#endif

#endif
