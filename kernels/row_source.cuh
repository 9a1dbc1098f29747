/* SPDX-License-Identifier: Apache-2.0 */
/* What a rank contributes to a row: its own, or what its experts made of it (NUMERICS.md). */
#ifndef LAMPREY_KERNELS_ROW_SOURCE_CUH
#define LAMPREY_KERNELS_ROW_SOURCE_CUH

#include "kernels/row_numbers.cuh"

namespace lamprey {

template <class E> struct moe_source {
    static constexpr int elements = elements_per_vector<E>;

    const lamprey_moe &moe;
    const lamprey_row_args &rows;
    const bool stepwise;
    const bool wide;

    LAMPREY_INLINE void step(float *numbers) const
    {
        if (stepwise) {
            round_to<E, elements>(numbers);
        }
    }

    LAMPREY_INLINE void load_row(const void *matrix, uint64_t row, unsigned index,
                                 float *numbers) const
    {
        unpack_vector<E>(
            load_input<E>(row_of<E>(matrix, row, rows.hidden), index, rows.hidden, wide), numbers);
    }

    LAMPREY_INLINE void add(float *sum, const float *numbers) const
    {
#pragma unroll
        for (int i = 0; i < elements; i++) {
            sum[i] += numbers[i];
        }
        step(sum);
    }

    LAMPREY_INLINE void scale(float *numbers, float factor) const
    {
#pragma unroll
        for (int i = 0; i < elements; i++) {
            numbers[i] = multiply(numbers[i], factor);
        }
        step(numbers);
    }

    /* Element index of an array that is fp32 or of the rows' type. */
    LAMPREY_INLINE float load_scale(uint64_t index, bool fp32) const
    {
        if (fp32) {
            return static_cast<const float *>(moe.scales)[index];
        }
        const uint32_t bits = static_cast<const typename E::storage *>(moe.scales)[index];
        float numbers[elements_per_group<E>];
        E::unpack(&bits, numbers);
        return numbers[0];
    }

    LAMPREY_INLINE void reduce(uint64_t token, unsigned index, float *sum) const
    {
        for (uint32_t expert = 0; expert < moe.count; expert++) {
            const uint64_t row = expert * rows.tokens + token;
            float numbers[elements];
            load_row(moe.inputs, row, index, numbers);
            scale(numbers, load_scale(row, true));
            add(sum, numbers);
        }
    }

    LAMPREY_INLINE void finalize(uint64_t token, unsigned index, float *sum) const
    {
        for (uint32_t k = 0; k < moe.count; k++) {
            const uint64_t choice = token * moe.count + k;
            const int32_t row = moe.indices[choice];
            if (row < 0) {
                continue;
            }
            float numbers[elements];
            load_row(moe.inputs, (uint64_t)row, index, numbers);
            if (moe.scales) {
                scale(numbers, load_scale(choice, moe.wide_scales));
            }
            add(sum, numbers);
        }
        scale(sum, moe.factor);
    }

    LAMPREY_INLINE vector load(uint64_t token, unsigned index) const
    {
        float sum[elements] = {};
        if (moe.source == LAMPREY_ROWS_MOE_REDUCE) {
            reduce(token, index, sum);
        } else {
            finalize(token, index, sum);
        }
        if (moe.added) {
            float numbers[elements];
            load_row(moe.added, token, index, numbers);
            add(sum, numbers);
        }
        return E::pack(sum);
    }
};

} // namespace lamprey

#endif
