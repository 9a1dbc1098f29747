/* SPDX-License-Identifier: Apache-2.0 */
/* The quantised outputs of a row (NUMERICS.md) where a thread has one vector of it, in registers:
 * what several vectors decide, their warp's lanes tell each other. */
#ifndef LAMPREY_KERNELS_QUANTISE_VECTOR_CUH
#define LAMPREY_KERNELS_QUANTISE_VECTOR_CUH

#include "kernels/quantise.cuh"

namespace lamprey {

/* All of a warp's threads take part; those beyond the row have zeros. */
template <class E> struct vector_quantiser {
    static constexpr unsigned elements = elements_per_vector<E>;

    const lamprey_row_args &rows;
    const row_scales scales;
    const row_exchange &exchange;
    const uint32_t first; /* element of the row with which the vector starts */
    const bool there;     /* the row has this vector */
    float numbers[elements];

    LAMPREY_INLINE vector_quantiser(const lamprey_row_args &given, uint64_t token,
                                    const row_exchange &given_exchange, uint32_t first_element,
                                    bool has_vector, const vector &v)
        : rows(given), scales{given, token}, exchange(given_exchange), first(first_element),
          there(has_vector)
    {
        unpack_vector<E>(v, numbers);
    }

    LAMPREY_INLINE uint32_t largest() const
    {
        uint32_t found = 0;
#pragma unroll
        for (unsigned i = 0; i < elements; i++) {
            found = larger(found, magnitude_of(numbers[i]));
        }
        return there ? found : 0;
    }

    /* Of vectors that lie side by side; a power of two of them, of one warp. */
    LAMPREY_INLINE uint32_t largest_of(unsigned vectors) const
    {
        uint32_t found = largest();
        for (unsigned distance = 1; distance < vectors; distance *= 2) {
            found = larger(found, value_of_lane(found, distance));
        }
        return found;
    }

    LAMPREY_INLINE void scale_by(float factor)
    {
#pragma unroll
        for (unsigned i = 0; i < elements; i++) {
            numbers[i] = multiply(numbers[i], factor);
        }
    }

    LAMPREY_INLINE void store_fp8() const
    {
        uint32_t words[2] = {0, 0};
#pragma unroll
        for (unsigned i = 0; i < elements; i += 2) {
            words[i / 4] |= (uint32_t)e4m3_format::pack(numbers[i], numbers[i + 1]) << i % 4 * 8;
        }
        if (there) {
            store_bytes(static_cast<unsigned char *>(rows.quant_out) + scales.token * rows.hidden +
                            first,
                        words, elements);
        }
    }

    LAMPREY_INLINE void fp8_by_token()
    {
        exchange.give_largest(largest_of_warp(largest()));
        const float scale = scales.of_largest(exchange.template take_largest<true>());
        const divisor by(scale);
#pragma unroll
        for (unsigned i = 0; i < elements; i++) {
            numbers[i] = by.quotient(numbers[i]);
        }
        store_fp8();
        if (first == 0) {
            scales.store_row_scale(scale);
        }
    }

    LAMPREY_INLINE void fp8_by_group()
    {
        const uint32_t exponent = scales.exponent_of(largest_of(rows.group / elements));
        scale_by(inverse_of_exponent(exponent));
        store_fp8();
        if (there && first % rows.group == 0) {
            scales.store_group_scale(first / rows.group, exponent);
        }
    }

    LAMPREY_INLINE void nvfp4(float global) const
    {
        const fp4_block block(global, largest_of(LAMPREY_UNIT_ELEMENTS / elements));
        uint32_t word = 0;
#pragma unroll
        for (unsigned i = 0; i < elements; i++) {
            word |= pack_e2m1(multiply(numbers[i], block.factor)) << i * 4;
        }
        if (there) {
            store_bytes(static_cast<unsigned char *>(rows.quant_out) +
                            (scales.token * rows.hidden + first) / 2,
                        &word, elements / 2);
            if (first % LAMPREY_UNIT_ELEMENTS == 0) {
                scales.store_fp4_scale(first / LAMPREY_UNIT_ELEMENTS, block.scale);
            }
        }
    }

    /* given: the scale, or its inverse for FP8. */
    LAMPREY_INLINE void run(float given)
    {
        switch (rows.quantisation) {
        case LAMPREY_QUANT_FP8_STATIC:
            scale_by(given);
            store_fp8();
            break;
        case LAMPREY_QUANT_FP8_TOKEN:
            fp8_by_token();
            break;
        case LAMPREY_QUANT_FP8_GROUP:
            fp8_by_group();
            break;
        default:
            nvfp4(given);
        }
    }
};

} // namespace lamprey

#endif
