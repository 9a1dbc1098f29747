/* SPDX-License-Identifier: Apache-2.0 */
/* The quantised outputs of a row (NUMERICS.md). A thread takes 16 elements, a unit; a CTA has whole
 * units and whole groups of its row, in shared memory. quantise_vector.cuh is the short way. */
#ifndef LAMPREY_KERNELS_QUANTISE_CUH
#define LAMPREY_KERNELS_QUANTISE_CUH

#include "kernels/row_exchange.cuh"
#include "kernels/row_numbers.cuh"

namespace lamprey {

/* The magnitude of a float as an integer: in the same order, and a NaN is the largest. */
LAMPREY_DEVICE uint32_t magnitude_of(float value)
{
    return bits_of_float(value) & 0x7fffffffu;
}

LAMPREY_DEVICE uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* A NaN stays. */
LAMPREY_DEVICE float at_least(float least, float value)
{
    return value < least ? least : value;
}

/* e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6; a tie goes to the even code, beyond 6 to 6, a NaN to 7. */
LAMPREY_DEVICE uint32_t pack_e2m1(float value)
{
    const uint32_t bits = bits_of_float(value);
    const float size = float_of_bits(bits & 0x7fffffffu);
    const uint32_t code = !(size <= 0.25f) + !(size < 0.75f) + !(size <= 1.25f) + !(size < 1.75f) +
                          !(size <= 2.5f) + !(size < 3.5f) + !(size <= 5.0f);
    return (value == value ? bits >> 28 & 8 : 0) | code;
}

/* bytes: at most 16. */
LAMPREY_DEVICE void store_bytes(unsigned char *at, const uint32_t *words, unsigned bytes)
{
    if (bytes == 16 && (reinterpret_cast<uintptr_t>(at) & 15) == 0) {
        store(reinterpret_cast<vector *>(at), {{words[0], words[1], words[2], words[3]}});
    } else if (bytes == 8 && (reinterpret_cast<uintptr_t>(at) & 7) == 0) {
        *reinterpret_cast<uint64_t *>(at) = (uint64_t)words[1] << 32 | words[0];
    } else if (bytes % 4 == 0 && (reinterpret_cast<uintptr_t>(at) & 3) == 0) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            if (i < bytes / 4) {
                reinterpret_cast<uint32_t *>(at)[i] = words[i];
            }
        }
    } else {
#pragma unroll
        for (unsigned i = 0; i < 16; i++) {
            if (i < bytes) {
                at[i] = (unsigned char)(words[i / 4] >> i % 4 * 8);
            }
        }
    }
}

/* Where a scale of NVFP4 lies. columns: of the matrix of scales, padding counted. */
LAMPREY_DEVICE uint64_t fp4_scale_index(uint32_t layout, uint32_t columns, uint64_t row,
                                        uint32_t column)
{
    if (layout == LAMPREY_SCALES_LINEAR) {
        return row * columns + column;
    }
    const uint32_t rows = layout == LAMPREY_SCALES_128X4 ? 128 : 8;
    const uint32_t in_tile = (uint32_t)(row % rows);
    const uint32_t slot =
        layout == LAMPREY_SCALES_128X4 ? in_tile % 32 * 4 + in_tile / 32 : in_tile;
    return (row / rows * (columns / 4) + column / 4) * rows * 4 + slot * 4 + column % 4;
}

/* The scales of a row. */
struct row_scales {
    const lamprey_row_args &rows;
    const uint64_t token;

    LAMPREY_INLINE float given_scale() const
    {
        return rows.scale ? float_of_bits(load(reinterpret_cast<const uint32_t *>(rows.scale)))
                          : rows.scale_value;
    }

    LAMPREY_INLINE unsigned char *group_scale(uint64_t row, uint32_t group) const
    {
        const uint64_t column = (rows.tokens + 3) / 4 * 4; /* in words */
        return static_cast<unsigned char *>(rows.scale_out) + (group / 4 * column + row) * 4 +
               group % 4;
    }

    /* Also the padding behind the row's last group and below the last row. */
    LAMPREY_INLINE void store_group_scale(uint32_t group, uint32_t exponent) const
    {
        const uint32_t groups = rows.hidden / rows.group;
        *group_scale(token, group) = (unsigned char)exponent;
        if (group + 1 == groups) {
            for (uint32_t padding = groups; padding % 4 != 0; padding++) {
                *group_scale(token, padding) = 0;
            }
        }
        if (token + 1 == rows.tokens && group / 4 + 1 < (groups + 3) / 4) {
            for (uint64_t row = rows.tokens; row % 4 != 0; row++) {
                *group_scale(row, group) = 0;
            }
        }
    }

    /* The exponent's field of the scale: the least power of two that is not below. */
    LAMPREY_INLINE uint32_t exponent_of(uint32_t largest) const
    {
        const float scale = at_least(1e-10f, divide(float_of_bits(largest), 448.0f));
        const uint32_t exponent = (bits_of_float(scale) + 0x7fffffu) >> 23;
        return exponent > 255 ? 255 : exponent;
    }

    LAMPREY_INLINE void store_fp4_scale(uint32_t block, uint32_t scale) const
    {
        const uint32_t blocks = rows.hidden / LAMPREY_UNIT_ELEMENTS;
        const uint32_t columns =
            rows.layout == LAMPREY_SCALES_LINEAR ? blocks : (blocks + 3) / 4 * 4;
        unsigned char *const scales = static_cast<unsigned char *>(rows.scale_out);
        scales[fp4_scale_index(rows.layout, columns, token, block)] = (unsigned char)scale;
        for (uint32_t padding = block + 1; padding >= blocks && padding < columns; padding++) {
            scales[fp4_scale_index(rows.layout, columns, token, padding)] = 0;
        }
    }

    LAMPREY_INLINE float of_largest(uint32_t largest) const
    {
        return at_least(0x1p-9f / 448.0f, divide(float_of_bits(largest), 448.0f));
    }

    /* The one of a row; by one thread of the row. */
    LAMPREY_INLINE void store_row_scale(float scale) const
    {
        static_cast<uint32_t *>(rows.scale_out)[token] =
            scale == scale ? bits_of_float(scale) : 0x7fffffffu;
    }
};

/* Quotients by the scale of a row, each as if rounded once. A finite scale and its reciprocal are
 * normal numbers, and the rest of the product with a quotient, which is exact, corrects the
 * quotient: to the neighbouring number first, then to the rounded one (Markstein). What is so small
 * that its rest isn't exact is far below what e4m3 keeps. */
struct divisor {
    const float by;
    const float reciprocal;

    LAMPREY_INLINE explicit divisor(float scale) : by(scale), reciprocal(divide(1.0f, scale))
    {
    }

    LAMPREY_INLINE float correct(float quotient, float number) const
    {
        return multiply_add(multiply_add(-by, quotient, number), reciprocal, quotient);
    }

    LAMPREY_INLINE float quotient(float number) const
    {
        const float near = multiply(number, reciprocal);
        /* A zero keeps its sign; by infinity and NaN nothing is left to correct. */
        return near == 0 || reciprocal == 0 ? near : correct(correct(near, number), number);
    }
};

/* NVFP4's scale of a block, as e4m3, and what its numbers are multiplied with. */
struct fp4_block {
    uint32_t scale;
    float factor;

    LAMPREY_INLINE fp4_block(float global, uint32_t largest)
    {
        const float sixth = multiply(float_of_bits(largest), 1.0f / 6);
        const uint16_t pair = e4m3_format::pack(multiply(global, sixth), 0);
        float widened[2];
        e4m3_format::unpack(pair, widened);
        scale = pair & 0xff;
        factor = widened[0] == 0 ? 0.0f : divide(global, widened[0]);
    }
};

/* By which numbers of a group are multiplied. */
LAMPREY_DEVICE float inverse_of_exponent(uint32_t exponent)
{
    return exponent == 255 ? 0.0f : float_of_bits((254 - exponent) << 23);
}

/* What a CTA knows of the row's exchange; row_work fills it in. */
struct row_part {
    uint64_t token;
    uint32_t first; /* element of the row with which the share starts */
    uint32_t count; /* elements of the share that the row has */
    const row_exchange &exchange;
};

template <class E> struct quantiser {
    static constexpr unsigned elements = elements_per_vector<E>;
    static constexpr unsigned unit_vectors = LAMPREY_UNIT_ELEMENTS / elements;

    const lamprey_row_args &rows;
    const row_part &part;
    const row_scales scales;

    LAMPREY_INLINE quantiser(const lamprey_row_args &given, const row_part &given_part)
        : rows(given), part(given_part), scales{given, given_part.token}
    {
    }

    LAMPREY_INLINE unsigned units() const
    {
        return (part.count + LAMPREY_UNIT_ELEMENTS - 1) / LAMPREY_UNIT_ELEMENTS;
    }

    LAMPREY_INLINE unsigned unit_elements(unsigned unit) const
    {
        const unsigned left = part.count - unit * LAMPREY_UNIT_ELEMENTS;
        return left < LAMPREY_UNIT_ELEMENTS ? left : LAMPREY_UNIT_ELEMENTS;
    }

    template <class F> LAMPREY_INLINE void each_unit(F f) const
    {
#pragma unroll 1
        for (unsigned unit = thread_index(); unit < units(); unit += block_size()) {
            f(unit);
        }
    }

    LAMPREY_INLINE void load_unit(unsigned unit, float *numbers) const
    {
        const unsigned count = unit_elements(unit);
#pragma unroll
        for (unsigned i = 0; i < unit_vectors; i++) {
            if (i * elements < count) {
                unpack_vector<E>(shared_memory()[unit * unit_vectors + i], numbers + i * elements);
            }
        }
#pragma unroll
        for (unsigned i = 0; i < LAMPREY_UNIT_ELEMENTS; i++) {
            numbers[i] = i < count ? numbers[i] : 0.0f;
        }
    }

    LAMPREY_INLINE uint32_t largest_of(const float *numbers) const
    {
        uint32_t largest = 0;
#pragma unroll
        for (unsigned i = 0; i < LAMPREY_UNIT_ELEMENTS; i++) {
            largest = larger(largest, magnitude_of(numbers[i]));
        }
        return largest;
    }

    LAMPREY_INLINE void store_fp8(unsigned unit, const float *numbers) const
    {
        uint32_t words[4];
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            words[i] = (uint32_t)e4m3_format::pack(numbers[4 * i + 2], numbers[4 * i + 3]) << 16 |
                       e4m3_format::pack(numbers[4 * i], numbers[4 * i + 1]);
        }
        store_bytes(static_cast<unsigned char *>(rows.quant_out) + part.token * rows.hidden +
                        part.first + unit * LAMPREY_UNIT_ELEMENTS,
                    words, unit_elements(unit));
    }

    LAMPREY_INLINE void fp8_by_given_scale() const
    {
        const float inverse = divide(1.0f, scales.given_scale());
        each_unit([&](unsigned unit) {
            float numbers[LAMPREY_UNIT_ELEMENTS];
            load_unit(unit, numbers);
#pragma unroll
            for (unsigned i = 0; i < LAMPREY_UNIT_ELEMENTS; i++) {
                numbers[i] = multiply(numbers[i], inverse);
            }
            store_fp8(unit, numbers);
        });
    }

    /* The row's largest magnitude: every warp of the cluster gives its own. */
    LAMPREY_INLINE uint32_t largest_of_row() const
    {
        uint32_t largest = 0;
        each_unit([&](unsigned unit) {
            float numbers[LAMPREY_UNIT_ELEMENTS];
            load_unit(unit, numbers);
            largest = larger(largest, largest_of(numbers));
        });
        part.exchange.give_largest(largest_of_warp(largest));
        return part.exchange.template take_largest<false>();
    }

    LAMPREY_INLINE void fp8_by_token() const
    {
        const float scale = scales.of_largest(largest_of_row());
        const divisor by(scale);
        each_unit([&](unsigned unit) {
            float numbers[LAMPREY_UNIT_ELEMENTS];
            load_unit(unit, numbers);
#pragma unroll
            for (unsigned i = 0; i < LAMPREY_UNIT_ELEMENTS; i++) {
                numbers[i] = by.quotient(numbers[i]);
            }
            store_fp8(unit, numbers);
        });
        if (cluster_rank() == 0 && thread_index() == 0) {
            scales.store_row_scale(scale);
        }
    }

    /* Of the share. */
    LAMPREY_INLINE float number_of(unsigned element) const
    {
        const uint32_t bits =
            reinterpret_cast<const typename E::storage *>(shared_memory())[element];
        float numbers[elements_per_group<E>];
        E::unpack(&bits, numbers);
        return numbers[0];
    }

    /* element: of the share, the first of a group. */
    LAMPREY_INLINE uint32_t largest_of_group(unsigned element) const
    {
        uint32_t largest = 0;
        if (rows.group % LAMPREY_UNIT_ELEMENTS == 0) {
            const unsigned first = element / LAMPREY_UNIT_ELEMENTS;
#pragma unroll 1
            for (unsigned i = 0; i < rows.group / LAMPREY_UNIT_ELEMENTS; i++) {
                largest = larger(largest, part.exchange.unit_largest()[first + i]);
            }
            return largest;
        }
#pragma unroll 1
        for (unsigned i = element; i < element + rows.group; i++) {
            largest = larger(largest, magnitude_of(number_of(i)));
        }
        return largest;
    }

    /* Also stores the scale, if element is the first of its group. */
    LAMPREY_INLINE float inverse_of_group(unsigned element) const
    {
        const unsigned into = element % rows.group;
        const uint32_t exponent = scales.exponent_of(largest_of_group(element - into));
        if (into == 0) {
            scales.store_group_scale((part.first + element) / rows.group, exponent);
        }
        return inverse_of_exponent(exponent);
    }

    LAMPREY_INLINE void fp8_by_group() const
    {
        each_unit([&](unsigned unit) {
            float numbers[LAMPREY_UNIT_ELEMENTS];
            load_unit(unit, numbers);
            part.exchange.unit_largest()[unit] = largest_of(numbers);
        });
        block_sync();
        if (rows.group % LAMPREY_UNIT_ELEMENTS != 0) {
            fp8_by_odd_group();
            return;
        }
        each_unit([&](unsigned unit) {
            float numbers[LAMPREY_UNIT_ELEMENTS];
            load_unit(unit, numbers);
            const float inverse = inverse_of_group(unit * LAMPREY_UNIT_ELEMENTS);
#pragma unroll
            for (unsigned i = 0; i < LAMPREY_UNIT_ELEMENTS; i++) {
                numbers[i] = multiply(numbers[i], inverse);
            }
            store_fp8(unit, numbers);
        });
    }

    /* A unit is in several groups: element by element. */
    LAMPREY_INLINE void fp8_by_odd_group() const
    {
        unsigned char *const codes =
            static_cast<unsigned char *>(rows.quant_out) + part.token * rows.hidden + part.first;
        each_unit([&](unsigned unit) {
            float inverse = 0;
#pragma unroll 1
            for (unsigned i = 0; i < unit_elements(unit); i++) {
                const unsigned element = unit * LAMPREY_UNIT_ELEMENTS + i;
                if (i == 0 || element % rows.group == 0) {
                    inverse = inverse_of_group(element);
                }
                codes[element] =
                    (unsigned char)e4m3_format::pack(multiply(number_of(element), inverse), 0);
            }
        });
    }

    LAMPREY_INLINE void nvfp4() const
    {
        const float global = scales.given_scale();
        each_unit([&](unsigned unit) {
            float numbers[LAMPREY_UNIT_ELEMENTS];
            load_unit(unit, numbers);
            const fp4_block block(global, largest_of(numbers));
            uint32_t words[2] = {0, 0};
#pragma unroll
            for (unsigned i = 0; i < LAMPREY_UNIT_ELEMENTS; i++) {
                words[i / 8] |= pack_e2m1(multiply(numbers[i], block.factor)) << i % 8 * 4;
            }
            store_bytes(static_cast<unsigned char *>(rows.quant_out) +
                            (part.token * rows.hidden + part.first) / 2 + unit * 8,
                        words, 8);
            scales.store_fp4_scale(part.first / LAMPREY_UNIT_ELEMENTS + unit, block.scale);
        });
    }

    LAMPREY_INLINE void run() const
    {
        switch (rows.quantisation) {
        case LAMPREY_QUANT_FP8_STATIC:
            fp8_by_given_scale();
            break;
        case LAMPREY_QUANT_FP8_TOKEN:
            fp8_by_token();
            break;
        case LAMPREY_QUANT_FP8_GROUP:
            fp8_by_group();
            break;
        default:
            nvfp4();
        }
    }
};

} // namespace lamprey

#endif
