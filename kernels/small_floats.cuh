/* SPDX-License-Identifier: Apache-2.0 */
/* fp8: by the GPU's conversions where it has them, else in integers with the same bits. */
#ifndef LAMPREY_KERNELS_SMALL_FLOATS_CUH
#define LAMPREY_KERNELS_SMALL_FLOATS_CUH

#include "kernels/primitives.cuh"

namespace lamprey {

/* To nearest even, beyond largest to largest, NaN to 0x7f. */
template <int MANTISSA_BITS, int BIAS, uint8_t LARGEST>
LAMPREY_DEVICE uint8_t float_to_fp8(float value)
{
    const uint32_t bits = bits_of_float(value);
    const uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0x7f;
    }
    /* What a unit of the result's last place is worth, as an exponent of fp32. */
    const int exponent = (int)(magnitude >> 23);
    const int least = 127 - BIAS + 1;
    const int place = (exponent < least ? least : exponent) - MANTISSA_BITS;
    const int drop = place - exponent + 23; /* bits of the fraction below that place */
    if (drop > 24) {
        return sign; /* below half of the least number */
    }
    const uint32_t fraction = (exponent ? 0x800000u : 0) | (magnitude & 0x7fffffu);
    const uint32_t kept = (fraction + (1u << (drop - 1)) - 1 + (fraction >> drop & 1)) >> drop;
    const int biased = exponent < least ? 0 : exponent - least;
    const uint32_t result = ((uint32_t)biased << MANTISSA_BITS) + kept;
    return sign | (uint8_t)(result > LARGEST ? LARGEST : result);
}

struct e4m3_format {
    static LAMPREY_INLINE float to_float(uint8_t bits)
    {
        const uint32_t sign = (uint32_t)(bits & 0x80) << 24;
        const uint32_t magnitude = bits & 0x7f;
        if (magnitude == 0x7f) {
            return float_of_bits(0x7fffffffu);
        }
        if (magnitude < 8) {
            return float_of_bits(sign | bits_of_float((float)magnitude * (1.0f / 512)));
        }
        return float_of_bits(sign | ((magnitude << 20) + (120u << 23)));
    }
    static LAMPREY_INLINE void unpack(uint16_t pair, float *numbers)
    {
        if (has_fp8_conversions()) {
            const uint32_t halves = unpack_e4m3(pair);
            numbers[0] = half_to_float((uint16_t)halves);
            numbers[1] = half_to_float((uint16_t)(halves >> 16));
        } else {
            numbers[0] = to_float((uint8_t)pair);
            numbers[1] = to_float((uint8_t)(pair >> 8));
        }
    }
    static LAMPREY_INLINE uint16_t pack(float low, float high)
    {
        if (has_fp8_conversions()) {
            return pack_e4m3(low, high);
        }
        return (uint16_t)(float_to_fp8<3, 7, 0x7e>(high) << 8 | float_to_fp8<3, 7, 0x7e>(low));
    }
};

/* The upper half of an fp16 number. */
struct e5m2_format {
    static LAMPREY_INLINE void unpack(uint16_t pair, float *numbers)
    {
        numbers[0] = half_to_float((uint16_t)(pair << 8));
        numbers[1] = half_to_float((uint16_t)(pair & 0xff00));
    }
    static LAMPREY_INLINE uint16_t pack(float low, float high)
    {
        if (has_fp8_conversions()) {
            return pack_e5m2(low, high);
        }
        return (uint16_t)(float_to_fp8<2, 15, 0x7b>(high) << 8 | float_to_fp8<2, 15, 0x7b>(low));
    }
};

} // namespace lamprey

#endif
