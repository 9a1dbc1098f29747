/* SPDX-License-Identifier: Apache-2.0 */
/* One-shot all-reduce: every rank pushes its data to all peers, then sums what it received in rank
 * order. The protocol is in protocol.h; a round is one kernel, so the kernel boundary orders a
 * round's clears before the next round's pushes. */
#ifndef LAMPREY_KERNELS_ONE_SHOT_CUH
#define LAMPREY_KERNELS_ONE_SHOT_CUH

#include "kernels/elements.cuh"
#include "kernels/protocol.h"

namespace lamprey {

/* The abort word lies in host memory. A GPU's reads of it are served one by one, 0.5 to 0.7 us each
 * (2 x H200), and every waiting warp reads: 0.35 ms for 256 KiB. The wait before the first look must
 * be far longer than that, or a rank that looked is so late that its peers look in the next round,
 * and so on for ever. About 20 ms. */
constexpr unsigned polls_per_abort_check = 1 << 16;

LAMPREY_DEVICE bool arrived(const vector &v)
{
    return v.word[0] != LAMPREY_SENTINEL && v.word[1] != LAMPREY_SENTINEL &&
           v.word[2] != LAMPREY_SENTINEL && v.word[3] != LAMPREY_SENTINEL;
}

/* The sentinel itself becomes 0x7fffffff, which is a NaN in every type too: for 16-bit types a pair
 * of them. */
LAMPREY_DEVICE vector without_sentinel(vector v)
{
    for (int i = 0; i < 4; i++) {
        v.word[i] = v.word[i] == LAMPREY_SENTINEL ? 0x7fff7fffu : v.word[i];
    }
    return v;
}

/* Vector index of a message; elements beyond its end are zero. wide: the pointer is 16-byte
 * aligned. */
template <typename T>
LAMPREY_DEVICE vector load_input(const void *message, uint64_t index, uint64_t count, bool wide)
{
    using storage = typename T::storage;
    constexpr int per_vector = LAMPREY_VECTOR_BYTES / sizeof(storage);
    if (wide && (index + 1) * per_vector <= count) {
        return load(static_cast<const vector *>(message) + index);
    }
    vector v = {{0, 0, 0, 0}};
    const storage *elements = static_cast<const storage *>(message) + index * per_vector;
    for (int i = 0; i < per_vector; i++) {
        if (index * per_vector + i < count) {
            constexpr int per_word = 4 / sizeof(storage);
            v.word[i / per_word] |= (uint32_t)elements[i] << (i % per_word * 8 * sizeof(storage));
        }
    }
    return v;
}

template <typename T>
LAMPREY_DEVICE void store_output(void *message, uint64_t index, uint64_t count, bool wide,
                                 const vector &v)
{
    using storage = typename T::storage;
    constexpr int per_vector = LAMPREY_VECTOR_BYTES / sizeof(storage);
    if (wide && (index + 1) * per_vector <= count) {
        store(static_cast<vector *>(message) + index, v);
        return;
    }
    storage *elements = static_cast<storage *>(message) + index * per_vector;
    for (int i = 0; i < per_vector; i++) {
        if (index * per_vector + i < count) {
            constexpr int per_word = 4 / sizeof(storage);
            elements[i] = (storage)(v.word[i / per_word] >> (i % per_word * 8 * sizeof(storage)));
        }
    }
}

template <typename T, int RANKS> struct one_shot {
    /* Loops over ranks run to a constant, so that every array stays in registers. */
    static constexpr unsigned rank_slots = RANKS ? RANKS : LAMPREY_MAX_RANKS;

    const lamprey_all_reduce_params &p;
    const unsigned nranks;
    const unsigned lane;

    LAMPREY_INLINE explicit one_shot(const lamprey_all_reduce_params &params)
        : p(params), nranks(RANKS ? RANKS : params.nranks), lane(block_index())
    {
    }

    LAMPREY_INLINE vector *cell(unsigned owner, unsigned slot, unsigned source,
                                unsigned index) const
    {
        uint64_t piece = ((uint64_t)lane * LAMPREY_SLOTS + slot) * nranks + source;
        return reinterpret_cast<vector *>(p.staging[owner]) + piece * p.lane_capacity + index;
    }

    LAMPREY_INLINE void push(unsigned slot, unsigned index, const vector &input) const
    {
        vector v = without_sentinel(input);
#pragma unroll
        for (unsigned peer = 0; peer < rank_slots; peer++) {
            if (peer < nranks && peer != p.rank) {
                store_relaxed_sys(cell(peer, slot, p.rank, index), v);
            }
        }
    }

    LAMPREY_INLINE void clear(unsigned slot, unsigned index) const
    {
        const vector empty = {
            {LAMPREY_SENTINEL, LAMPREY_SENTINEL, LAMPREY_SENTINEL, LAMPREY_SENTINEL}};
#pragma unroll
        for (unsigned source = 0; source < rank_slots; source++) {
            if (source < nranks && source != p.rank) {
                store_relaxed_sys(cell(p.rank, slot, source, index), empty);
            }
        }
    }

    /* Waits for every peer's vector and adds them in rank order. False: the communicator was
     * aborted. */
    LAMPREY_INLINE bool reduce(unsigned slot, unsigned index, const vector &input,
                               vector *sum) const
    {
        vector received[rank_slots];
        for (unsigned polls = 1;; polls++) {
            bool complete = true;
#pragma unroll
            for (unsigned source = 0; source < rank_slots; source++) {
                if (source < nranks && source != p.rank) {
                    received[source] = load_relaxed_sys(cell(p.rank, slot, source, index));
                } else {
                    received[source] = without_sentinel(input);
                }
            }
#pragma unroll
            for (unsigned source = 0; source < rank_slots; source++) {
                complete = complete && (source >= nranks || arrived(received[source]));
            }
            if (complete) {
                break;
            }
            if (polls % polls_per_abort_check == 0 && load_relaxed_sys(p.abort) != 0) {
                return false;
            }
        }
#pragma unroll
        for (int word = 0; word < 4; word++) {
            float total[T::per_word];
            T::unpack(received[0].word[word], total);
#pragma unroll
            for (unsigned source = 1; source < rank_slots; source++) {
                float next[T::per_word];
                T::unpack(received[source].word[word], next);
                if (source < nranks) {
#pragma unroll
                    for (int i = 0; i < T::per_word; i++) {
                        total[i] += next[i];
                    }
                }
            }
            sum->word[word] = T::pack(total);
        }
        return true;
    }

    LAMPREY_INLINE void run() const
    {
        wait_for_dependencies();
        if (p.flags & LAMPREY_FLAG_SIGNAL) {
            launch_dependents();
        }
        constexpr unsigned per_vector = LAMPREY_VECTOR_BYTES / sizeof(typename T::storage);
        const unsigned thread = thread_index();
        const unsigned threads = block_size();
        const uint64_t first = (uint64_t)lane * p.lane_vectors;
        const uint64_t vectors = (p.count + per_vector - 1) / per_vector;
        const unsigned mine =
            (unsigned)(vectors - first < p.lane_vectors ? vectors - first : p.lane_vectors);
        const bool wide_input = (reinterpret_cast<uintptr_t>(p.send) & 15) == 0;
        const bool wide_output = (reinterpret_cast<uintptr_t>(p.recv) & 15) == 0;

        /* The state's load overlaps the input's. */
        const vector state = load(reinterpret_cast<const vector *>(p.lanes + lane));
        vector input = {{0, 0, 0, 0}};
        if (thread < mine) {
            input = load_input<T>(p.send, first + thread, p.count, wide_input);
        }
        const unsigned slot = state.word[0];
        const unsigned dirty = state.word[1];
        const unsigned last_slot = slot == 0 ? LAMPREY_SLOTS - 1 : slot - 1;

        if (thread < mine) {
            push(slot, thread, input);
        }
        for (unsigned index = thread + threads; index < mine; index += threads) {
            push(slot, index, load_input<T>(p.send, first + index, p.count, wide_input));
        }
        for (unsigned index = thread; index < dirty; index += threads) {
            clear(last_slot, index);
        }
        block_sync(); /* every thread has read the state */
        if (thread == 0) {
            const uint64_t round = ((uint64_t)state.word[3] << 32 | state.word[2]) + 1;
            const vector next = {{slot == LAMPREY_SLOTS - 1 ? 0 : slot + 1, mine, (uint32_t)round,
                                  (uint32_t)(round >> 32)}};
            store(reinterpret_cast<vector *>(p.lanes + lane), next);
        }

        for (unsigned index = thread; index < mine; index += threads) {
            /* In place is safe: this thread alone reads this input, and it writes after it has
             * read. */
            if (index != thread) {
                input = load_input<T>(p.send, first + index, p.count, wide_input);
            }
            vector sum;
            if (!reduce(slot, index, input, &sum)) {
                return;
            }
            store_output<T>(p.recv, first + index, p.count, wide_output, sum);
        }
    }
};

} // namespace lamprey

#endif
