/* SPDX-License-Identifier: Apache-2.0 */
/* What a fused all-reduce must give, bit for bit: the rules of NUMERICS.md in plain C, beside
 * reference.h. A call is made of three steps, each with a function here: what a rank contributes
 * (itself, or the sum over its experts), the sum over ranks, and what happens to each row of it. */
#ifndef LAMPREY_KERNELS_FUSED_REFERENCE_H
#define LAMPREY_KERNELS_FUSED_REFERENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/quantise_reference.h"
#include "kernels/reference.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The element type is F16, BF16 or F32 everywhere; weights and expert scales are of it or F32.
 * Matrices lie row by row without gaps; no pointer to elements need be aligned. */

enum lamprey_reference_accumulation {
    LAMPREY_REFERENCE_IN_F32,     /* rounded to the element type once */
    LAMPREY_REFERENCE_IN_ELEMENT, /* after every product and sum */
};

/* As lamprey_reference_all_reduce, for sums. */
void lamprey_reference_sum(enum lamprey_reference_type type,
                           enum lamprey_reference_accumulation accumulation, int nranks,
                           const void *const *inputs, void *output, size_t count);

/* 1 / sqrt(value), rounded once. */
float lamprey_reference_inverse_root(float value);

/* What happens to the rows of the sum, in this order, each step where it is asked for:
 *   bias added, norm (pre_norm), residual added    -> residual_out
 *   norm                                           -> norm_out
 *   quantisation of norm_out's numbers (of residual_out's without a norm) -> codes, scales */
struct lamprey_reference_epilogue {
    enum lamprey_reference_type type;
    enum lamprey_reference_type gamma_type; /* of both gammas */
    size_t tokens;
    size_t hidden;
    const void *sum;       /* tokens x hidden */
    const void *bias;      /* hidden elements, or NULL */
    const void *residual;  /* tokens x hidden, or NULL */
    const void *pre_gamma; /* hidden elements, or NULL: all weights are 1 */
    const void *gamma;     /* the same */
    bool pre_norm;
    bool norm;
    float epsilon;
    float weight_bias; /* added to each gamma */
    struct lamprey_reference_quantisation quantisation;
    void *residual_out; /* tokens x hidden, or NULL */
    void *norm_out;     /* tokens x hidden, or NULL */
    void *codes;
    void *scales;
};

/* residual_out and norm_out may be sum or residual; other memory overlaps nowhere. */
void lamprey_reference_finish_rows(const struct lamprey_reference_epilogue *epilogue);

/* output[t] = sum over e of scales[e][t] * expert_rows[e][t], and token_rows[t] */
struct lamprey_reference_moe_reduction {
    enum lamprey_reference_type type;
    enum lamprey_reference_accumulation accumulation;
    size_t tokens;
    size_t hidden;
    size_t experts;
    const float *scales;     /* experts x tokens */
    const void *expert_rows; /* experts x tokens x hidden */
    const void *token_rows;  /* tokens x hidden, or NULL */
};

void lamprey_reference_moe_reduce(const struct lamprey_reference_moe_reduction *reduction,
                                  void *output);

/* output[t] = routed_scale * sum over k of scales[t][k] * rows[row_of[t][k]], and shared[t] */
struct lamprey_reference_moe_finalisation {
    enum lamprey_reference_type type;
    enum lamprey_reference_type scale_type;
    enum lamprey_reference_accumulation accumulation;
    size_t tokens;
    size_t hidden;
    size_t top_k;
    const void *rows;      /* of hidden elements */
    const int32_t *row_of; /* tokens x top_k; what is negative is skipped */
    const void *scales;    /* tokens x top_k, or NULL: all are 1 */
    float routed_scale;    /* 1: none */
    const void *shared;    /* tokens x hidden, or NULL */
};

void lamprey_reference_moe_finalise(const struct lamprey_reference_moe_finalisation *finalisation,
                                    void *output);

#ifdef __cplusplus
}
#endif

#endif
