/* SPDX-License-Identifier: Apache-2.0 */
/* A message of elements, seen as vectors of 16 bytes wherever it lies. */
#ifndef LAMPREY_KERNELS_MESSAGE_CUH
#define LAMPREY_KERNELS_MESSAGE_CUH

#include "kernels/elements.cuh"

namespace lamprey {

template <int RANKS> struct params_for {
    using type = lamprey_near_params;
};
template <> struct params_for<0> {
    using type = lamprey_all_reduce_params;
};

/* By value: a choice of references would put both into memory. */
LAMPREY_DEVICE vector select(bool first, const vector &a, const vector &b)
{
    vector v;
    for (int i = 0; i < 4; i++) {
        v.word[i] = first ? a.word[i] : b.word[i];
    }
    return v;
}

/* f(index) for the vectors below count that are this thread's. */
template <class F> LAMPREY_DEVICE void each_vector(unsigned count, F f)
{
    if (thread_has_one_vector) {
        if (thread_index() < count) {
            f(thread_index());
        }
    } else {
        for (unsigned index = thread_index(); index < count; index += block_size()) {
            f(index);
        }
    }
}

/* Vector index of a message; elements beyond its end are zero. wide: the message lies at a multiple
 * of 16 and has no part of a vector. */
template <class E>
LAMPREY_DEVICE vector load_input(const void *message, uint64_t index, uint64_t count, bool wide)
{
    if (wide) {
        return load(static_cast<const vector *>(message) + index);
    }
    using storage = typename E::storage;
    constexpr int bits = 8 * sizeof(storage);
    const storage *elements = static_cast<const storage *>(message);
    vector v = {{0, 0, 0, 0}};
    for (int i = 0; i < elements_per_vector<E>; i++) {
        const uint64_t at = index * elements_per_vector<E> + i;
        if (at < count) {
            const uint64_t element = elements[at];
            v.word[i * bits / 32] |= (uint32_t)(element << i * bits % 32);
            if (bits == 64) {
                v.word[i * bits / 32 + 1] = (uint32_t)(element >> 32);
            }
        }
    }
    return v;
}

template <class E>
LAMPREY_DEVICE void store_output(void *message, uint64_t index, uint64_t count, bool wide,
                                 const vector &v)
{
    if (wide) {
        store(static_cast<vector *>(message) + index, v);
        return;
    }
    using storage = typename E::storage;
    constexpr int bits = 8 * sizeof(storage);
    storage *elements = static_cast<storage *>(message);
    for (int i = 0; i < elements_per_vector<E>; i++) {
        const uint64_t at = index * elements_per_vector<E> + i;
        if (at < count) {
            uint64_t element = v.word[i * bits / 32] >> i * bits % 32;
            if (bits == 64) {
                element |= (uint64_t)v.word[i * bits / 32 + 1] << 32;
            }
            elements[at] = (storage)element;
        }
    }
}

} // namespace lamprey

#endif
