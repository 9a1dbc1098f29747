/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/fused_reference.h"

#include <math.h>
#include <stdlib.h>

#define SEGMENT_BYTES 512

typedef enum lamprey_reference_type element_type;

void lamprey_reference_sum(element_type type, enum lamprey_reference_accumulation accumulation,
                           int nranks, const void *const *inputs, void *output, size_t count)
{
    if (accumulation == LAMPREY_REFERENCE_IN_F32) {
        lamprey_reference_all_reduce(type, LAMPREY_REFERENCE_SUM, nranks, inputs, output, count);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        float sum = lamprey_reference_load(type, inputs[0], i);
        for (int rank = 1; rank < nranks; rank++) {
            sum =
                lamprey_reference_round(type, sum + lamprey_reference_load(type, inputs[rank], i));
        }
        lamprey_reference_store(type, output, i, sum);
    }
}

/* Segments in order; in each a tree of neighbours, zeros behind the row's end. */
static float sum_of_squares(element_type type, const float *values, size_t count)
{
    float tree[SEGMENT_BYTES / sizeof(uint16_t)];
    const size_t segment = SEGMENT_BYTES / lamprey_reference_size(type);
    float total = 0;
    for (size_t start = 0; start < count; start += segment) {
        for (size_t i = 0; i < segment; i++) {
            const float value = start + i < count ? values[start + i] : 0;
            tree[i] = value * value;
        }
        for (size_t width = segment / 2; width > 0; width /= 2) {
            for (size_t i = 0; i < width; i++) {
                tree[i] = tree[2 * i] + tree[2 * i + 1];
            }
        }
        total += tree[0];
    }
    return total;
}

/* A double's root and quotient lie close enough to round to the right float for every float. */
float lamprey_reference_inverse_root(float value)
{
    return (float)(1 / sqrt((double)value));
}

/* One row on its way, as values of the element type. */
struct row {
    const struct lamprey_reference_epilogue *epilogue;
    float *values;
};

/* addend: hidden elements from index first on. */
static void add(const struct row *row, const void *addend, size_t first)
{
    const element_type type = row->epilogue->type;
    for (size_t i = 0; i < row->epilogue->hidden; i++) {
        row->values[i] = lamprey_reference_round(
            type, row->values[i] + lamprey_reference_load(type, addend, first + i));
    }
}

static void normalise(const struct row *row, const void *gamma)
{
    const struct lamprey_reference_epilogue *epilogue = row->epilogue;
    const float share = 1 / (float)epilogue->hidden;
    const float mean = sum_of_squares(epilogue->type, row->values, epilogue->hidden) * share;
    const float factor = lamprey_reference_inverse_root(mean + epilogue->epsilon);
    for (size_t i = 0; i < epilogue->hidden; i++) {
        float value = row->values[i] * factor;
        if (gamma != NULL) {
            value *= epilogue->weight_bias + lamprey_reference_load(epilogue->gamma_type, gamma, i);
        }
        row->values[i] = lamprey_reference_round(epilogue->type, value);
    }
}

static void write_out(const struct row *row, void *output, size_t first)
{
    for (size_t i = 0; output != NULL && i < row->epilogue->hidden; i++) {
        lamprey_reference_store(row->epilogue->type, output, first + i, row->values[i]);
    }
}

void lamprey_reference_finish_rows(const struct lamprey_reference_epilogue *epilogue)
{
    const struct row row = {epilogue, malloc(epilogue->hidden * sizeof(float))};
    if (row.values == NULL) {
        abort();
    }
    for (size_t token = 0; token < epilogue->tokens; token++) {
        const size_t first = token * epilogue->hidden;
        for (size_t i = 0; i < epilogue->hidden; i++) {
            row.values[i] = lamprey_reference_load(epilogue->type, epilogue->sum, first + i);
        }
        if (epilogue->bias != NULL) {
            add(&row, epilogue->bias, 0);
        }
        if (epilogue->pre_norm) {
            normalise(&row, epilogue->pre_gamma);
        }
        if (epilogue->residual != NULL) {
            add(&row, epilogue->residual, first);
        }
        write_out(&row, epilogue->residual_out, first);
        if (epilogue->norm) {
            normalise(&row, epilogue->gamma);
        }
        write_out(&row, epilogue->norm_out, first);
        lamprey_reference_quantise_row(&epilogue->quantisation, epilogue->tokens, epilogue->hidden,
                                       token, row.values, epilogue->codes, epilogue->scales);
    }
    free(row.values);
}
