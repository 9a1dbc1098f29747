// SPDX-License-Identifier: Apache-2.0
// Holds the fused reference's sums, residuals and norms to NUMERICS.md, by cases written by hand,
// by a second way in fp32 with the same bits, and by a third in fp64 within bounds.
#include "kernels/fused_reference.h"

#include <gtest/gtest.h>

#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "tests/fused_call.h"

namespace {

using lamprey_test::bytes;
using lamprey_test::call;
using lamprey_test::data_kind;
using lamprey_test::element_type;
using lamprey_test::load_numbers;
using lamprey_test::make_data;
using lamprey_test::numbers;
using lamprey_test::random_call;
using lamprey_test::shape;
using lamprey_test::store_numbers;

constexpr element_type F16 = LAMPREY_REFERENCE_F16;
constexpr element_type BF16 = LAMPREY_REFERENCE_BF16;
constexpr element_type F32 = LAMPREY_REFERENCE_F32;
const element_type all_types[] = {F16, BF16, F32};

uint16_t sum_of(element_type type, lamprey_reference_accumulation accumulation,
                const std::vector<uint16_t> &inputs)
{
    std::vector<const void *> pointers;
    for (const uint16_t &input : inputs) {
        pointers.push_back(&input);
    }
    uint16_t result = 0;
    lamprey_reference_sum(type, accumulation, (int)inputs.size(), pointers.data(), &result, 1);
    return result;
}

TEST(FusedSum, IsRoundedOnceOrAfterEachAddition)
{
    const struct {
        element_type type;
        std::vector<uint16_t> inputs;
        uint16_t in_f32;
        uint16_t in_element;
    } cases[] = {
        {BF16, {0x4380, 0x3f80, 0x3f80}, 0x4381, 0x4380}, // 256, 1, 1
        {BF16, {0x3f80, 0x3f80, 0x4380}, 0x4381, 0x4381}, // in rank order
        {BF16, {0x4381, 0x3f80, 0x3f80}, 0x4382, 0x4382}, // 258 + 1 is tied, to 260; then to even
        {F16, {0x6800, 0x3c00, 0x3c00}, 0x6801, 0x6800},  // 2048, 1, 1
        {F16, {0x7bff, 0x7bff, 0xfbff}, 0x7bff, 0x7c00},  // overflow on the way
        {BF16, {0x8000, 0x8000}, 0x8000, 0x8000},
        {BF16, {0x8000}, 0x8000, 0x8000},
        {BF16, {0xffc1}, 0x7fff, 0x7fff},
        {F16, {0x7c00, 0xfc00, 0x3c00}, 0x7fff, 0x7fff},
    };
    for (const auto &c : cases) {
        EXPECT_EQ(sum_of(c.type, LAMPREY_REFERENCE_IN_F32, c.inputs), c.in_f32);
        EXPECT_EQ(sum_of(c.type, LAMPREY_REFERENCE_IN_ELEMENT, c.inputs), c.in_element);
    }
}

TEST(FusedSum, HasTheBitsOfAPlainAllReduce)
{
    for (element_type type : all_types) {
        std::vector<bytes> inputs;
        std::vector<const void *> pointers;
        for (int rank = 0; rank < 5; rank++) {
            inputs.push_back(make_data(type, 3000, data_kind::any_bits, 10 + rank));
        }
        for (const bytes &input : inputs) {
            pointers.push_back(input.data());
        }
        const bytes plain = lamprey_test::all_reduce_sum(type, inputs);
        bytes result(plain.size());
        lamprey_reference_sum(type, LAMPREY_REFERENCE_IN_F32, 5, pointers.data(), result.data(),
                              3000);
        EXPECT_EQ(result, plain);
        bytes in_element(plain.size());
        lamprey_reference_sum(type, LAMPREY_REFERENCE_IN_ELEMENT, 5, pointers.data(),
                              in_element.data(), 3000);
        EXPECT_EQ(in_element == plain, type == F32);
    }
}

// value = x / 2^23 in [1, 4) and the root r / 2^24: half a unit below r^2 x is at most 1, half a
// unit above at least 1. All other floats are these by a power of 4.
TEST(InverseRoot, IsTheNearestForEverySignificand)
{
    const unsigned __int128 one = (unsigned __int128)1 << 73;
    for (uint64_t pattern = 0x3f800000; pattern < 0x40800000; pattern++) {
        const uint32_t bits = (uint32_t)pattern;
        float value;
        memcpy(&value, &bits, sizeof(value));
        const uint64_t x = (uint64_t)ldexpf(value, 23);
        const uint64_t r = (uint64_t)ldexpf(lamprey_reference_inverse_root(value), 24);
        const unsigned __int128 below = (unsigned __int128)((2 * r - 1) * (2 * r - 1)) * x;
        const unsigned __int128 above = (unsigned __int128)((2 * r + 1) * (2 * r + 1)) * x;
        ASSERT_TRUE(below <= one && one <= above) << std::hexfloat << value;
    }
}

TEST(InverseRoot, KeepsToPowersOfFourAndLimits)
{
    EXPECT_EQ(lamprey_reference_inverse_root(0x1p-149f), (float)(0x1p74 * 1.4142135623730951));
    EXPECT_EQ(lamprey_reference_inverse_root(0x1p-126f), 0x1p63f);
    EXPECT_EQ(lamprey_reference_inverse_root(0x1.8p101f),
              ldexpf(lamprey_reference_inverse_root(3.0f), -50));
    EXPECT_EQ(lamprey_reference_inverse_root(0.0f), INFINITY);
    EXPECT_EQ(lamprey_reference_inverse_root(INFINITY), 0.0f);
    EXPECT_TRUE(isnan(lamprey_reference_inverse_root(-1.0f)));
    EXPECT_TRUE(isnan(lamprey_reference_inverse_root(NAN)));
}

TEST(Residual, IsAddedToTheRoundedSumAndRounded)
{
    // bf16 has 8 bits: above 256 the even numbers.
    call c(BF16, {256, 256, 258, 3});
    c.residual = store_numbers(BF16, {1, -1, 1, 5});
    c.run();
    EXPECT_EQ(load_numbers(BF16, c.residual_out), (numbers{256, 255, 260, 8}));
    EXPECT_EQ(c.norm_out, c.residual_out);       // no norm
    c.bias = store_numbers(BF16, {1, 3, 0, -2}); // 256, 260, 258, 1, each rounded
    c.run();
    EXPECT_EQ(load_numbers(BF16, c.residual_out), (numbers{256, 260, 260, 6}));
    c.residual.clear();
    c.run();
    EXPECT_EQ(load_numbers(BF16, c.residual_out), (numbers{256, 260, 258, 1}));
}

TEST(Residual, IsOfItsTokenAndTheBiasOfItsColumn)
{
    call c(F32, 2, 2, store_numbers(F32, {1, 2, 3, 4}));
    c.residual = store_numbers(F32, {10, 20, 30, 40});
    c.bias = store_numbers(F32, {100, 200});
    c.run();
    EXPECT_EQ(load_numbers(F32, c.residual_out), (numbers{111, 222, 133, 244}));
}

TEST(Norm, OfRowsWrittenByHand)
{
    call c(F32, {2, -2, 2, -2}); // a mean square of 4
    c.norm = true;
    c.run();
    EXPECT_EQ(load_numbers(F32, c.norm_out), (numbers{1, -1, 1, -1}));
    EXPECT_EQ(load_numbers(F32, c.residual_out), (numbers{2, -2, 2, -2}));
    c.epsilon = 12;
    c.gamma = store_numbers(F32, {1, 2, 0, -0.0f});
    c.run();
    EXPECT_EQ(load_numbers(F32, c.norm_out), (numbers{0.5f, -1, 0, 0}));
    EXPECT_TRUE(signbit(load_numbers(F32, c.norm_out)[3])); // -0.5 * (0 + -0.0)
    c.weight_bias = 1;
    c.gamma = store_numbers(BF16, {1, 2, 0, -1});
    c.gamma_type = BF16;
    c.run();
    EXPECT_EQ(load_numbers(F32, c.norm_out), (numbers{1, -1.5f, 0.5f, -0.0f}));
}

// All ones beside 2^12: in any order that adds them to its square one by one they would be lost.
TEST(Norm, AddsNeighboursFirstInASegment)
{
    numbers row(128, 1);
    std::fill(row.begin(), row.begin() + 64, 0.0f);
    row[0] = 4096;
    call c(F32, row);
    c.norm = true;
    c.run();
    const float mean = ((16777216.0f + 64.0f) * (1.0f / 128));
    EXPECT_EQ(load_numbers(F32, c.norm_out)[64], lamprey_reference_inverse_root(mean));
    ASSERT_NE(lamprey_reference_inverse_root(mean), lamprey_reference_inverse_root(131072.0f));
}

TEST(Norm, AddsSegmentsInOrder)
{
    const size_t segments = 512;
    numbers row(128 * segments, 0);
    for (size_t segment = 0; segment < segments; segment++) {
        row[128 * segment + 5] = segment == 0 ? 4096.0f : 1.0f;
    }
    for (bool reversed : {false, true}) {
        if (reversed) {
            std::swap(row[5], row[128 * (segments - 1) + 5]);
        }
        call c(F32, row);
        c.norm = true;
        c.run();
        const float sum = reversed ? 16777216.0f + 511.0f : 16777216.0f;
        EXPECT_EQ(load_numbers(F32, c.norm_out)[128 + 5],
                  lamprey_reference_inverse_root(sum / (float)row.size()));
    }
}

// The second way: halves instead of neighbours, one rounding after the other.
float tree(const float *values, size_t count, size_t width)
{
    if (width == 1) {
        return count > 0 ? values[0] * values[0] : 0.0f;
    }
    const size_t half = width / 2;
    const size_t left = count < half ? count : half;
    return tree(values, left, half) + tree(values + left, count - left, half);
}

numbers normalised(element_type type, const float *row, size_t hidden, const call &c)
{
    const size_t segment = type == F32 ? 128 : 256;
    float total = tree(row, std::min(segment, hidden), segment);
    for (size_t start = segment; start < hidden; start += segment) {
        total += tree(row + start, std::min(segment, hidden - start), segment);
    }
    const float root = (float)(1 / sqrt((double)(total * (1.0f / (float)hidden) + c.epsilon)));
    numbers result;
    for (size_t i = 0; i < hidden; i++) {
        const float weight =
            c.gamma.empty()
                ? 1.0f
                : c.weight_bias + lamprey_reference_load(c.gamma_type, c.gamma.data(), i);
        const float scaled = row[i] * root;
        result.push_back(scaled * weight);
    }
    return result;
}

const shape shapes[] = {{3, 1},   {2, 7},   {4, 8},    {3, 127},  {1, 128},  {2, 129},
                        {3, 256}, {2, 257}, {2, 1000}, {1, 2880}, {2, 4099}, {1, 7168}};

TEST(Norm, HasTheBitsOfASecondWay)
{
    for (element_type type : all_types) {
        for (element_type gamma_type : {type, F32}) {
            for (const shape &s : shapes) {
                call c = random_call(type, s, gamma_type, data_kind::numbers);
                c.run();
                const numbers rows = load_numbers(type, c.residual_out);
                numbers expected;
                for (size_t token = 0; token < s.tokens; token++) {
                    const numbers row = normalised(type, &rows[token * s.hidden], s.hidden, c);
                    expected.insert(expected.end(), row.begin(), row.end());
                }
                ASSERT_EQ(c.norm_out, store_numbers(type, expected)) << type << " " << s.hidden;
            }
        }
    }
}

// The rows themselves and their formula, in fp64, from the outputs alone.
TEST(Norm, LiesWithinRoundingOfTheFormula)
{
    for (element_type type : all_types) {
        const double rounding = type == BF16 ? 0x1p-8 : type == F16 ? 0x1p-11 : 0x1p-24;
        for (const shape &s : shapes) {
            call c = random_call(type, s, F32, data_kind::numbers);
            c.run();
            const numbers rows = load_numbers(type, c.residual_out);
            const numbers sums = load_numbers(type, c.sum);
            const numbers residual = load_numbers(type, c.residual);
            const numbers got = load_numbers(type, c.norm_out);
            const numbers gamma = load_numbers(F32, c.gamma);
            for (size_t token = 0; token < s.tokens; token++) {
                double squares = 0;
                for (size_t i = token * s.hidden; i < (token + 1) * s.hidden; i++) {
                    const double exact = (double)sums[i] + residual[i];
                    ASSERT_LE(fabs(rows[i] - exact), fabs(exact) * rounding);
                    squares += (double)rows[i] * rows[i];
                }
                const double root = 1 / sqrt(squares / (double)s.hidden + 1e-5);
                for (size_t i = 0; i < s.hidden; i++) {
                    const double exact = rows[token * s.hidden + i] * root * (1.0 + gamma[i]);
                    // A few roundings of fp32, that of 1 + gamma relative to gamma among them.
                    const double slack = fabs(exact) * (rounding + 0x1p-21) +
                                         fabs(rows[token * s.hidden + i] * root) * 0x1p-23 +
                                         (type == F16 ? 0x1p-25 : 0);
                    ASSERT_LE(fabs(got[token * s.hidden + i] - exact), slack)
                        << type << " " << s.hidden << " " << i;
                }
            }
        }
    }
}

TEST(Norm, BeforeTheResidualIsTheSameNorm)
{
    for (element_type type : all_types) {
        const shape s = {3, 300};
        call both = random_call(type, s, type, data_kind::numbers);
        both.bias = make_data(type, s.hidden, data_kind::numbers, 4);
        both.pre_norm = true;
        both.pre_gamma = make_data(type, s.hidden, data_kind::numbers, 5);
        both.weight_bias = 0.25f;
        both.run();

        call first = both;
        first.pre_norm = false;
        first.residual.clear();
        first.gamma = both.pre_gamma;
        first.run();
        call second = both;
        second.sum = first.norm_out;
        second.bias.clear();
        second.pre_norm = false;
        second.run();
        EXPECT_EQ(both.residual_out, second.residual_out);
        EXPECT_EQ(both.norm_out, second.norm_out);
        EXPECT_NE(both.residual_out, both.norm_out);

        call unweighted = both;
        unweighted.pre_gamma.clear();
        unweighted.run();
        first.gamma.clear();
        first.run();
        second.sum = first.norm_out;
        second.run();
        EXPECT_EQ(unweighted.norm_out, second.norm_out);
        EXPECT_NE(unweighted.norm_out, both.norm_out);
    }
}

TEST(Norm, OfRowsWithNansInfinitiesAndZeros)
{
    const float nan = lamprey_reference_round(F32, NAN);
    const struct {
        numbers row;
        float epsilon;
        numbers result;
    } cases[] = {
        {{1, NAN, 2, -0.0f}, 1, {nan, nan, nan, nan}},
        {{1, INFINITY, -2, -0.0f}, 1, {0, nan, -0.0f, -0.0f}},
        {{1, -1, 1, -1}, -4, {nan, nan, nan, nan}},
        {{0, -0.0f, 0, 0}, 0, {nan, nan, nan, nan}},
        {{0, -0.0f, 0, 0}, 0.25f, {0, -0.0f, 0, 0}},
        {{0x1p100f, 0, 1, -1}, 0, {0, 0, 0, -0.0f}}, // the square overflows
        {{0x1p-100f, 0, 0, 0}, 0.25f, {0x1p-99f, 0, 0, 0}},
    };
    for (element_type type : {BF16, F32}) {
        for (const auto &c : cases) {
            call row(type, c.row);
            row.epsilon = c.epsilon;
            row.norm = true;
            row.run();
            EXPECT_EQ(row.norm_out, store_numbers(type, c.result)) << c.row[0] << " " << c.row[1];
        }
    }
}

} // namespace
