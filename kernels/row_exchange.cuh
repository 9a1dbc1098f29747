/* SPDX-License-Identifier: Apache-2.0 */
/* What the CTAs of a cluster tell each other about a row. Each word says itself that it has
 * arrived, as cells do (packets.cuh), and nobody meets: what a thread stores before a barrier of
 * the cluster, to its peers too, must have been performed by then (MEMBAR), which takes longer than
 * the rest of the epilogue. */
#ifndef LAMPREY_KERNELS_ROW_EXCHANGE_CUH
#define LAMPREY_KERNELS_ROW_EXCHANGE_CUH

#include "kernels/primitives.cuh"
#include "kernels/rows.h"

namespace lamprey {

struct row_exchange {
    static constexpr uint32_t missing = 0xffffffffu; /* no magnitude, and no sum: its NaN differs */
    static constexpr uint32_t left = 0xfffffffeu;    /* in place of a sum: the CTA lacks its data */

    const unsigned share_vectors;
    unsigned turn; /* 0 or 1 */

    LAMPREY_INLINE explicit row_exchange(uint32_t vectors) : share_vectors(vectors), turn(0)
    {
    }

    LAMPREY_INLINE unsigned segments() const
    {
        return lamprey_share_segments(share_vectors);
    }
    /* Each segment's sum of squares; from largest() on each warp's largest magnitude. */
    LAMPREY_INLINE uint32_t *words() const
    {
        return reinterpret_cast<uint32_t *>(shared_memory() + share_vectors) +
               turn * lamprey_row_exchange_words(share_vectors, cluster_size());
    }
    LAMPREY_INLINE unsigned largest() const
    {
        return lamprey_row_square_words(share_vectors, cluster_size());
    }

    LAMPREY_INLINE uint32_t *unit_largest() const
    {
        return reinterpret_cast<uint32_t *>(shared_memory() + share_vectors) +
               2 * lamprey_row_exchange_words(share_vectors, cluster_size());
    }

    LAMPREY_INLINE unsigned square_count() const
    {
        return cluster_size() * segments();
    }
    LAMPREY_INLINE unsigned largest_count() const
    {
        return cluster_size() * warp_count();
    }

    /* Words from the last one that anybody writes up to a whole vector are there from the start. */
    LAMPREY_INLINE void empty() const
    {
        const unsigned end = largest() + (largest_count() + 3) / 4 * 4;
        for (unsigned index = thread_index(); index < end; index += block_size()) {
            const unsigned used = index < largest() ? square_count() : largest() + largest_count();
            clear_shared(words() + index, index < used ? missing : 0);
        }
    }

    /* Before the first give comes cluster_wait. */
    LAMPREY_INLINE void begin()
    {
        empty();
        turn = 1;
        empty();
        turn = 0;
        cluster_arrive();
    }

    /* Between a barrier of the CTA that ends a row and a fence of each thread: a peer gives words
     * of the row after the next once it has this CTA's words of the next row. */
    LAMPREY_INLINE void next_row()
    {
        empty();
        turn = 1 - turn;
    }

    /* By a whole warp, to all CTAs of the cluster. */
    LAMPREY_INLINE void give(unsigned index, uint32_t word) const
    {
        each_lane(cluster_size(), [&](unsigned cta) { store_shared(words() + index, cta, word); });
    }
    LAMPREY_INLINE void give_square(unsigned segment, uint32_t word) const
    {
        give(cluster_rank() * segments() + segment, word);
    }
    LAMPREY_INLINE void give_largest(uint32_t word) const
    {
        give(largest() + cluster_rank() * warp_count() + warp_index(), word);
    }

    /* Returns, to a whole warp, once count words from first on are there; f(vector) for each four
     * of them by one lane. Lanes must leave together: where all load the same address, the compiler
     * takes what they get for equal and keeps their loop's counter once for all, but a word may
     * arrive between one lane's load and another's. SHORT: they are at most four a lane. */
    template <bool SHORT, class F>
    LAMPREY_INLINE void await_words(unsigned first, unsigned count, F f) const
    {
        const uint32_t *const at = words() + first;
        const unsigned vectors = (count + 3) / 4;
        bool complete;
        do {
            complete = true;
#pragma unroll 1
            for (unsigned from = 0; from < (SHORT ? 1 : vectors); from += 32) {
                each_lane(vectors - from, [&](unsigned lane) {
                    const vector got = load_shared(at + 4 * (from + lane));
                    for (int k = 0; k < 4; k++) {
                        complete &= got.word[k] != missing;
                    }
                    f(got);
                });
            }
        } while (!all_of_warp(complete));
    }

    /* False: some CTA has left. Every thread finds the same. */
    template <bool SHORT> LAMPREY_INLINE bool take_squares(float *total) const
    {
        bool complete = true;
        await_words<SHORT>(0, square_count(), [](const vector &) {});
        *total = 0;
#pragma unroll 4
        for (unsigned from = 0; from < square_count(); from += 4) {
            const vector got = load_shared(words() + from);
            for (int k = 0; k < 4; k++) {
                complete &= got.word[k] != left;
                /* behind the last sum come zeros, which change nothing */
                *total += float_of_bits(got.word[k]);
            }
        }
        return complete;
    }

    template <bool SHORT> LAMPREY_INLINE uint32_t take_largest() const
    {
        uint32_t found = 0;
        await_words<SHORT>(largest(), largest_count(), [&](const vector &got) {
            for (int k = 0; k < 4; k++) {
                found = got.word[k] != missing && got.word[k] > found ? got.word[k] : found;
            }
        });
        return largest_of_warp(found);
    }
};

} // namespace lamprey

#endif
