/* SPDX-License-Identifier: Apache-2.0 */
/* How the ranks' numbers become one, in rank order. NUMERICS.md says what each operation gives.
 *   prepare   every rank's number, before anything else
 *   combine   the result so far with the next rank's number
 *   finish    the result of all */
#ifndef LAMPREY_KERNELS_OPERATORS_CUH
#define LAMPREY_KERNELS_OPERATORS_CUH

#include "kernels/elements.cuh"
#include "kernels/instances.h"

namespace lamprey {

/* The sum of floats, known when the kernel is compiled. */
struct float_sum {
    template <class P> LAMPREY_INLINE explicit float_sum(const P &)
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
    }
    template <int N> LAMPREY_INLINE void finish(float *) const
    {
    }
};

LAMPREY_DEVICE double minimum(double a, double b)
{
    if (a != a || b != b) {
        return a != a ? b : a;
    }
    return a < b || (a == b && bits_of_double(a) >> 63) ? a : b;
}
LAMPREY_DEVICE double maximum(double a, double b)
{
    if (a != a || b != b) {
        return a != a ? b : a;
    }
    return a > b || (a == b && bits_of_double(b) >> 63) ? a : b;
}

/* Chosen by a parameter; the choice is made once a vector. */
template <class NUMBER> struct any_float_operator {
    const uint32_t op;
    const NUMBER scale; /* of the average */

    template <class P>
    LAMPREY_INLINE explicit any_float_operator(const P &p)
        : op(p.op), scale((NUMBER)1 / (NUMBER)p.nranks)
    {
    }
    /* Before the sum, so that averages of large numbers don't overflow. */
    template <int N> LAMPREY_INLINE void prepare(NUMBER *numbers) const
    {
        if (op == LAMPREY_AVG) {
            for (int i = 0; i < N; i++) {
                numbers[i] = multiply(numbers[i], scale);
            }
        }
    }
    template <int N> LAMPREY_INLINE void combine(NUMBER *total, const NUMBER *next) const
    {
        switch (op) {
        case LAMPREY_PROD:
            for (int i = 0; i < N; i++) {
                total[i] = multiply(total[i], next[i]);
            }
            break;
        case LAMPREY_MIN:
            for (int i = 0; i < N; i++) {
                total[i] = minimum(total[i], next[i]);
            }
            break;
        case LAMPREY_MAX:
            for (int i = 0; i < N; i++) {
                total[i] = maximum(total[i], next[i]);
            }
            break;
        default:
            for (int i = 0; i < N; i++) {
                total[i] += next[i];
            }
        }
    }
    template <int N> LAMPREY_INLINE void finish(NUMBER *) const
    {
    }
};

/* BITS: of an element; numbers hold them zero-extended, and may overflow them between operations.
 */
template <class NUMBER, int BITS> struct any_integer_operator {
    static constexpr NUMBER mask = (NUMBER)-1 >> (8 * sizeof(NUMBER) - BITS);
    static constexpr NUMBER top = (NUMBER)1 << (BITS - 1);
    const uint32_t op;
    const NUMBER nranks;
    const NUMBER bias; /* makes signed numbers compare as unsigned ones */

    template <class P>
    LAMPREY_INLINE explicit any_integer_operator(const P &p)
        : op(p.op), nranks(p.nranks), bias(p.flags & LAMPREY_FLAG_SIGNED ? top : 0)
    {
    }
    template <int N> LAMPREY_INLINE void prepare(NUMBER *) const
    {
    }
    template <int N> LAMPREY_INLINE void combine(NUMBER *total, const NUMBER *next) const
    {
        switch (op) {
        case LAMPREY_PROD:
            for (int i = 0; i < N; i++) {
                total[i] *= next[i];
            }
            break;
        case LAMPREY_MIN:
            for (int i = 0; i < N; i++) {
                total[i] = (total[i] ^ bias) < (next[i] ^ bias) ? total[i] : next[i];
            }
            break;
        case LAMPREY_MAX:
            for (int i = 0; i < N; i++) {
                total[i] = (total[i] ^ bias) > (next[i] ^ bias) ? total[i] : next[i];
            }
            break;
        default:
            for (int i = 0; i < N; i++) {
                total[i] += next[i];
            }
        }
    }
    /* The average: the sum as the element holds it, divided towards zero. */
    template <int N> LAMPREY_INLINE void finish(NUMBER *numbers) const
    {
        if (op == LAMPREY_AVG) {
            for (int i = 0; i < N; i++) {
                const NUMBER sum = numbers[i] & mask;
                const bool negative = sum & bias;
                const NUMBER quotient = (negative ? (NUMBER)(0 - sum) & mask : sum) / nranks;
                numbers[i] = negative ? 0 - quotient : quotient;
            }
        }
    }
};

template <int OPERATORS, class E> struct operator_of {
    using type = any_float_operator<typename E::number>;
};
template <class S, class N> struct operator_of<LAMPREY_ANY_OPERATOR, integer<S, N>> {
    using type = any_integer_operator<N, 8 * sizeof(S)>;
};
template <class E> struct operator_of<LAMPREY_SUM_ONLY, E> {
    using type = float_sum;
};

} // namespace lamprey

#endif
