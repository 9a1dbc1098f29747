/* SPDX-License-Identifier: Apache-2.0 */
/* Element types: how a 16-byte vector of one becomes fp32 numbers and back. */
#ifndef LAMPREY_KERNELS_ELEMENTS_CUH
#define LAMPREY_KERNELS_ELEMENTS_CUH

#include "kernels/primitives.cuh"

namespace lamprey {

/* unpack: word i of a vector to its fp32 numbers; pack: back, rounded once, every NaN the canonical
 * one. */
struct half {
    using storage = uint16_t;
    static constexpr int per_word = 2;
    static LAMPREY_INLINE void unpack(uint32_t word, float *values)
    {
        values[0] = half_to_float((uint16_t)word);
        values[1] = half_to_float((uint16_t)(word >> 16));
    }
    static LAMPREY_INLINE uint32_t pack(const float *values)
    {
        return pack_half(values[0], values[1]);
    }
};

struct bfloat16 {
    using storage = uint16_t;
    static constexpr int per_word = 2;
    static LAMPREY_INLINE void unpack(uint32_t word, float *values)
    {
        values[0] = float_of_bits(word << 16);
        values[1] = float_of_bits(word & 0xffff0000u);
    }
    static LAMPREY_INLINE uint32_t pack(const float *values)
    {
        return pack_bfloat16(values[0], values[1]);
    }
};

struct float32 {
    using storage = uint32_t;
    static constexpr int per_word = 1;
    static LAMPREY_INLINE void unpack(uint32_t word, float *values)
    {
        values[0] = float_of_bits(word);
    }
    static LAMPREY_INLINE uint32_t pack(const float *values)
    {
        return bits_of_sum(values[0]);
    }
};

} // namespace lamprey

#endif
