/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/quantise_reference.h"

#include <stdint.h>
#include <string.h>

#include "kernels/reference.h"
#include "kernels/reference_bits.h"

#define FP8_LARGEST 448.0f
#define FP4_BLOCK 16
#define PACK 4 /* scales of a word, columns of a tile */

typedef const struct lamprey_reference_quantisation *quantisation_pointer;

static size_t round_up(size_t value, size_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* The rows of a tile of scales. */
static size_t tile_rows(enum lamprey_reference_layout layout)
{
    switch (layout) {
    case LAMPREY_REFERENCE_128X4:
        return 128;
    case LAMPREY_REFERENCE_8X4:
        return 8;
    default:
        return 1;
    }
}

static size_t padded_columns(enum lamprey_reference_layout layout, size_t columns)
{
    return layout == LAMPREY_REFERENCE_LINEAR ? columns : round_up(columns, PACK);
}

size_t lamprey_reference_fp4_scale_bytes(enum lamprey_reference_layout layout, size_t rows,
                                         size_t columns)
{
    return round_up(rows, tile_rows(layout)) * padded_columns(layout, columns);
}

size_t lamprey_reference_fp4_scale_index(enum lamprey_reference_layout layout, size_t columns,
                                         size_t row, size_t column)
{
    const size_t width = padded_columns(layout, columns);
    if (layout == LAMPREY_REFERENCE_LINEAR) {
        return row * width + column;
    }
    const size_t rows = tile_rows(layout);
    const size_t tile = row / rows * (width / PACK) + column / PACK;
    const size_t in_tile = row % rows;
    /* Rows 0, 32, 64 and 96 of the larger tile share a line of 16 bytes. */
    const size_t slot = rows == 128 ? in_tile % 32 * 4 + in_tile / 32 : in_tile;
    return tile * rows * PACK + slot * PACK + column % PACK;
}

/* Packed group scales lie column by column of words, a column as long as tokens rounded up to 4,
 * but for the last, which ends with the last token. */
static size_t group_scale_index(size_t tokens, size_t row, size_t group)
{
    return (group / PACK * round_up(tokens, PACK) + row) * PACK + group % PACK;
}

size_t lamprey_reference_code_bytes(quantisation_pointer quantisation, size_t tokens, size_t hidden)
{
    switch (quantisation->format) {
    case LAMPREY_REFERENCE_UNQUANTISED:
        return 0;
    case LAMPREY_REFERENCE_NVFP4:
        return tokens * hidden / 2;
    default:
        return tokens * hidden;
    }
}

size_t lamprey_reference_scale_bytes(quantisation_pointer quantisation, size_t tokens,
                                     size_t hidden)
{
    switch (quantisation->format) {
    case LAMPREY_REFERENCE_FP8_TOKEN:
        return tokens * sizeof(float);
    case LAMPREY_REFERENCE_FP8_GROUP:
        return tokens == 0 ? 0
                           : group_scale_index(tokens, tokens - 1,
                                               round_up(hidden / quantisation->group, PACK) - 1) +
                                 1;
    case LAMPREY_REFERENCE_NVFP4:
        return lamprey_reference_fp4_scale_bytes(quantisation->layout, tokens, hidden / FP4_BLOCK);
    default:
        return 0;
    }
}

/* The largest magnitude; a NaN, whose pattern is above all numbers', counts as the largest. */
static float largest_magnitude(const float *values, size_t count)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t magnitude = f32_bits(values[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return f32_of(largest);
}

/* A NaN stays. */
static float at_least(float least, float value)
{
    return value < least ? least : value;
}

static void quantise_fp8(float inverse, const float *values, size_t count, uint8_t *codes)
{
    for (size_t i = 0; i < count; i++) {
        codes[i] = (uint8_t)lamprey_reference_narrow(LAMPREY_REFERENCE_E4M3, values[i] * inverse);
    }
}

static void divide_to_fp8(float scale, const float *values, size_t count, uint8_t *codes)
{
    for (size_t i = 0; i < count; i++) {
        codes[i] = (uint8_t)lamprey_reference_narrow(LAMPREY_REFERENCE_E4M3, values[i] / scale);
    }
}

static float token_scale(const float *values, size_t count)
{
    return at_least(0x1p-9f / FP8_LARGEST, largest_magnitude(values, count) / FP8_LARGEST);
}

/* The exponent's field of the least power of two that is not below; 255 for infinity and NaNs. */
static uint8_t group_exponent(const float *values, size_t count)
{
    const uint32_t bits =
        f32_bits(at_least(1e-10f, largest_magnitude(values, count) / FP8_LARGEST));
    const uint32_t exponent = (bits + 0x7fffffu) >> 23;
    return (uint8_t)(exponent > 255 ? 255 : exponent);
}

static void quantise_groups(quantisation_pointer quantisation, size_t tokens, size_t hidden,
                            size_t row, const float *values, uint8_t *codes, uint8_t *scales)
{
    const size_t groups = hidden / quantisation->group;
    for (size_t group = 0; group < groups; group++) {
        const size_t first = group * quantisation->group;
        const uint8_t exponent = group_exponent(values + first, quantisation->group);
        divide_to_fp8(f32_of((uint32_t)exponent << 23), values + first, quantisation->group,
                      codes + first);
        scales[group_scale_index(tokens, row, group)] = exponent;
    }
    for (size_t group = groups; group < round_up(groups, PACK); group++) {
        scales[group_scale_index(tokens, row, group)] = 0;
    }
}

/* Below the last row, in all columns but the last. */
static void clear_group_padding(quantisation_pointer quantisation, size_t tokens, size_t hidden,
                                uint8_t *scales)
{
    const size_t columns = round_up(hidden / quantisation->group, PACK) / PACK;
    for (size_t column = 0; column + 1 < columns; column++) {
        for (size_t row = tokens; row < round_up(tokens, PACK); row++) {
            memset(scales + group_scale_index(tokens, row, column * PACK), 0, PACK);
        }
    }
}

/* Two codes a byte, the first in the low half. */
static uint8_t quantise_fp4_block(float scale_factor, const float *values, uint8_t *codes)
{
    const float largest = largest_magnitude(values, FP4_BLOCK) * (1.0f / 6);
    const uint8_t scale =
        (uint8_t)lamprey_reference_narrow(LAMPREY_REFERENCE_E4M3, scale_factor * largest);
    const float divisor = lamprey_reference_widen(LAMPREY_REFERENCE_E4M3, scale);
    const float factor = divisor == 0 ? 0 : scale_factor / divisor;
    for (size_t i = 0; i < FP4_BLOCK; i += 2) {
        const unsigned low = lamprey_reference_narrow(LAMPREY_REFERENCE_E2M1, values[i] * factor);
        const unsigned high =
            lamprey_reference_narrow(LAMPREY_REFERENCE_E2M1, values[i + 1] * factor);
        codes[i / 2] = (uint8_t)(high << 4 | low);
    }
    return scale;
}

static void quantise_fp4(quantisation_pointer quantisation, size_t hidden, size_t row,
                         const float *values, uint8_t *codes, uint8_t *scales)
{
    const size_t columns = hidden / FP4_BLOCK;
    for (size_t column = 0; column < padded_columns(quantisation->layout, columns); column++) {
        const size_t first = column * FP4_BLOCK;
        scales[lamprey_reference_fp4_scale_index(quantisation->layout, columns, row, column)] =
            column < columns
                ? quantise_fp4_block(quantisation->scale_factor, values + first, codes + first / 2)
                : 0;
    }
}

void lamprey_reference_quantise_row(quantisation_pointer quantisation, size_t tokens, size_t hidden,
                                    size_t row, const float *values, void *codes, void *scales)
{
    if (quantisation->format == LAMPREY_REFERENCE_UNQUANTISED) {
        return;
    }
    uint8_t *row_codes = (uint8_t *)codes + lamprey_reference_code_bytes(quantisation, row, hidden);
    switch (quantisation->format) {
    case LAMPREY_REFERENCE_FP8:
        quantise_fp8(1 / quantisation->scale_factor, values, hidden, row_codes);
        break;
    case LAMPREY_REFERENCE_FP8_TOKEN: {
        const float scale = token_scale(values, hidden);
        divide_to_fp8(scale, values, hidden, row_codes);
        lamprey_reference_store(LAMPREY_REFERENCE_F32, scales, row, scale);
        break;
    }
    case LAMPREY_REFERENCE_FP8_GROUP:
        quantise_groups(quantisation, tokens, hidden, row, values, row_codes, scales);
        if (row + 1 == tokens) {
            clear_group_padding(quantisation, tokens, hidden, scales);
        }
        break;
    case LAMPREY_REFERENCE_NVFP4:
        quantise_fp4(quantisation, hidden, row, values, row_codes, scales);
        break;
    default:
        break;
    }
}
