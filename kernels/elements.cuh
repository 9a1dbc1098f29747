/* SPDX-License-Identifier: Apache-2.0 */
/* Element types: how a 16-byte vector of one becomes numbers to compute with, and back. What each
 * operation gives is written down in NUMERICS.md.
 *   storage   an element in memory
 *   number    what is computed with
 *   packet    how vectors of it travel
 *   group     words of a vector that hold whole numbers
 *   unpack    of a group; exact
 *   pack      of a vector; rounds once, to nearest even; every NaN becomes the canonical one */
#ifndef LAMPREY_KERNELS_ELEMENTS_CUH
#define LAMPREY_KERNELS_ELEMENTS_CUH

#include "kernels/packets.cuh"
#include "kernels/small_floats.cuh"

namespace lamprey {

template <class E>
constexpr int elements_per_vector = LAMPREY_VECTOR_BYTES / sizeof(typename E::storage);
template <class E> constexpr int elements_per_group = elements_per_vector<E> *E::group / 4;

struct half {
    using storage = uint16_t;
    using number = float;
    using packet = sentinel_words<0x7fff7fffu>;
    static constexpr int group = 1;
    static LAMPREY_INLINE void unpack(const uint32_t *word, float *numbers)
    {
        numbers[0] = half_to_float((uint16_t)*word);
        numbers[1] = half_to_float((uint16_t)(*word >> 16));
    }
    static LAMPREY_INLINE vector pack(const float *numbers)
    {
        vector v;
        for (int i = 0; i < 4; i++) {
            v.word[i] = pack_half(numbers[2 * i], numbers[2 * i + 1]);
        }
        return v;
    }
};

struct bfloat16 {
    using storage = uint16_t;
    using number = float;
    using packet = sentinel_words<0x7fff7fffu>;
    static constexpr int group = 1;
    static LAMPREY_INLINE void unpack(const uint32_t *word, float *numbers)
    {
        numbers[0] = float_of_bits(*word << 16);
        numbers[1] = float_of_bits(*word & 0xffff0000u);
    }
    static LAMPREY_INLINE vector pack(const float *numbers)
    {
        vector v;
        for (int i = 0; i < 4; i++) {
            v.word[i] = pack_bfloat16(numbers[2 * i], numbers[2 * i + 1]);
        }
        return v;
    }
};

struct float32 {
    using storage = uint32_t;
    using number = float;
    using packet = sentinel_words<0x7fffffffu>;
    static constexpr int group = 1;
    static LAMPREY_INLINE void unpack(const uint32_t *word, float *numbers)
    {
        numbers[0] = float_of_bits(*word);
    }
    static LAMPREY_INLINE vector pack(const float *numbers)
    {
        vector v;
        for (int i = 0; i < 4; i++) {
            v.word[i] = numbers[i] != numbers[i] ? 0x7fffffffu : bits_of_float(numbers[i]);
        }
        return v;
    }
};

struct float64 {
    using storage = uint64_t;
    using number = double;
    using packet = sentinel_double_words;
    static constexpr int group = 2;
    static LAMPREY_INLINE void unpack(const uint32_t *word, double *numbers)
    {
        numbers[0] = double_of_bits((uint64_t)word[1] << 32 | word[0]);
    }
    static LAMPREY_INLINE vector pack(const double *numbers)
    {
        vector v;
        for (int i = 0; i < 2; i++) {
            const uint64_t bits =
                numbers[i] != numbers[i] ? 0x7fffffffffffffffull : bits_of_double(numbers[i]);
            v.word[2 * i] = (uint32_t)bits;
            v.word[2 * i + 1] = (uint32_t)(bits >> 32);
        }
        return v;
    }
};

/* FORMAT: e4m3_format or e5m2_format. */
template <class FORMAT> struct float8 {
    using storage = uint8_t;
    using number = float;
    using packet = sentinel_words<0x7f7f7f7fu>;
    static constexpr int group = 1;
    static LAMPREY_INLINE void unpack(const uint32_t *word, float *numbers)
    {
        FORMAT::unpack((uint16_t)*word, numbers);
        FORMAT::unpack((uint16_t)(*word >> 16), numbers + 2);
    }
    static LAMPREY_INLINE vector pack(const float *numbers)
    {
        vector v;
        for (int i = 0; i < 4; i++) {
            v.word[i] = (uint32_t)FORMAT::pack(numbers[4 * i + 2], numbers[4 * i + 3]) << 16 |
                        FORMAT::pack(numbers[4 * i], numbers[4 * i + 1]);
        }
        return v;
    }
};

/* Signed and unsigned alike: numbers are the bits, zero-extended; operators mind the sign. */
template <class STORAGE, class NUMBER> struct integer {
    using storage = STORAGE;
    using number = NUMBER;
    using packet = flagged_words;
    static constexpr int bits = 8 * sizeof(STORAGE);
    static constexpr int group = bits == 64 ? 2 : 1;
    static LAMPREY_INLINE void unpack(const uint32_t *word, NUMBER *numbers)
    {
        if constexpr (bits == 64) {
            numbers[0] = (NUMBER)((uint64_t)word[1] << 32 | word[0]);
        } else {
            for (int i = 0; i < 32 / bits; i++) {
                numbers[i] = (STORAGE)(*word >> i * bits);
            }
        }
    }
    static LAMPREY_INLINE vector pack(const NUMBER *numbers)
    {
        vector v = {{0, 0, 0, 0}};
        for (int i = 0; i < 128 / bits; i++) {
            if (bits == 64) {
                v.word[2 * i] = (uint32_t)numbers[i];
                v.word[2 * i + 1] = (uint32_t)((uint64_t)numbers[i] >> 32);
            } else {
                v.word[i * bits / 32] |= (uint32_t)(STORAGE)numbers[i] << i * bits % 32;
            }
        }
        return v;
    }
};
template <int ELEMENT> struct element_of;
template <> struct element_of<LAMPREY_F16> {
    using type = half;
};
template <> struct element_of<LAMPREY_BF16> {
    using type = bfloat16;
};
template <> struct element_of<LAMPREY_F32> {
    using type = float32;
};
template <> struct element_of<LAMPREY_F64> {
    using type = float64;
};
template <> struct element_of<LAMPREY_E4M3> {
    using type = float8<e4m3_format>;
};
template <> struct element_of<LAMPREY_E5M2> {
    using type = float8<e5m2_format>;
};
template <> struct element_of<LAMPREY_I8> {
    using type = integer<uint8_t, uint32_t>;
};
template <> struct element_of<LAMPREY_I32> {
    using type = integer<uint32_t, uint32_t>;
};
template <> struct element_of<LAMPREY_I64> {
    using type = integer<uint64_t, uint64_t>;
};

} // namespace lamprey

#endif
