/* SPDX-License-Identifier: Apache-2.0 */
/* What stands before and behind an all-reduce on a stream: a producer of its input, a consumer that
 * reads the output before it waits, and one that reads after it. Numbers are small integers, which
 * bf16 holds, and no round's are those of one of the 63 rounds before. */
#ifndef LAMPREY_TESTS_GPU_PDL_ORDER_CUH
#define LAMPREY_TESTS_GPU_PDL_ORDER_CUH

#include "kernels/primitives.cuh"
#include "tests/gpu/counting.cuh"
#include "tests/gpu/pdl_order.h"

namespace lamprey {

LAMPREY_DEVICE uint32_t pdl_order_number(uint32_t round, uint32_t rank, uint32_t element)
{
    return (round * 7 + element * 3 + rank * 37) & 127;
}

/* numbers(element) as bf16, for the eight elements of a vector. */
template <class F> LAMPREY_DEVICE vector pdl_order_vector(uint32_t index, F numbers)
{
    vector v;
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t element = index * 8 + 2 * i;
        v.word[i] = (bits_of_float((float)numbers(element + 1)) & 0xffff0000u) |
                    bits_of_float((float)numbers(element)) >> 16;
    }
    return v;
}

LAMPREY_DEVICE vector pdl_order_sum(uint32_t round, uint32_t index)
{
    return pdl_order_vector(index, [&](uint32_t element) {
        return pdl_order_number(round, 0, element) + pdl_order_number(round, 1, element);
    });
}

/* One CTA, since it also counts the rounds. */
LAMPREY_DEVICE void pdl_order_produce(const pdl_order_params &p)
{
    wait_for_dependencies();
    const uint32_t round = load_relaxed_sys(p.round) + 1;
    for (uint32_t index = thread_index(); index < p.vectors; index += block_size()) {
        store(static_cast<vector *>(p.message) + index,
              pdl_order_vector(index, [&](uint32_t element) {
                  return pdl_order_number(round, p.rank, element);
              }));
    }
    block_sync();
    if (thread_index() == 0) {
        *p.round = round;
    }
}

/* The round's number is sure to be there: the all-reduce lets nobody start before its own wait,
 * which is for the producer. */
LAMPREY_DEVICE void pdl_order_consume_early(const pdl_order_params &p)
{
    const uint32_t round = load_relaxed_sys(p.round);
    const vector *message = static_cast<const vector *>(p.message);
    uint32_t wrong = 0;
    uint32_t only_cached = 0;
    for (uint32_t index = first_index(); index < p.vectors; index += all_threads()) {
        const vector shared = load_relaxed_sys(message + index);
        const vector plain = load(message + index);
        const vector sum = pdl_order_sum(round, index);
        wrong += !same(shared, sum) || !same(plain, sum);
        only_cached += same(shared, sum) && !same(plain, sum);
    }
    wait_for_dependencies();
    if (wrong != 0) {
        count(&p.counts->before, wrong);
        count(&p.counts->only_cached, only_cached);
    }
}

LAMPREY_DEVICE void pdl_order_consume(const pdl_order_params &p)
{
    wait_for_dependencies();
    const uint32_t round = load_relaxed_sys(p.round);
    uint32_t wrong = 0;
    for (uint32_t index = first_index(); index < p.vectors; index += all_threads()) {
        wrong += !same(load(static_cast<const vector *>(p.message) + index),
                       pdl_order_sum(round, index));
    }
    if (wrong != 0) {
        count(&p.counts->after, wrong);
    }
}

} // namespace lamprey

#endif
