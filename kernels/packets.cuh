/* SPDX-License-Identifier: Apache-2.0 */
/* How a vector travels, so that whoever waits for it can tell by the cells themselves that it has
 * arrived. To the memory model a cell is two or four scalars, so each is judged by itself. A
 * cleared cell is all ones. cells    cells a vector takes clean    the vector as it travels:
 * without what would look like a cleared cell send     of a clean vector receive  false: not all
 * there yet */
#ifndef LAMPREY_KERNELS_PACKETS_CUH
#define LAMPREY_KERNELS_PACKETS_CUH

#include "kernels/primitives.cuh"
#include "kernels/protocol.h"

namespace lamprey {

/* For types in which a word of ones is a NaN, or several: it travels as NAN_WORD, another one. */
template <uint32_t NAN_WORD> struct sentinel_words {
    static constexpr unsigned cells = 1;

    static LAMPREY_INLINE vector clean(vector v)
    {
        for (int i = 0; i < 4; i++) {
            v.word[i] = v.word[i] == LAMPREY_SENTINEL ? NAN_WORD : v.word[i];
        }
        return v;
    }

    static LAMPREY_INLINE void send(vector *cell, const vector &v)
    {
        store_relaxed_sys(cell, v);
    }

    static LAMPREY_INLINE bool receive(const vector *cell, vector *v)
    {
        *v = load_relaxed_sys(cell);
        return v->word[0] != LAMPREY_SENTINEL && v->word[1] != LAMPREY_SENTINEL &&
               v->word[2] != LAMPREY_SENTINEL && v->word[3] != LAMPREY_SENTINEL;
    }
};

/* fp64: 64 ones are a NaN, 32 are not. */
struct sentinel_double_words {
    static constexpr unsigned cells = 1;

    static LAMPREY_INLINE vector clean(vector v)
    {
        for (int i = 0; i < 4; i += 2) {
            if (v.word[i] == LAMPREY_SENTINEL && v.word[i + 1] == LAMPREY_SENTINEL) {
                v.word[i + 1] = 0x7fffffffu;
            }
        }
        return v;
    }

    static LAMPREY_INLINE void send(vector *cell, const vector &v)
    {
        store_relaxed_sys_pairs(cell, v);
    }

    static LAMPREY_INLINE bool receive(const vector *cell, vector *v)
    {
        *v = load_relaxed_sys_pairs(cell);
        return (v->word[0] & v->word[1]) != LAMPREY_SENTINEL &&
               (v->word[2] & v->word[3]) != LAMPREY_SENTINEL;
    }
};

/* Integers have no pattern to spare: a flag goes with every 32 bits, in one 64-bit scalar. The flag
 * of what was sent is 0, that of a cleared cell all ones, so integers share slots and clears with
 * the other types, and no flag can come round again. */
struct flagged_words {
    static constexpr unsigned cells = 2;

    static LAMPREY_INLINE vector clean(const vector &v)
    {
        return v;
    }

    static LAMPREY_INLINE void send(vector *cell, const vector &v)
    {
        store_relaxed_sys_pairs(cell, {{v.word[0], 0, v.word[1], 0}});
        store_relaxed_sys_pairs(cell + 1, {{v.word[2], 0, v.word[3], 0}});
    }

    static LAMPREY_INLINE bool receive(const vector *cell, vector *v)
    {
        const vector low = load_relaxed_sys_pairs(cell);
        const vector high = load_relaxed_sys_pairs(cell + 1);
        *v = {{low.word[0], low.word[2], high.word[0], high.word[2]}};
        return (low.word[1] | low.word[3] | high.word[1] | high.word[3]) == 0;
    }
};

} // namespace lamprey

#endif
