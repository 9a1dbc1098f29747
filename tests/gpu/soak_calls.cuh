/* SPDX-License-Identifier: Apache-2.0 */
/* Inputs of sums over two ranks, made on the GPU, and the check of the results there: any rank can
 * make every rank's input. */
#ifndef LAMPREY_TESTS_GPU_SOAK_CALLS_CUH
#define LAMPREY_TESTS_GPU_SOAK_CALLS_CUH

#include "kernels/message.cuh"
#include "tests/gpu/counting.cuh"
#include "tests/gpu/soak_calls.h"

namespace lamprey {

LAMPREY_DEVICE uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* Random bits of 64 that keep the sign, the fraction and the exponent's last two bits, and the
 * exponent's other bits: numbers so close together that every rank's shows in the sum. */
LAMPREY_DEVICE constexpr uint64_t random_bits(int element)
{
    return element == LAMPREY_F16    ? 0x8fff8fff8fff8fffull
           : element == LAMPREY_BF16 ? 0x81ff81ff81ff81ffull
           : element == LAMPREY_F32  ? 0x81ffffff81ffffffull
           : element == LAMPREY_F64  ? 0x803fffffffffffffull
                                     : ~0ull;
}
LAMPREY_DEVICE constexpr uint64_t fixed_bits(int element)
{
    return element == LAMPREY_F16    ? 0x3000300030003000ull
           : element == LAMPREY_BF16 ? 0x3e003e003e003e00ull
           : element == LAMPREY_F32  ? 0x3e0000003e000000ull
           : element == LAMPREY_F64  ? 0x3fc0000000000000ull
                                     : 0;
}

LAMPREY_DEVICE uint64_t soak_calls_key(const soak_calls_params &p)
{
    return p.replays ? mix(p.key + load_relaxed_sys(p.replays) * 0xd1342543de82ef95ull) : p.key;
}

/* Mostly numbers; now and then any bits, or all ones, which the kernels must not take for memory
 * without data. Beyond the message's end zero. */
template <int ELEMENT>
LAMPREY_DEVICE vector soak_calls_input(const soak_calls_params &p, uint64_t key, uint32_t rank,
                                       uint64_t index)
{
    using E = typename element_of<ELEMENT>::type;
    vector v;
    for (int half = 0; half < 2; half++) {
        const uint64_t random =
            mix(key + (index * 4 + (uint64_t)half * 2 + rank) * 0x9e3779b97f4a7c15ull);
        const uint64_t kind = random * 0xd1342543de82ef95ull >> 58;
        const uint64_t bits = kind == 0   ? ~0ull
                              : kind == 1 ? random
                                          : (random & random_bits(ELEMENT)) | fixed_bits(ELEMENT);
        v.word[2 * half] = (uint32_t)bits;
        v.word[2 * half + 1] = (uint32_t)(bits >> 32);
    }
    const uint64_t bytes =
        p.count * sizeof(typename E::storage) - index * LAMPREY_VECTOR_BYTES; /* at least 1 */
    for (uint64_t i = 0; i < 4; i++) {
        if (bytes <= 4 * i) {
            v.word[i] = 0;
        } else if (bytes < 4 * i + 4) {
            v.word[i] &= (1u << 8 * (bytes - 4 * i)) - 1;
        }
    }
    return v;
}

/* In rank order, rounded once. */
template <int ELEMENT>
LAMPREY_DEVICE vector soak_calls_sum(const soak_calls_params &p, uint64_t key, uint64_t index)
{
    using E = typename element_of<ELEMENT>::type;
    using number = typename E::number;
    constexpr int group = elements_per_group<E>;
    const vector first = soak_calls_input<ELEMENT>(p, key, 0, index);
    const vector second = soak_calls_input<ELEMENT>(p, key, 1, index);
    number total[elements_per_vector<E>];
    for (int i = 0; i < elements_per_vector<E> / group; i++) {
        number next[group];
        E::unpack(first.word + i * E::group, total + i * group);
        E::unpack(second.word + i * E::group, next);
        for (int k = 0; k < group; k++) {
            total[i * group + k] += next[k];
        }
    }
    return E::pack(total);
}

template <int ELEMENT> LAMPREY_DEVICE void soak_calls_fill_all(const soak_calls_params &p)
{
    using E = typename element_of<ELEMENT>::type;
    const uint64_t key = soak_calls_key(p);
    for (uint32_t index = first_index(); index < p.vectors; index += all_threads()) {
        store_output<E>(p.message, index, p.count, p.wide,
                        soak_calls_input<ELEMENT>(p, key, p.rank, index));
    }
}

template <int ELEMENT> LAMPREY_DEVICE void soak_calls_check_all(const soak_calls_params &p)
{
    using E = typename element_of<ELEMENT>::type;
    const uint64_t key = soak_calls_key(p);
    for (uint32_t index = first_index(); index < p.vectors; index += all_threads()) {
        const vector got = load_input<E>(p.message, index, p.count, p.wide);
        const vector expected = soak_calls_sum<ELEMENT>(p, key, index);
        if (!same(got, expected) && count(&p.report->mismatches, 1) == 0) {
            p.report->key = p.key;
            p.report->index = index;
            for (int i = 0; i < 4; i++) {
                p.report->got[i] = got.word[i];
                p.report->expected[i] = expected.word[i];
            }
        }
    }
}

#define SOAK_CALLS_BY_ELEMENT(function)                                                            \
    switch (p.element) {                                                                           \
    case LAMPREY_F16:                                                                              \
        return function<LAMPREY_F16>(p);                                                           \
    case LAMPREY_BF16:                                                                             \
        return function<LAMPREY_BF16>(p);                                                          \
    case LAMPREY_F32:                                                                              \
        return function<LAMPREY_F32>(p);                                                           \
    case LAMPREY_F64:                                                                              \
        return function<LAMPREY_F64>(p);                                                           \
    case LAMPREY_I8:                                                                               \
        return function<LAMPREY_I8>(p);                                                            \
    default:                                                                                       \
        return function<LAMPREY_I32>(p);                                                           \
    }

LAMPREY_DEVICE void soak_calls_fill(const soak_calls_params &p)
{
    wait_for_dependencies();
    SOAK_CALLS_BY_ELEMENT(soak_calls_fill_all)
}

LAMPREY_DEVICE void soak_calls_check(const soak_calls_params &p)
{
    wait_for_dependencies();
    SOAK_CALLS_BY_ELEMENT(soak_calls_check_all)
}

LAMPREY_DEVICE void soak_calls_replay(const soak_calls_replay_params &p)
{
    wait_for_dependencies();
    ++*p.replays;
}

} // namespace lamprey

#endif
