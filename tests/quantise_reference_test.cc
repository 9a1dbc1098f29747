// SPDX-License-Identifier: Apache-2.0
// Holds the reference's quantised outputs to NUMERICS.md: codes and scales by cases written by hand
// and by searches in fp64, layouts by formulas of their own.
#include "kernels/quantise_reference.h"

#include <gtest/gtest.h>

#include <math.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "tests/reference.h"

namespace {

using lamprey_test::bytes;
using lamprey_test::numbers;

constexpr uint8_t UNWRITTEN = 0xaa;

lamprey_reference_quantisation fp8(float scale)
{
    return {LAMPREY_REFERENCE_FP8, scale, 0, LAMPREY_REFERENCE_LINEAR};
}

lamprey_reference_quantisation fp8_token()
{
    return {LAMPREY_REFERENCE_FP8_TOKEN, 0, 0, LAMPREY_REFERENCE_LINEAR};
}

lamprey_reference_quantisation fp8_group(size_t group)
{
    return {LAMPREY_REFERENCE_FP8_GROUP, 0, group, LAMPREY_REFERENCE_LINEAR};
}

lamprey_reference_quantisation nvfp4(float factor,
                                     lamprey_reference_layout layout = LAMPREY_REFERENCE_LINEAR)
{
    return {LAMPREY_REFERENCE_NVFP4, factor, 0, layout};
}

struct quantised {
    bytes codes;
    bytes scales;
};

// Rows of the same values.
quantised quantise(const lamprey_reference_quantisation &q, const numbers &row, size_t tokens = 1)
{
    quantised result = {
        bytes(lamprey_reference_code_bytes(&q, tokens, row.size()), UNWRITTEN),
        bytes(lamprey_reference_scale_bytes(&q, tokens, row.size()), UNWRITTEN),
    };
    for (size_t token = 0; token < tokens; token++) {
        lamprey_reference_quantise_row(&q, tokens, row.size(), token, row.data(),
                                       result.codes.data(), result.scales.data());
    }
    return result;
}

float f32(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

float first_scale(const quantised &q)
{
    return lamprey_reference_load(LAMPREY_REFERENCE_F32, q.scales.data(), 0);
}

numbers random_numbers(size_t count, float deviation, unsigned seed)
{
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, deviation);
    numbers values(count);
    for (float &value : values) {
        value = lamprey_reference_round(LAMPREY_REFERENCE_BF16, normal(random));
    }
    return values;
}

// A code's number by the formats' definition, and the nearest code by search; ties to even. No
// signs.
double number_of(int fraction_bits, int bias, int code)
{
    const int fraction = code & ((1 << fraction_bits) - 1);
    const int exponent = code >> fraction_bits;
    return exponent == 0 ? ldexp(fraction, 1 - bias - fraction_bits)
                         : ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

int nearest(int fraction_bits, int bias, int largest, double value)
{
    int best = 0;
    for (int code = 1; code <= largest; code++) {
        const double better = fabs(number_of(fraction_bits, bias, best) - fabs(value)) -
                              fabs(number_of(fraction_bits, bias, code) - fabs(value));
        if (better > 0 || (better == 0 && code % 2 == 0)) {
            best = code;
        }
    }
    return best;
}

int nearest_e4m3(double value)
{
    return nearest(3, 7, 0x7e, value) | (signbit(value) ? 0x80 : 0);
}

int nearest_e2m1(double value)
{
    return nearest(1, 1, 0x7, value) | (signbit(value) ? 0x8 : 0);
}

TEST(Fp8, IsMultipliedByTheRoundedReciprocal)
{
    const quantised q =
        quantise(fp8(0.5f), {1, -1, 0, -0.0f, 224, -1000, NAN, -INFINITY, 0x1p-12f});
    EXPECT_EQ(q.codes, (bytes{0x40, 0xc0, 0, 0x80, 0x7e, 0xfe, 0x7f, 0xfe, 0}));
    EXPECT_TRUE(q.scales.empty());
    // 17 is tied between 16 and 18; 1 / 63 is rounded up so far that this is not.
    EXPECT_EQ(quantise(fp8(1), {17}).codes, bytes{0x58});
    EXPECT_EQ(quantise(fp8(63), {63 * 17}).codes, bytes{0x59});
}

TEST(Fp8, OfRandomNumbersIsTheNearest)
{
    for (float scale : {0.013f, 1.0f, 7.7f}) {
        const numbers row = random_numbers(4096, 100, 1);
        const quantised q = quantise(fp8(scale), row);
        for (size_t i = 0; i < row.size(); i++) {
            ASSERT_EQ(q.codes[i], nearest_e4m3(row[i] * (1 / scale))) << row[i];
        }
    }
}

TEST(Fp8Token, ScalesByTheLargest)
{
    const quantised q = quantise(fp8_token(), {3, -3 * 448.0f, -3, 0});
    EXPECT_EQ(first_scale(q), 3);
    EXPECT_EQ(q.codes, (bytes{0x38, 0xfe, 0xb8, 0}));
    // Division leaves this a tie, as multiplication by the reciprocal does not.
    EXPECT_EQ(quantise(fp8_token(), {448 * 63, 17 * 63}).codes, (bytes{0x7e, 0x58}));
}

TEST(Fp8Token, HasASmallestScale)
{
    const float least = (float)(0x1p-9 / 448);
    for (float value : {0.0f, 0x1p-9f, 0x1p-30f}) {
        EXPECT_EQ(first_scale(quantise(fp8_token(), {value, 0})), least) << value;
    }
    EXPECT_EQ(quantise(fp8_token(), {0x1p-9f, 0}).codes, (bytes{0x7e, 0}));
    EXPECT_EQ(quantise(fp8_token(), {0x1p-19f, 0}).codes[0], nearest_e4m3(448.0 / 1024));
    EXPECT_GT(first_scale(quantise(fp8_token(), {0x1.01p-9f})), least);
}

TEST(Fp8Token, OfRandomNumbersIsTheNearest)
{
    const numbers row = random_numbers(4096, 5, 2);
    const quantised q = quantise(fp8_token(), row, 2);
    const float largest = fabsf(*std::max_element(
        row.begin(), row.end(), [](float a, float b) { return fabsf(a) < fabsf(b); }));
    for (size_t token = 0; token < 2; token++) {
        ASSERT_EQ(lamprey_reference_load(LAMPREY_REFERENCE_F32, q.scales.data(), token),
                  largest / 448);
        for (size_t i = 0; i < row.size(); i++) {
            ASSERT_EQ(q.codes[token * row.size() + i], nearest_e4m3(row[i] / (largest / 448)));
        }
    }
}

TEST(Fp8Token, ShowsNansAndInfinities)
{
    const quantised with_nan = quantise(fp8_token(), {1, NAN, INFINITY, 0});
    EXPECT_EQ(with_nan.codes, (bytes{0x7f, 0x7f, 0x7f, 0x7f}));
    EXPECT_EQ(with_nan.scales, (bytes{0xff, 0xff, 0xff, 0x7f}));
    const quantised infinite = quantise(fp8_token(), {1, -2, -INFINITY, 0});
    EXPECT_EQ(infinite.codes, (bytes{0, 0x80, 0x7f, 0}));
    EXPECT_EQ(first_scale(infinite), INFINITY);
}

// In fp64, where largest / 448 against a power of two is decided without a rounding.
int exponent_of_group(double largest)
{
    int exponent = -33;
    while (ldexp(448, exponent) < largest) {
        exponent++;
    }
    return exponent;
}

TEST(Fp8Group, ScalesByTheLeastPowerOfTwoThatIsEnough)
{
    const lamprey_reference_quantisation q = fp8_group(1);
    uint8_t code;
    uint8_t scales[4];
    for (uint32_t bits = 0x3f800000; bits < 0x40800000; bits++) { // every significand, twice
        const float value = f32(bits);
        lamprey_reference_quantise_row(&q, 1, 1, 0, &value, &code, scales);
        ASSERT_EQ(scales[0], 127 - (value <= 1.75f ? 8 : value <= 3.5f ? 7 : 6)) << value;
    }
    for (float value : {0.0f, 0x1p-149f, 0x1p-24f, 0x1.8p-24f, 0x1.cp-25f, 0x1.c00002p-25f, 448.0f,
                        f32(0x43e00001), 1e10f, f32(0x7f7fffff)}) {
        lamprey_reference_quantise_row(&q, 1, 1, 0, &value, &code, scales);
        EXPECT_EQ(scales[0], 127 + exponent_of_group(value)) << value;
    }
}

TEST(Fp8Group, OfRandomNumbersIsTheNearest)
{
    const size_t group = 96;
    numbers row = random_numbers(group * 6, 1000, 3);
    for (size_t i = 0; i < row.size(); i++) {
        row[i] = ldexpf(row[i], -12 * (int)(i / group));
    }
    const quantised q = quantise(fp8_group(group), row);
    for (size_t g = 0; g < 6; g++) {
        float largest = 0;
        for (size_t i = g * group; i < (g + 1) * group; i++) {
            largest = fmaxf(largest, fabsf(row[i]));
        }
        const int exponent = exponent_of_group(largest);
        EXPECT_EQ(q.scales[g / 4 * 16 + g % 4], 127 + exponent) << g;
        for (size_t i = g * group; i < (g + 1) * group; i++) {
            ASSERT_EQ(q.codes[i], nearest_e4m3(ldexp(row[i], -exponent))) << g;
        }
    }
}

TEST(Fp8Group, ShowsNansAndInfinitiesInTheirGroupAlone)
{
    const quantised q = quantise(fp8_group(2), {1, NAN, INFINITY, -1, 448, 224});
    EXPECT_EQ(q.scales, (bytes{255, 255, 127, 0}));
    EXPECT_EQ(q.codes, (bytes{0, 0x7f, 0x7f, 0x80, 0x7e, 0x76}));
}

// The tensor's own terms: words with strides of 1 and of the tokens rounded up to 4.
TEST(Fp8Group, PacksScalesByColumnsOfWords)
{
    for (size_t tokens : {1, 3, 4, 6, 9}) {
        for (size_t groups : {1, 3, 4, 5, 8, 10}) {
            numbers row(groups * 2);
            for (size_t i = 0; i < row.size(); i++) {
                row[i] = ldexpf(448, (int)(i / 2) + 1);
            }
            const quantised q = quantise(fp8_group(2), row, tokens);
            const size_t stride = (tokens + 3) / 4 * 4;
            const size_t columns = (groups + 3) / 4;
            ASSERT_EQ(q.scales.size(), 4 * ((columns - 1) * stride + tokens));
            for (size_t word = 0; word < q.scales.size() / 4; word++) {
                uint32_t packed;
                memcpy(&packed, &q.scales[4 * word], sizeof(packed));
                const size_t token = word % stride;
                for (size_t i = 0; i < 4; i++) {
                    const size_t group = word / stride * 4 + i;
                    const bool padding = token >= tokens || group >= groups;
                    ASSERT_EQ(packed >> 8 * i & 0xff, padding ? 0 : 127 + group + 1)
                        << tokens << " tokens, " << groups << " groups, word " << word;
                }
            }
        }
    }
}

TEST(Nvfp4, BlockWrittenByHand)
{
    // The largest is 6, so the scale is 1 and the codes are those of the numbers themselves.
    const quantised q = quantise(nvfp4(1), {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.25f, -0.75f, -1.25f,
                                            -1.75f, -2.5f, -3.5f, -5, 0x1.000002p-2f});
    EXPECT_EQ(q.scales, bytes{0x38});
    EXPECT_EQ(q.codes, (bytes{0x10, 0x32, 0x54, 0x76, 0xa8, 0xca, 0xec, 0x1e}));
    // A factor of 448 makes the scale 448 and the codes the same.
    numbers row(32, 0.75f);
    row[31] = -6;
    const quantised other = quantise(nvfp4(448), row);
    EXPECT_EQ(other.scales, (bytes{0x66, 0x7e})); // 448 * 0.75 / 6 = 56
    EXPECT_EQ(other.codes[0], 0x77);              // 6 * 56 / 448 = 0.75
    EXPECT_EQ(other.codes[14], 0x22);             // 0.75 is tied between 0.5 and 1
    EXPECT_EQ(other.codes[15], 0xf2);
}

TEST(Nvfp4, OfRandomNumbersIsTheNearest)
{
    for (float factor : {0.01f, 1.0f, 37.5f, 448 * 6 / 3.3f}) {
        const numbers row = random_numbers(4096, 1, 4);
        const quantised q = quantise(nvfp4(factor), row);
        for (size_t block = 0; block < row.size() / 16; block++) {
            float largest = 0;
            for (size_t i = 16 * block; i < 16 * (block + 1); i++) {
                largest = fmaxf(largest, fabsf(row[i]));
            }
            const int scale = nearest_e4m3(factor * (largest * (1.0f / 6)));
            ASSERT_EQ(q.scales[block], scale);
            const float back = scale == 0 ? 0 : factor / (float)number_of(3, 7, scale);
            for (size_t i = 16 * block; i < 16 * (block + 1); i++) {
                ASSERT_EQ(q.codes[i / 2] >> 4 * (i % 2) & 0xf, nearest_e2m1(row[i] * back));
            }
        }
    }
}

// Numbers for which every other order of the operations gives another result.
TEST(Nvfp4, OperationsHaveTheirOrder)
{
    numbers row(16, 0);
    row[0] = 145; // times the factor, by 6: 17, tied between 16 and 18, but by this order above
    EXPECT_EQ(quantise(nvfp4(0.703448296f), row).scales, bytes{0x59});
    row[0] = 324;
    row[1] = 135; // times the factor, by the scale: 2.5, tied, but by other orders above
    const quantised q = quantise(nvfp4(0.185185194f), row);
    EXPECT_EQ(q.scales, bytes{0x52}); // 10
    EXPECT_EQ(q.codes[0], 0x47);
}

TEST(Nvfp4, ScalesOfZeroNansAndInfinities)
{
    numbers small(16, 0x1p-20f);
    small[1] = -0x1p-20f;
    const quantised zero = quantise(nvfp4(1), small);
    EXPECT_EQ(zero.scales, bytes{0});
    EXPECT_EQ(zero.codes, (bytes{0x80, 0, 0, 0, 0, 0, 0, 0}));

    numbers with_nan(32, 0.5f);
    with_nan[3] = NAN;
    with_nan[16] = 1;
    const quantised nan = quantise(nvfp4(6), with_nan);
    EXPECT_EQ(nan.scales, (bytes{0x7f, 0x38}));
    bytes expected(16, 0x77);
    std::fill(expected.begin() + 8, expected.end(), 0x55);
    expected[8] = 0x57;
    EXPECT_EQ(nan.codes, expected);

    numbers infinite(16, 1);
    infinite[0] = INFINITY;
    infinite[1] = -INFINITY;
    const quantised top = quantise(nvfp4(448), infinite);
    EXPECT_EQ(top.scales, bytes{0x7e});
    EXPECT_EQ(top.codes, (bytes{0xf7, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22}));
}

TEST(Nvfp4Layout, HasPaddedSizes)
{
    const struct {
        size_t rows, columns, large, small, linear;
    } cases[] = {
        {1, 1, 512, 32, 1},
        {128, 4, 512, 512, 512},
        {129, 4, 1024, 544, 516},
        {128, 5, 1024, 1024, 640},
        {9, 5, 1024, 128, 45},
        {1, 512, 65536, 4096, 512},
        {130, 180, 46080, 24480, 23400},
        {0, 4, 0, 0, 0},
    };
    for (const auto &c : cases) {
        EXPECT_EQ(lamprey_reference_fp4_scale_bytes(LAMPREY_REFERENCE_128X4, c.rows, c.columns),
                  c.large);
        EXPECT_EQ(lamprey_reference_fp4_scale_bytes(LAMPREY_REFERENCE_8X4, c.rows, c.columns),
                  c.small);
        EXPECT_EQ(lamprey_reference_fp4_scale_bytes(LAMPREY_REFERENCE_LINEAR, c.rows, c.columns),
                  c.linear);
    }
}

size_t index_by_formula(lamprey_reference_layout layout, size_t columns, size_t m, size_t k)
{
    const size_t tiles = (columns + 3) / 4;
    switch (layout) {
    case LAMPREY_REFERENCE_128X4:
        return (m / 128) * tiles * 512 + (k / 4) * 512 + (m % 32) * 16 + ((m % 128) / 32) * 4 +
               k % 4;
    case LAMPREY_REFERENCE_8X4:
        return (m / 8) * tiles * 32 + (k / 4) * 32 + (m % 8) * 4 + k % 4;
    default:
        return m * columns + k;
    }
}

TEST(Nvfp4Layout, FillsItsSizeOnce)
{
    for (auto layout : {LAMPREY_REFERENCE_128X4, LAMPREY_REFERENCE_8X4, LAMPREY_REFERENCE_LINEAR}) {
        for (size_t columns : {1, 4, 7, 12}) {
            const size_t rows = layout == LAMPREY_REFERENCE_LINEAR ? 3 : 256;
            const size_t padded =
                layout == LAMPREY_REFERENCE_LINEAR ? columns : (columns + 3) / 4 * 4;
            std::set<size_t> places;
            for (size_t row = 0; row < rows; row++) {
                for (size_t column = 0; column < padded; column++) {
                    const size_t index =
                        lamprey_reference_fp4_scale_index(layout, columns, row, column);
                    ASSERT_EQ(index, index_by_formula(layout, columns, row, column));
                    places.insert(index);
                }
            }
            const size_t size = lamprey_reference_fp4_scale_bytes(layout, rows, columns);
            ASSERT_EQ(places.size(), size);
            ASSERT_EQ(*places.rbegin(), size - 1);
        }
    }
}

TEST(Nvfp4Layout, WritesPaddingColumnsAndNoPaddingRows)
{
    for (auto layout : {LAMPREY_REFERENCE_128X4, LAMPREY_REFERENCE_8X4, LAMPREY_REFERENCE_LINEAR}) {
        for (size_t columns : {1, 4, 6}) {
            const size_t tokens = 137;
            numbers row(16 * columns);
            for (size_t i = 0; i < row.size(); i++) {
                row[i] = ldexpf(6, (int)(i / 16) - 3);
            }
            const quantised q = quantise(nvfp4(1, layout), row, tokens);
            bytes expected(lamprey_reference_fp4_scale_bytes(layout, tokens, columns), UNWRITTEN);
            for (size_t token = 0; token < tokens; token++) {
                for (size_t column = 0; layout != LAMPREY_REFERENCE_LINEAR && column < 8;
                     column++) {
                    if (column < (columns + 3) / 4 * 4) {
                        expected[index_by_formula(layout, columns, token, column)] = 0;
                    }
                }
                for (size_t column = 0; column < columns; column++) {
                    expected[index_by_formula(layout, columns, token, column)] =
                        (uint8_t)nearest_e4m3(ldexp(1, (int)column - 3));
                }
            }
            ASSERT_EQ(q.scales, expected) << layout << " " << columns;
            ASSERT_EQ(q.codes, bytes(tokens * columns * 8, 0x77));
        }
    }
}

TEST(Quantisation, WithoutAFormatWritesNothing)
{
    const lamprey_reference_quantisation none = {};
    const float value = 1;
    EXPECT_EQ(lamprey_reference_code_bytes(&none, 5, 64), 0u);
    EXPECT_EQ(lamprey_reference_scale_bytes(&none, 5, 64), 0u);
    lamprey_reference_quantise_row(&none, 1, 1, 0, &value, nullptr, nullptr);
}

} // namespace
