/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/fused_reference.h"

/* How one rank's numbers are combined before the all-reduce. */
struct accumulator {
    enum lamprey_reference_type type;
    enum lamprey_reference_accumulation accumulation;
    float value;
};

static struct accumulator start(enum lamprey_reference_type type,
                                enum lamprey_reference_accumulation accumulation)
{
    return (struct accumulator){type, accumulation, 0};
}

static float step(const struct accumulator *accumulator, float value)
{
    return accumulator->accumulation == LAMPREY_REFERENCE_IN_ELEMENT
               ? lamprey_reference_round(accumulator->type, value)
               : value;
}

static void add(struct accumulator *accumulator, float value)
{
    accumulator->value = step(accumulator, accumulator->value + value);
}

static void add_product(struct accumulator *accumulator, float value, float scale)
{
    const float product = value * scale;
    add(accumulator, step(accumulator, product));
}

static void multiply(struct accumulator *accumulator, float scale)
{
    accumulator->value = step(accumulator, accumulator->value * scale);
}

void lamprey_reference_moe_reduce(const struct lamprey_reference_moe_reduction *reduction,
                                  void *output)
{
    const enum lamprey_reference_type type = reduction->type;
    const size_t count = reduction->tokens * reduction->hidden;
    for (size_t i = 0; i < count; i++) {
        const float *scales = reduction->scales + i / reduction->hidden;
        struct accumulator sum = start(type, reduction->accumulation);
        for (size_t expert = 0; expert < reduction->experts; expert++) {
            add_product(&sum,
                        lamprey_reference_load(type, reduction->expert_rows, expert * count + i),
                        scales[expert * reduction->tokens]);
        }
        if (reduction->token_rows != NULL) {
            add(&sum, lamprey_reference_load(type, reduction->token_rows, i));
        }
        lamprey_reference_store(type, output, i, sum.value);
    }
}

/* Column column of the rows that slot k of a token chose. */
static void add_choice(const struct lamprey_reference_moe_finalisation *finalisation, size_t slot,
                       size_t column, struct accumulator *sum)
{
    const int32_t row = finalisation->row_of[slot];
    if (row < 0) {
        return;
    }
    const float value = lamprey_reference_load(finalisation->type, finalisation->rows,
                                               (size_t)row * finalisation->hidden + column);
    if (finalisation->scales == NULL) {
        add(sum, value);
        return;
    }
    add_product(sum, value,
                lamprey_reference_load(finalisation->scale_type, finalisation->scales, slot));
}

void lamprey_reference_moe_finalise(const struct lamprey_reference_moe_finalisation *finalisation,
                                    void *output)
{
    const enum lamprey_reference_type type = finalisation->type;
    const size_t count = finalisation->tokens * finalisation->hidden;
    for (size_t i = 0; i < count; i++) {
        const size_t token = i / finalisation->hidden;
        struct accumulator sum = start(type, finalisation->accumulation);
        for (size_t k = 0; k < finalisation->top_k; k++) {
            add_choice(finalisation, token * finalisation->top_k + k, i % finalisation->hidden,
                       &sum);
        }
        multiply(&sum, finalisation->routed_scale);
        if (finalisation->shared != NULL) {
            add(&sum, lamprey_reference_load(type, finalisation->shared, i));
        }
        lamprey_reference_store(type, output, i, sum.value);
    }
}
