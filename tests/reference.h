// SPDX-License-Identifier: Apache-2.0
// What an all-reduce must give, written apart from the kernels: fp32 sums in rank order, rounded
// once, canonical NaNs. Conversions go through double and integers, so that they share no code with
// kernels/primitives_host.h.
#ifndef LAMPREY_TESTS_REFERENCE_H
#define LAMPREY_TESTS_REFERENCE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <random>
#include <vector>

namespace lamprey_test {

enum class element_type { f16, bf16, f32 };

inline uint64_t bytes_of(element_type type)
{
    return type == element_type::f32 ? 4 : 2;
}

inline double half_value(uint16_t bits, int exponent_bits, int fraction_bits)
{
    const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
    const int fraction = bits & ((1 << fraction_bits) - 1);
    const int bias = (1 << (exponent_bits - 1)) - 1;
    double value;
    if (exponent == (1 << exponent_bits) - 1) {
        value = fraction ? NAN : INFINITY;
    } else if (exponent == 0) {
        value = ldexp(fraction, 1 - bias - fraction_bits);
    } else {
        value = ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
    }
    return bits >> 15 ? -value : value;
}

// Round to nearest even, by the definition: the grid's spacing at the value, then rint.
inline uint16_t half_bits(double value, int exponent_bits, int fraction_bits)
{
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    const uint16_t infinity = (uint16_t)(((1 << exponent_bits) - 1) << fraction_bits);
    if (isnan(value)) {
        return 0x7fff;
    }
    double magnitude = fabs(value);
    if (isinf(magnitude)) {
        return sign | infinity;
    }
    if (magnitude == 0) {
        return sign;
    }
    int exponent = ilogb(magnitude);
    exponent = exponent < 1 - bias ? 1 - bias : exponent;
    double steps = rint(ldexp(magnitude, fraction_bits - exponent));
    if (steps >= (2 << fraction_bits)) {
        steps /= 2;
        exponent++;
    }
    if (exponent > bias) {
        return sign | infinity;
    }
    const int whole = (int)steps;
    if (whole < 1 << fraction_bits) { // subnormal
        return sign | (uint16_t)whole;
    }
    return sign | (uint16_t)((exponent + bias) << fraction_bits | (whole - (1 << fraction_bits)));
}

inline float load_element(element_type type, const uint8_t *data, uint64_t index)
{
    if (type == element_type::f32) {
        float value;
        memcpy(&value, data + index * 4, 4);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, data + index * 2, 2);
    return (float)(type == element_type::f16 ? half_value(bits, 5, 10) : half_value(bits, 8, 7));
}

inline void store_element(element_type type, uint8_t *data, uint64_t index, float value)
{
    if (type == element_type::f32) {
        uint32_t bits;
        memcpy(&bits, &value, 4);
        bits = isnan(value) ? 0x7fffffffu : bits;
        memcpy(data + index * 4, &bits, 4);
        return;
    }
    const uint16_t bits =
        type == element_type::f16 ? half_bits(value, 5, 10) : half_bits(value, 8, 7);
    memcpy(data + index * 2, &bits, 2);
}

inline std::vector<uint8_t> all_reduce_sum(element_type type,
                                           const std::vector<std::vector<uint8_t>> &inputs)
{
    std::vector<uint8_t> result(inputs[0].size());
    for (uint64_t i = 0; i < result.size() / bytes_of(type); i++) {
        float sum = load_element(type, inputs[0].data(), i);
        for (size_t r = 1; r < inputs.size(); r++) {
            sum += load_element(type, inputs[r].data(), i);
        }
        store_element(type, result.data(), i, sum);
    }
    return result;
}

enum class data_kind { numbers, any_bits, all_ones, specials, negative_zeros, subnormals };

inline std::vector<uint8_t> make_data(element_type type, uint64_t count, data_kind kind,
                                      uint64_t seed)
{
    static const uint16_t specials16[] = {0xffff, 0x7fff, 0x7c00, 0xfc00, 0x7f80,
                                          0xff80, 0x7f81, 0x8000, 0x0000, 0x0001};
    static const uint32_t specials32[] = {0xffffffff, 0x7fffffff, 0x7f800000, 0xff800000,
                                          0x7f800001, 0x80000000, 0x00000000, 0x00000001,
                                          0x7f7fffff, 0xff7fffff};
    std::vector<uint8_t> data(count * bytes_of(type));
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, 3);
    for (uint64_t i = 0; i < count; i++) {
        uint32_t bits = 0;
        switch (kind) {
        case data_kind::numbers:
            store_element(type, data.data(), i, normal(random));
            continue;
        case data_kind::any_bits:
            bits = (uint32_t)random();
            break;
        case data_kind::all_ones:
            bits = 0xffffffff;
            break;
        case data_kind::specials:
            bits =
                type == element_type::f32 ? specials32[random() % 10] : specials16[random() % 10];
            break;
        case data_kind::negative_zeros:
            bits = type == element_type::f32 ? 0x80000000u : 0x8000u;
            break;
        case data_kind::subnormals:
            bits = type == element_type::f32   ? (uint32_t)random() & 0x807fffffu
                   : type == element_type::f16 ? (uint32_t)random() & 0x83ffu
                                               : (uint32_t)random() & 0x807fu;
            break;
        }
        memcpy(data.data() + i * bytes_of(type), &bits, bytes_of(type));
    }
    return data;
}

inline uint64_t first_difference(const uint8_t *a, const uint8_t *b, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++) {
        if (a[i] != b[i]) {
            return i;
        }
    }
    return bytes;
}

} // namespace lamprey_test

#endif
