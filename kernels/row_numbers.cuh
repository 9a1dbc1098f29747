/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors of a row as numbers, and the sums that rows are made of (NUMERICS.md). */
#ifndef LAMPREY_KERNELS_ROW_NUMBERS_CUH
#define LAMPREY_KERNELS_ROW_NUMBERS_CUH

#include "kernels/message.cuh"
#include "kernels/operators.cuh"
#include "kernels/rows.h"

namespace lamprey {

template <class E> LAMPREY_DEVICE void unpack_vector(const vector &v, float *numbers)
{
    constexpr int group = elements_per_group<E>;
#pragma unroll
    for (int i = 0; i < elements_per_vector<E> / group; i++) {
        E::unpack(v.word + i * E::group, numbers + i * group);
    }
}

/* N numbers, each rounded to the type. */
template <class E, int N> LAMPREY_DEVICE void round_to(float *numbers)
{
    float all[elements_per_vector<E>] = {};
    for (int i = 0; i < N; i++) {
        all[i] = numbers[i];
    }
    const vector v = E::pack(all);
    unpack_vector<E>(v, all);
    for (int i = 0; i < N; i++) {
        numbers[i] = all[i];
    }
}

template <class E> LAMPREY_DEVICE vector add_vectors(const vector &a, const vector &b)
{
    float sum[elements_per_vector<E>];
    float other[elements_per_vector<E>];
    unpack_vector<E>(a, sum);
    unpack_vector<E>(b, other);
    for (int i = 0; i < elements_per_vector<E>; i++) {
        sum[i] += other[i];
    }
    return E::pack(sum);
}

/* The first levels of a segment's tree. */
template <class E> LAMPREY_DEVICE float sum_of_squares(const vector &v)
{
    float tree[elements_per_vector<E>];
    unpack_vector<E>(v, tree);
    for (int i = 0; i < elements_per_vector<E>; i++) {
        tree[i] = multiply(tree[i], tree[i]);
    }
    for (int width = elements_per_vector<E> / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; i++) {
            tree[i] = tree[2 * i] + tree[2 * i + 1];
        }
    }
    return tree[0];
}

/* Row row of a matrix without gaps. */
template <class E>
LAMPREY_DEVICE const void *row_of(const void *matrix, uint64_t row, uint32_t hidden)
{
    return static_cast<const typename E::storage *>(matrix) + row * hidden;
}
template <class E> LAMPREY_DEVICE void *row_of(void *matrix, uint64_t row, uint32_t hidden)
{
    return static_cast<typename E::storage *>(matrix) + row * hidden;
}

/* The sum of floats, rounded to the type at each step if the call asks for it. */
template <class E> struct row_sum {
    const bool stepwise;

    template <class P>
    LAMPREY_INLINE explicit row_sum(const P &p) : stepwise(p.flags & LAMPREY_FLAG_STEPWISE)
    {
    }
    template <int N> LAMPREY_INLINE void prepare(float *) const
    {
    }
    template <int N> LAMPREY_INLINE void combine(float *total, const float *next) const
    {
        for (int i = 0; i < N; i++) {
            total[i] += next[i];
        }
        if (stepwise) {
            round_to<E, N>(total);
        }
    }
    template <int N> LAMPREY_INLINE void finish(float *) const
    {
    }
};

template <class E> struct operator_of<LAMPREY_ROW_SUM, E> {
    using type = row_sum<E>;
};

} // namespace lamprey

#endif
