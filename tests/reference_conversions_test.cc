// SPDX-License-Identifier: Apache-2.0
// Holds the reference's conversions to the formats' definitions, by search in a table of all
// numbers.
#include "kernels/reference.h"

#include <gtest/gtest.h>

#include <math.h>
#include <string.h>

#include <algorithm>
#include <cfloat>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr lamprey_reference_type F16 = LAMPREY_REFERENCE_F16;
constexpr lamprey_reference_type BF16 = LAMPREY_REFERENCE_BF16;
constexpr lamprey_reference_type E4M3 = LAMPREY_REFERENCE_E4M3;
constexpr lamprey_reference_type E5M2 = LAMPREY_REFERENCE_E5M2;
constexpr lamprey_reference_type E2M1 = LAMPREY_REFERENCE_E2M1;

float f32(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

// The types of 16 bits and less, by their definitions.
struct narrow_format {
    const char *name;
    lamprey_reference_type id;
    int bits;
    int exponent_bits;
    int fraction_bits;
    int largest; // code of the largest finite number
    bool has_infinity;
    bool saturates;
    uint16_t nan;

    int magnitudes() const
    {
        return 1 << (bits - 1);
    }

    // Of any code without a sign, as if no code stood for infinity or a NaN.
    double value(int code) const
    {
        const int bias = (1 << (exponent_bits - 1)) - 1;
        const int fraction = code & ((1 << fraction_bits) - 1);
        const int exponent = code >> fraction_bits;
        return exponent == 0
                   ? ldexp(fraction, 1 - bias - fraction_bits)
                   : ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
    }
};

const narrow_format formats[] = {
    {"F16", F16, 16, 5, 10, 0x7bff, true, false, 0x7fff},
    {"BF16", BF16, 16, 8, 7, 0x7f7f, true, false, 0x7fff},
    {"E4M3", E4M3, 8, 4, 3, 0x7e, false, true, 0x7f},
    {"E5M2", E5M2, 8, 5, 2, 0x7b, true, true, 0x7f},
    {"E2M1", E2M1, 4, 2, 1, 0x7, false, true, 0x7}, // no NaN
};

class NarrowFloats : public testing::TestWithParam<narrow_format> {
  protected:
    NarrowFloats()
    {
        for (int code = 0; code <= format.largest + 1; code++) {
            values.push_back(format.value(code));
        }
    }

    // The nearest number, a tie going to the even code; the code after the largest one stands for
    // all that is too large.
    uint16_t nearest(float value) const
    {
        if (isnan(value)) {
            return format.nan;
        }
        const double magnitude = fabs((double)value);
        int code =
            (int)(std::lower_bound(values.begin(), values.end(), magnitude) - values.begin());
        if (code > format.largest) {
            code = format.largest + 1;
        }
        if (code > 0 && magnitude < values[code]) {
            const double above = values[code] - magnitude;
            const double below = magnitude - values[code - 1];
            if (below < above || (below == above && code % 2 == 1)) {
                code--;
            }
        }
        if (code > format.largest && format.saturates) {
            code = format.largest;
        }
        return (uint16_t)(code | (signbit(value) ? format.magnitudes() : 0));
    }

    void expect_nearest(float value) const
    {
        ASSERT_EQ(lamprey_reference_narrow(format.id, value), nearest(value))
            << std::hexfloat << value;
    }

    void expect_nearest_around(double value) const
    {
        const float f = (float)value;
        ASSERT_EQ((double)f, value); // else it would test another place
        for (float sign : {1.0f, -1.0f}) {
            expect_nearest(sign * nextafterf(f, -INFINITY));
            expect_nearest(sign * f);
            expect_nearest(sign * nextafterf(f, INFINITY));
        }
    }

    const narrow_format format = GetParam();
    std::vector<double> values; // of the codes 0 to one past the largest, ascending
};

INSTANTIATE_TEST_SUITE_P(Types, NarrowFloats, testing::ValuesIn(formats),
                         [](const auto &info) { return std::string(info.param.name); });

TEST_P(NarrowFloats, AreWidenedExactly)
{
    for (int bits = 0; bits < 2 * format.magnitudes(); bits++) {
        const int code = bits & (format.magnitudes() - 1);
        const float wide = lamprey_reference_widen(format.id, (uint16_t)bits);
        if (code <= format.largest) {
            ASSERT_EQ(fabs((double)wide), format.value(code)) << bits;
        } else if (format.has_infinity && code == format.largest + 1) {
            ASSERT_TRUE(isinf(wide)) << bits;
        } else {
            ASSERT_EQ(bits_of(wide), 0x7fffffffu) << bits;
            continue;
        }
        ASSERT_EQ(signbit(wide) != 0, bits >= format.magnitudes()) << bits;
    }
}

TEST_P(NarrowFloats, ComeBackFromFp32)
{
    for (int bits = 0; bits < 2 * format.magnitudes(); bits++) {
        const int code = bits & (format.magnitudes() - 1);
        const int sign = bits - code;
        const bool infinite = format.has_infinity && code == format.largest + 1;
        int expected = bits;
        if (infinite && format.saturates) {
            expected = sign | format.largest;
        } else if (code > format.largest && !infinite) {
            expected = format.nan;
        }
        const float wide = lamprey_reference_widen(format.id, (uint16_t)bits);
        ASSERT_EQ(lamprey_reference_narrow(format.id, wide), expected) << bits;
    }
}

TEST_P(NarrowFloats, AreTheNearestAtNumbersAndMidpoints)
{
    for (size_t code = 0; code + 1 < values.size(); code++) {
        ASSERT_NO_FATAL_FAILURE(expect_nearest_around(values[code])) << code;
        const double midpoint = (values[code] + values[code + 1]) / 2;
        ASSERT_NO_FATAL_FAILURE(expect_nearest_around(midpoint)) << code;
    }
}

TEST_P(NarrowFloats, AreTheNearestAtTheLimitsOfFp32)
{
    for (float value : {0.0f, FLT_TRUE_MIN, FLT_MIN, FLT_MAX, INFINITY}) {
        ASSERT_NO_FATAL_FAILURE(expect_nearest(value));
        ASSERT_NO_FATAL_FAILURE(expect_nearest(-value));
    }
    for (uint32_t magnitude : {0x00000002u, 0x007fffffu, 0x00800001u, 0x7f7ffffeu}) {
        ASSERT_NO_FATAL_FAILURE(expect_nearest(f32(magnitude)));
        ASSERT_NO_FATAL_FAILURE(expect_nearest(f32(magnitude | 0x80000000u)));
    }
}

TEST_P(NarrowFloats, HaveOneResultForNans)
{
    for (uint32_t payload : {0x000001u, 0x3fffffu, 0x400000u, 0x400001u, 0x555555u, 0x7fffffu}) {
        for (uint32_t sign : {0u, 0x80000000u}) {
            EXPECT_EQ(lamprey_reference_narrow(format.id, f32(sign | 0x7f800000u | payload)),
                      format.nan)
                << payload;
        }
    }
}

TEST_P(NarrowFloats, AreTheNearestOfRandomPatterns)
{
    std::mt19937 random(1);
    for (int i = 0; i < 1000000; i++) {
        ASSERT_NO_FATAL_FAILURE(expect_nearest(f32((uint32_t)random())));
    }
    // Most random patterns lie far outside of fp8; these don't.
    std::uniform_real_distribution<double> exponent(log2(values[1]) - 2, log2(values.back()) + 2);
    for (int i = 0; i < 1000000; i++) {
        const float magnitude = (float)exp2(exponent(random));
        ASSERT_NO_FATAL_FAILURE(expect_nearest(random() % 2 ? magnitude : -magnitude));
    }
}

TEST(NarrowFloat, PassesThroughMemory)
{
    const struct {
        lamprey_reference_type type;
        std::vector<uint8_t> bytes; // of 1.0, of what 1 + 2^-20 becomes, of -2.0, of a NaN
        float second;
    } cases[] = {
        {E4M3, {0x38, 0x38, 0xc0, 0x7f}, 1},
        {BF16, {0x80, 0x3f, 0x80, 0x3f, 0, 0xc0, 0xff, 0x7f}, 1},
        {LAMPREY_REFERENCE_F32,
         {0, 0, 0x80, 0x3f, 8, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 0xff, 0xff, 0xff, 0x7f},
         1 + 0x1p-20f},
    };
    for (const auto &c : cases) {
        const float values[] = {1, 1 + 0x1p-20f, -2, f32(0xffc12345)};
        std::vector<uint8_t> bytes(c.bytes.size() + 1); // at an odd address
        for (size_t i = 0; i < 4; i++) {
            lamprey_reference_store(c.type, bytes.data() + 1, i, values[i]);
        }
        EXPECT_EQ(std::vector<uint8_t>(bytes.begin() + 1, bytes.end()), c.bytes);
        const float loaded[] = {1, c.second, -2, f32(0x7fffffff)};
        for (size_t i = 0; i < 4; i++) {
            EXPECT_EQ(bits_of(lamprey_reference_load(c.type, bytes.data() + 1, i)),
                      bits_of(loaded[i]));
            EXPECT_EQ(bits_of(lamprey_reference_round(c.type, values[i])), bits_of(loaded[i]));
        }
    }
}

// So that no mistake in a formula can be on both sides.
TEST(NarrowFloat, HasPublishedNumbers)
{
    const struct {
        lamprey_reference_type type;
        uint16_t bits;
        float value;
    } cases[] = {
        {F16, 0x3c00, 1.0f},       {F16, 0xc000, -2.0f},        {F16, 0x7bff, 65504.0f},
        {F16, 0x0001, 0x1p-24f},   {F16, 0x0400, 0x1p-14f},     {BF16, 0x3f80, 1.0f},
        {BF16, 0x4049, 3.140625f}, {BF16, 0x7f7f, 0x1.fep127f}, {BF16, 0x0001, 0x1p-133f},
        {E4M3, 0x38, 1.0f},        {E4M3, 0x7e, 448.0f},        {E4M3, 0xfe, -448.0f},
        {E4M3, 0x01, 0x1p-9f},     {E4M3, 0x08, 0x1p-6f},       {E5M2, 0x3c, 1.0f},
        {E5M2, 0x7b, 57344.0f},    {E5M2, 0x01, 0x1p-16f},      {E5M2, 0x04, 0x1p-14f},
        {E2M1, 0x1, 0.5f},         {E2M1, 0x2, 1.0f},           {E2M1, 0x3, 1.5f},
        {E2M1, 0x4, 2.0f},         {E2M1, 0x5, 3.0f},           {E2M1, 0x6, 4.0f},
        {E2M1, 0xf, -6.0f},        {E2M1, 0x8, -0.0f},
    };
    for (const auto &c : cases) {
        EXPECT_EQ(lamprey_reference_widen(c.type, c.bits), c.value) << c.value;
        EXPECT_EQ(lamprey_reference_narrow(c.type, c.value), c.bits) << c.value;
    }
}

} // namespace
