// SPDX-License-Identifier: Apache-2.0
// Data for all-reduces, and what they must give (kernels/reference.h).
#ifndef LAMPREY_TESTS_REFERENCE_H
#define LAMPREY_TESTS_REFERENCE_H

#include <stdint.h>
#include <string.h>

#include <random>
#include <vector>

#include "kernels/reference.h"

namespace lamprey_test {

using element_type = lamprey_reference_type;
using bytes = std::vector<uint8_t>;

inline uint64_t bytes_of(element_type type)
{
    return lamprey_reference_size(type);
}

inline bool is_float(element_type type)
{
    return type <= LAMPREY_REFERENCE_E5M2;
}

inline bytes all_reduce(element_type type, lamprey_reference_op op,
                        const std::vector<bytes> &inputs)
{
    std::vector<const void *> pointers;
    for (const bytes &input : inputs) {
        pointers.push_back(input.data());
    }
    bytes result(inputs[0].size());
    lamprey_reference_all_reduce(type, op, (int)inputs.size(), pointers.data(), result.data(),
                                 result.size() / bytes_of(type));
    return result;
}

inline bytes all_reduce_sum(element_type type, const std::vector<bytes> &inputs)
{
    return all_reduce(type, LAMPREY_REFERENCE_SUM, inputs);
}

enum class data_kind { numbers, any_bits, all_ones, specials, negative_zeros, subnormals };

inline uint64_t sign_of(element_type type)
{
    return 1ull << (8 * bytes_of(type) - 1);
}

// The bits of infinity, or of the largest number where there is none; for integers the largest.
inline uint64_t top_of(element_type type)
{
    switch (type) {
    case LAMPREY_REFERENCE_F16:
        return 0x7c00;
    case LAMPREY_REFERENCE_BF16:
        return 0x7f80;
    case LAMPREY_REFERENCE_F32:
        return 0x7f800000;
    case LAMPREY_REFERENCE_F64:
        return 0x7ff0000000000000;
    case LAMPREY_REFERENCE_E4M3:
        return 0x7e;
    case LAMPREY_REFERENCE_E5M2:
        return 0x7c;
    default:
        return sign_of(type) - 1;
    }
}

// The largest subnormal number's bits; for integers something small.
inline uint64_t subnormals_of(element_type type)
{
    switch (type) {
    case LAMPREY_REFERENCE_F16:
        return 0x3ff;
    case LAMPREY_REFERENCE_BF16:
        return 0x7f;
    case LAMPREY_REFERENCE_F32:
        return 0x7fffff;
    case LAMPREY_REFERENCE_F64:
        return 0xfffffffffffff;
    case LAMPREY_REFERENCE_E5M2:
        return 0x3;
    default:
        return 0x7;
    }
}

inline uint64_t number_bits(element_type type, float value)
{
    if (type == LAMPREY_REFERENCE_F64) {
        const double wide = (double)value * 1.0000000001;
        uint64_t bits;
        memcpy(&bits, &wide, sizeof bits);
        return bits;
    }
    if (type == LAMPREY_REFERENCE_F32) {
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        return bits;
    }
    return is_float(type) ? lamprey_reference_narrow(type, value) : (uint64_t)(int64_t)(value * 10);
}

inline bytes make_data(element_type type, uint64_t count, data_kind kind, uint64_t seed)
{
    const uint64_t size = bytes_of(type);
    const uint64_t sign = sign_of(type);
    const uint64_t top = top_of(type);
    // Zeros, the least, around the top: the largest, infinity, NaNs of all sorts.
    const uint64_t specials[] = {0,   sign,       1,       sign | 1, top - 1,  sign | (top - 1),
                                 top, sign | top, top + 1, top | 1,  sign - 1, ~0ull};
    bytes data(count * size);
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, 3);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t bits = 0;
        switch (kind) {
        case data_kind::numbers:
            bits = number_bits(type, normal(random));
            break;
        case data_kind::any_bits:
            bits = random();
            break;
        case data_kind::all_ones:
            bits = ~0ull;
            break;
        case data_kind::specials:
            bits = specials[random() % (sizeof specials / sizeof *specials)];
            break;
        case data_kind::negative_zeros:
            bits = sign;
            break;
        case data_kind::subnormals:
            bits = random() & (sign | subnormals_of(type));
            break;
        }
        memcpy(data.data() + i * size, &bits, size);
    }
    return data;
}

// Of float types of at most 32 bits.
using numbers = std::vector<float>;

inline numbers load_numbers(element_type type, const bytes &data)
{
    numbers values(data.size() / bytes_of(type));
    for (size_t i = 0; i < values.size(); i++) {
        values[i] = lamprey_reference_load(type, data.data(), i);
    }
    return values;
}

inline bytes store_numbers(element_type type, const numbers &values)
{
    bytes data(values.size() * bytes_of(type));
    for (size_t i = 0; i < values.size(); i++) {
        lamprey_reference_store(type, data.data(), i, values[i]);
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
