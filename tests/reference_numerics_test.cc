// SPDX-License-Identifier: Apache-2.0
// Holds the reference's operations to NUMERICS.md, by cases written by hand and by a second way in
// wider arithmetic. Its conversions have a test of their own.
#include "kernels/reference.h"

#include <gtest/gtest.h>

#include <math.h>
#include <string.h>

#include <algorithm>
#include <cfloat>
#include <initializer_list>
#include <random>
#include <type_traits>
#include <vector>

namespace {

using type = lamprey_reference_type;
using op = lamprey_reference_op;

constexpr type F16 = LAMPREY_REFERENCE_F16;
constexpr type BF16 = LAMPREY_REFERENCE_BF16;
constexpr type F32 = LAMPREY_REFERENCE_F32;
constexpr type F64 = LAMPREY_REFERENCE_F64;
constexpr type E4M3 = LAMPREY_REFERENCE_E4M3;
constexpr type E5M2 = LAMPREY_REFERENCE_E5M2;
constexpr type I8 = LAMPREY_REFERENCE_I8;
constexpr type U8 = LAMPREY_REFERENCE_U8;
constexpr type I32 = LAMPREY_REFERENCE_I32;
constexpr type U32 = LAMPREY_REFERENCE_U32;
constexpr type I64 = LAMPREY_REFERENCE_I64;
constexpr type U64 = LAMPREY_REFERENCE_U64;
constexpr op SUM = LAMPREY_REFERENCE_SUM;
constexpr op PROD = LAMPREY_REFERENCE_PROD;
constexpr op MIN = LAMPREY_REFERENCE_MIN;
constexpr op MAX = LAMPREY_REFERENCE_MAX;
constexpr op AVG = LAMPREY_REFERENCE_AVG;

const std::vector<type> all_types = {F16, BF16, F32, F64, E4M3, E5M2, I8, U8, I32, U32, I64, U64};
const std::vector<op> all_ops = {SUM, PROD, MIN, MAX, AVG};

const char *name(type t)
{
    static const char *const names[] = {"F16", "BF16", "F32", "F64", "E4M3", "E5M2",
                                        "I8",  "U8",   "I32", "U32", "I64",  "U64"};
    return names[t];
}

const char *name(op o)
{
    static const char *const names[] = {"SUM", "PROD", "MIN", "MAX", "AVG"};
    return names[o];
}

template <typename To, typename From> To as(From from)
{
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

uint32_t bits_of(float value)
{
    return as<uint32_t>(value);
}

TEST(Reference, KnowsSizes)
{
    const size_t sizes[] = {2, 2, 4, 8, 1, 1, 1, 1, 4, 4, 8, 8};
    for (type t : all_types) {
        EXPECT_EQ(lamprey_reference_size(t), sizes[t]) << name(t);
    }
}

uint64_t reduce(type t, op o, const std::vector<uint64_t> &inputs)
{
    std::vector<const void *> pointers;
    for (const uint64_t &input : inputs) {
        pointers.push_back(&input);
    }
    uint64_t result = 0;
    lamprey_reference_all_reduce(t, o, (int)inputs.size(), pointers.data(), &result, 1);
    return result;
}

struct operation {
    type t;
    op o;
    std::vector<uint64_t> inputs; // patterns, by rank
    uint64_t result;
};

void expect_rule(const char *rule, std::initializer_list<operation> operations)
{
    for (const operation &c : operations) {
        EXPECT_EQ(reduce(c.t, c.o, c.inputs), c.result) << rule << ": " << name(c.t) << name(c.o);
    }
}

constexpr uint64_t F64_ONE = 0x3ff0000000000000, F64_INFINITY = 0x7ff0000000000000;
constexpr uint64_t F64_2_TO_53 = 0x4340000000000000, F64_NAN = 0x7fffffffffffffff;
constexpr uint64_t TOP = 1ull << 63; // -0.0, the smallest integer

TEST(Reference, AddsAndMultipliesFloatsInRankOrder)
{
    expect_rule("from rank 0 on", // 2^24 + 1 is 2^24 in fp32
                {{F32, SUM, {0x4b800000, 0x3f800000, 0x3f800000}, 0x4b800000},
                 {F32, SUM, {0x3f800000, 0x3f800000, 0x4b800000}, 0x4b800001},
                 {F64, SUM, {F64_2_TO_53, F64_ONE, F64_ONE}, F64_2_TO_53},
                 {F64, SUM, {F64_ONE, F64_ONE, F64_2_TO_53}, F64_2_TO_53 + 1}});
    expect_rule("one rounding, at the end", // in steps the ones would be lost
                {{F16, SUM, {0x6800, 0x3c00, 0x3c00}, 0x6801},
                 {BF16, SUM, {0x4380, 0x3f80, 0x3f80}, 0x4381},
                 {E4M3, SUM, {0x58, 0x38, 0x38}, 0x59},
                 {E5M2, SUM, {0x48, 0x3c, 0x3c}, 0x49}});
    expect_rule("ties to even", {{F16, SUM, {0x6800, 0x3c00}, 0x6800},
                                 {F16, SUM, {0x6801, 0x3c00}, 0x6802},
                                 {E4M3, SUM, {0x58, 0x38}, 0x58},
                                 {E5M2, SUM, {0x49, 0x3c}, 0x4a}});
    expect_rule("no overflow on the way",
                {{F16, SUM, {0x7b53, 0x7b53, 0xfb53}, 0x7b53},
                 {E4M3, SUM, {0x7e, 0x7e, 0xfe}, 0x7e},
                 {F16, PROD, {0x7800, 0x7400, 0x0400}, 0x7800}}); // 2^15 2^14 2^-14
    expect_rule("overflow", {{F32, SUM, {0x7f7fffff, 0x7f7fffff, 0xff7fffff}, 0x7f800000},
                             {F16, SUM, {0x7bff, 0x7bff}, 0x7c00},
                             {BF16, SUM, {0xff7f, 0xff7f}, 0xff80}});
    expect_rule("3 * -5 = -15",
                {{F16, PROD, {0x4200, 0xc500}, 0xcb80},
                 {BF16, PROD, {0x4040, 0xc0a0}, 0xc170},
                 {E4M3, PROD, {0x44, 0xca}, 0xd7},
                 {E5M2, PROD, {0x42, 0xc5}, 0xcc}, // -16
                 {F32, PROD, {0x40400000, 0xc0a00000}, 0xc1700000},
                 {F64, PROD, {0x4008000000000000, 0xc014000000000000}, 0xc02e000000000000}});
    expect_rule("one rank", {{F16, SUM, {0x1234}, 0x1234}, {F32, AVG, {0x12345678}, 0x12345678}});
}

TEST(Reference, KeepsSubnormalsAndSignsOfZero)
{
    expect_rule("subnormals",
                {{F16, SUM, {0x0001, 0x0001}, 0x0002},
                 {BF16, SUM, {0x0001, 0x8003}, 0x8002},
                 {E4M3, SUM, {0x01, 0x02}, 0x03},
                 {E5M2, SUM, {0x01, 0x02}, 0x03},
                 {F32, SUM, {0x00000001, 0x00000001}, 0x00000002},
                 {F32, SUM, {0x00800000, 0x80000001}, 0x007fffff},
                 {F64, SUM, {1, 1}, 2},
                 {F32, PROD, {0x00800000, 0x3f000000}, 0x00400000},
                 {F64, PROD, {0x0010000000000000, 0x3fe0000000000000}, 0x0008000000000000},
                 {F32, MAX, {0x80000001, 0x80000002}, 0x80000001},
                 {F32, AVG, {0x00000002, 0x00000002}, 0x00000002}});
    expect_rule("-0 + -0 = -0", {{F16, SUM, {0x8000, 0x8000}, 0x8000},
                                 {BF16, SUM, {0x8000, 0x8000, 0x8000}, 0x8000},
                                 {E4M3, SUM, {0x80, 0x80}, 0x80},
                                 {E5M2, SUM, {0x80, 0x80}, 0x80},
                                 {F32, SUM, {0x80000000, 0x80000000}, 0x80000000},
                                 {F64, SUM, {TOP, TOP}, TOP},
                                 {F32, AVG, {0x80000000, 0x80000000}, 0x80000000}});
    expect_rule("other zeros", {{F32, SUM, {0x80000000, 0x00000000}, 0x00000000},
                                {F16, SUM, {0x3c00, 0xbc00}, 0x0000},
                                {F32, PROD, {0xbf800000, 0x00000000}, 0x80000000},
                                {E4M3, PROD, {0x81, 0x01}, 0x80},
                                {F16, PROD, {0x8001, 0x0001}, 0x8000}});
}

TEST(Reference, MakesEveryNanCanonical)
{
    const struct {
        type t;
        uint64_t one, nan;
        std::vector<uint64_t> nans;
    } types[] = {
        {F16, 0x3c00, 0x7fff, {0x7c01, 0x7e00, 0xfe00, 0xfc01, 0x7fff, 0xffff}},
        {BF16, 0x3f80, 0x7fff, {0x7f81, 0x7fc0, 0xffc0, 0xff81, 0x7fff, 0xffff}},
        {E4M3, 0x38, 0x7f, {0x7f, 0xff}},
        {E5M2, 0x3c, 0x7f, {0x7d, 0x7e, 0x7f, 0xfd, 0xfe, 0xff}},
        {F32,
         0x3f800000,
         0x7fffffff,
         {0x7f800001, 0x7fc00000, 0xffc00000, 0xff800001, 0x7fffffff, 0xffffffff}},
        {F64,
         0x3ff0000000000000,
         0x7fffffffffffffff,
         {0x7ff0000000000001, 0x7ff8000000000000, 0xfff8000000000000, 0xfff0000000000001,
          0x7fffffffffffffff, ~0ull}},
    };
    for (const auto &c : types) {
        for (uint64_t nan : c.nans) {
            for (op o : all_ops) {
                EXPECT_EQ(reduce(c.t, o, {nan}), c.nan) << name(c.t) << name(o) << nan;
                EXPECT_EQ(reduce(c.t, o, {nan, nan}), c.nan) << name(c.t) << name(o) << nan;
            }
            for (op o : {SUM, PROD, AVG}) {
                EXPECT_EQ(reduce(c.t, o, {c.one, nan}), c.nan) << name(c.t) << name(o) << nan;
                EXPECT_EQ(reduce(c.t, o, {nan, c.one}), c.nan) << name(c.t) << name(o) << nan;
            }
            for (op o : {MIN, MAX}) { // quiet or signalling, it yields to numbers
                EXPECT_EQ(reduce(c.t, o, {c.one, nan}), c.one) << name(c.t) << name(o) << nan;
                EXPECT_EQ(reduce(c.t, o, {nan, c.one}), c.one) << name(c.t) << name(o) << nan;
                EXPECT_EQ(reduce(c.t, o, {nan, nan, c.one, nan}), c.one) << name(c.t) << nan;
            }
        }
    }
    expect_rule("inf - inf", {{F16, SUM, {0x7c00, 0xfc00}, 0x7fff},
                              {BF16, SUM, {0x7f80, 0xff80}, 0x7fff},
                              {E5M2, SUM, {0x7c, 0xfc}, 0x7f},
                              {F32, SUM, {0x7f800000, 0xff800000}, 0x7fffffff},
                              {F32, AVG, {0x7f800000, 0xff800000}, 0x7fffffff},
                              {F64, SUM, {F64_INFINITY, F64_INFINITY | TOP}, F64_NAN}});
    expect_rule("inf * 0", {{F32, PROD, {0x7f800000, 0x80000000}, 0x7fffffff},
                            {F64, PROD, {F64_INFINITY | TOP, 0}, F64_NAN}});
}

// What the protocol may do to an input word of all ones shows in no result.
TEST(Reference, TakesAllOnesForTheNanThatReplacesThem)
{
    const struct {
        type t;
        uint64_t ones, replacement, others[5];
    } types[] = {
        {F16, 0xffff, 0x7fff, {0x3c00, 0x8000, 0x7c00, 0xfc00, 0xfe01}},
        {BF16, 0xffff, 0x7fff, {0x3f80, 0x8000, 0x7f80, 0xff80, 0xffc1}},
        {E4M3, 0xff, 0x7f, {0x38, 0x80, 0x7e, 0xfe, 0x7f}},
        {E5M2, 0xff, 0x7f, {0x3c, 0x80, 0x7c, 0xfc, 0xfd}},
        {F32, 0xffffffff, 0x7fffffff, {0x3f800000, 0x80000000, 0x7f800000, 0xff800000, 0xffc00001}},
        {F64,
         ~0ull,
         ~0ull >> 1,
         {0x3ff0000000000000, 1ull << 63, 0x7ff0000000000000, 0xfff0000000000000,
          0xfff8000000000001}},
    };
    for (const auto &c : types) {
        for (op o : all_ops) {
            EXPECT_EQ(reduce(c.t, o, {c.ones, c.ones}),
                      reduce(c.t, o, {c.replacement, c.replacement}));
            for (uint64_t other : c.others) {
                EXPECT_EQ(reduce(c.t, o, {c.ones, other}), reduce(c.t, o, {c.replacement, other}))
                    << name(c.t) << name(o) << other;
                EXPECT_EQ(reduce(c.t, o, {other, c.ones}), reduce(c.t, o, {other, c.replacement}))
                    << name(c.t) << name(o) << other;
            }
        }
    }
}

TEST(Reference, FindsTheSmallestAndTheLargestFloat)
{
    expect_rule("numbers", {{F16, MIN, {0x3c00, 0xc000, 0x4000}, 0xc000},
                            {F16, MAX, {0x3c00, 0xc000, 0x4000}, 0x4000},
                            {BF16, MIN, {0xbf80, 0xc000}, 0xc000},
                            {BF16, MAX, {0xbf80, 0xc000}, 0xbf80},
                            {E4M3, MIN, {0x38, 0x40}, 0x38},
                            {E5M2, MAX, {0x3c, 0x40}, 0x40},
                            {F32, MIN, {0x3f800000, 0x3f800001}, 0x3f800000},
                            {F64, MAX, {F64_ONE, F64_ONE + 1}, F64_ONE + 1}});
    const uint64_t zeros[][2] = {{F16, 0x8000}, {BF16, 0x8000}, {E4M3, 0x80},
                                 {E5M2, 0x80},  {F64, TOP},     {F32, 0x80000000}};
    for (const auto &[t, minus] : zeros) {
        expect_rule("-0 below +0", {{type(t), MIN, {0, minus}, minus},
                                    {type(t), MIN, {minus, 0}, minus},
                                    {type(t), MAX, {0, minus}, 0},
                                    {type(t), MAX, {minus, 0}, 0}});
    }
    expect_rule("infinities", {{F32, MIN, {0x7f800000, 0x7f7fffff}, 0x7f7fffff},
                               {F32, MAX, {0x7f800000, 0x7f7fffff}, 0x7f800000},
                               {F16, MIN, {0xfc00, 0xfbff}, 0xfc00},
                               {BF16, MIN, {0x7fc0, 0x7f80}, 0x7f80}});
}

TEST(Reference, SaturatesFp8)
{
    expect_rule("numbers", {{E4M3, SUM, {0x7e, 0x7e}, 0x7e},
                            {E4M3, SUM, {0xfe, 0x80, 0xfe}, 0xfe},
                            {E5M2, SUM, {0x7b, 0x7b}, 0x7b},
                            {E5M2, PROD, {0xfb, 0x7b}, 0xfb}});
    expect_rule("infinities", {{E5M2, SUM, {0x7c, 0x3c}, 0x7b},
                               {E5M2, AVG, {0xfc, 0x3c}, 0xfb},
                               {E5M2, MAX, {0x7c, 0x3c}, 0x7b},
                               {E5M2, MIN, {0xfc, 0x3c}, 0xfb},
                               {E5M2, MIN, {0x7c, 0x3c}, 0x3c},
                               {E5M2, SUM, {0x7c, 0xfb, 0xfb}, 0x7b}}); // infinite until the end
}

TEST(Reference, AveragesFloatsByShares)
{
    expect_rule("no overflow on the way",
                {{F32, AVG, {0x7f7fffff, 0x7f7fffff}, 0x7f7fffff},
                 {F64, AVG, {F64_INFINITY - 1, F64_INFINITY - 1}, F64_INFINITY - 1},
                 {F16, AVG, {0x7bff, 0x7bff, 0x7bff, 0x7bff}, 0x7bff},
                 {BF16, AVG, {0x7f7f, 0x7f7f}, 0x7f7f},
                 {E4M3, AVG, {0x7e, 0x7e}, 0x7e},
                 {F32, AVG, {0x7f800000, 0x3f800000}, 0x7f800000}});
    expect_rule(
        "every share is rounded, to even", // 1/2 + 1/2 = 0 and 3/2 + 3/2 = 4 smallest numbers
        {{F32, AVG, {1, 1}, 0},
         {F32, AVG, {3, 3}, 4},
         {F64, AVG, {1, 1}, 0},
         {F64, AVG, {3, 3}, 4}});
    expect_rule("1/n in fp32, not in the element's type", // 5/3
                {{F16, AVG, {0x4500, 0, 0}, 0x3eab},
                 {BF16, AVG, {0x40a0, 0, 0}, 0x3fd5},
                 {E4M3, AVG, {0x4a, 0, 0}, 0x3d},
                 {E5M2, AVG, {0x45, 0, 0}, 0x3f}});
    expect_rule("no fused multiply-add", // (1 + 1 + 7)/3
                {{F32, AVG, {0x3f800000, 0x3f800000, 0x40e00000}, 0x40400001}});
}

TEST(Reference, WrapsIntegers)
{
    expect_rule("sum", {{I8, SUM, {0x7f, 0x01}, 0x80},
                        {U8, SUM, {0xff, 0x02}, 0x01},
                        {I32, SUM, {0x7fffffff, 0x7fffffff, 0x02}, 0x00},
                        {U32, SUM, {0xffffffff, 0x02}, 0x01},
                        {I64, SUM, {TOP - 1, 1}, TOP},
                        {U64, SUM, {~0ull, 2}, 1}});
    expect_rule("product", {{I8, PROD, {0x80, 0xff}, 0x80},
                            {I8, PROD, {0xfd, 0x05}, 0xf1},
                            {U8, PROD, {0x10, 0x11}, 0x10},
                            {I32, PROD, {0x10000, 0x10001}, 0x10000},
                            {U32, PROD, {0xffffffff, 0xffffffff}, 1},
                            {I64, PROD, {1ull << 32, 1ull << 32}, 0},
                            {U64, PROD, {TOP, 3}, TOP}});
}

TEST(Reference, FindsTheSmallestAndTheLargestInteger)
{
    expect_rule("signed", {{I8, MIN, {0x7f, 0x80, 0xff}, 0x80},
                           {I8, MAX, {0x80, 0xff, 0x7f}, 0x7f},
                           {I32, MIN, {1, 0x80000000}, 0x80000000},
                           {I32, MAX, {0xffffffff, 0}, 0},
                           {I64, MIN, {1, TOP}, TOP},
                           {I64, MAX, {~0ull, 0}, 0}});
    expect_rule("unsigned", {{U8, MIN, {0x80, 0x7f, 0xff}, 0x7f},
                             {U8, MAX, {0x7f, 0x80}, 0x80},
                             {U32, MIN, {1, 0x80000000}, 1},
                             {U32, MAX, {0xffffffff, 0}, 0xffffffff},
                             {U64, MIN, {1, TOP}, 1},
                             {U64, MAX, {~0ull, 0}, ~0ull}});
}

TEST(Reference, AveragesIntegersByTheWrappedSum)
{
    expect_rule("truncated", {{U8, AVG, {1, 2}, 1},
                              {I8, AVG, {0xff, 0xfe}, 0xff},           // -3 / 2 = -1
                              {I32, AVG, {0xfffffffb, 0, 0}, ~0u},     // -5 / 3 = -1
                              {I64, AVG, {~0ull - 6, 0, 0, 0}, ~0ull}, // -7 / 4 = -1
                              {U64, AVG, {7, 0, 0, 0}, 1}});
    expect_rule("wrapped", {{I8, AVG, {0x7f, 0x7f}, 0xff}, // 254 is -2
                            {U8, AVG, {0xff, 0x03}, 0x01}, // 258 is 2
                            {I32, AVG, {0x7fffffff, 0x7fffffff}, 0xffffffff},
                            {U32, AVG, {0xffffffff, 0xffffffff}, 0x7fffffff},
                            {I64, AVG, {TOP - 1, TOP - 1}, ~0ull},
                            {U64, AVG, {~0ull, ~0ull}, TOP - 1}});
    expect_rule("the smallest", {{I8, AVG, {0x80, 0x00}, 0xc0},
                                 {I8, AVG, {0x80, 0x00, 0x00}, 0xd6}, // -128 / 3 = -42
                                 {I8, AVG, {0x80, 0x80}, 0x00},       // -256 is 0
                                 {I32, AVG, {0x80000000, 0}, 0xc0000000},
                                 {I64, AVG, {TOP, 0}, TOP | TOP >> 1},
                                 {I64, AVG, {TOP}, TOP}});
}

// A second way, for random patterns: wider arithmetic, rounded after every step. The formats'
// widths are such that rounding twice gives the same as once.
#if LDBL_MANT_DIG == 113
using quad = long double;
#else
using quad = __float128;
#endif

template <typename Number, typename Wide> Number second_way(op o, const std::vector<Number> &inputs)
{
    std::vector<Number> numbers;
    for (Number value : inputs) {
        if (!isnan(value)) {
            numbers.push_back(value);
        }
    }
    if (o == MIN || o == MAX) {
        if (numbers.empty()) {
            return NAN;
        }
        std::sort(numbers.begin(), numbers.end(),
                  [](Number a, Number b) { return a != b ? a < b : signbit(a) > signbit(b); });
        return o == MIN ? numbers.front() : numbers.back();
    }
    Number result = 0;
    for (size_t rank = 0; rank < inputs.size(); rank++) {
        const Number share = (Number)(1 / (Wide)inputs.size());
        const Number value = o == AVG ? (Number)((Wide)inputs[rank] * share) : inputs[rank];
        result = rank == 0   ? value
                 : o == PROD ? (Number)((Wide)result * value)
                             : (Number)((Wide)result + value);
    }
    return result;
}

using wide_integer = unsigned __int128; // whose overflow is defined

template <typename Integer> Integer second_way_integer(op o, const std::vector<Integer> &inputs)
{
    if (o == MIN || o == MAX) {
        return o == MIN ? *std::min_element(inputs.begin(), inputs.end())
                        : *std::max_element(inputs.begin(), inputs.end());
    }
    Integer result = inputs[0];
    for (size_t rank = 1; rank < inputs.size(); rank++) {
        const wide_integer a = result, b = inputs[rank];
        result = (Integer)(o == PROD ? a * b : a + b); // wraps, at every step
    }
    return o == AVG ? (Integer)((__int128)result / (int)inputs.size()) : result;
}

template <typename Number> std::vector<Number> patterns_as(const std::vector<uint64_t> &patterns)
{
    std::vector<Number> numbers(patterns.size());
    for (size_t i = 0; i < patterns.size(); i++) {
        memcpy(&numbers[i], &patterns[i], sizeof(Number));
    }
    return numbers;
}

template <typename Integer> uint64_t expected_integer(op o, const std::vector<uint64_t> &inputs)
{
    return std::make_unsigned_t<Integer>(second_way_integer(o, patterns_as<Integer>(inputs)));
}

uint64_t expected(type t, op o, const std::vector<uint64_t> &inputs)
{
    switch (t) {
    case F32: {
        const float result = second_way<float, double>(o, patterns_as<float>(inputs));
        return isnan(result) ? 0x7fffffff : bits_of(result);
    }
    case F64: {
        const double result = second_way<double, quad>(o, patterns_as<double>(inputs));
        return isnan(result) ? 0x7fffffffffffffff : as<uint64_t>(result);
    }
    case I8:
        return expected_integer<int8_t>(o, inputs);
    case U8:
        return expected_integer<uint8_t>(o, inputs);
    case I32:
        return expected_integer<int32_t>(o, inputs);
    case U32:
        return expected_integer<uint32_t>(o, inputs);
    case I64:
        return expected_integer<int64_t>(o, inputs);
    case U64:
        return expected_integer<uint64_t>(o, inputs);
    default: {
        std::vector<float> wide; // the conversions have tests of their own
        for (uint64_t bits : inputs) {
            wide.push_back(lamprey_reference_widen(t, (uint16_t)bits));
        }
        return lamprey_reference_narrow(t, second_way<float, double>(o, wide));
    }
    }
}

// A pattern whose exponent is mostly near 1, so that results are numbers.
uint64_t random_pattern(type t, std::mt19937_64 &random)
{
    const uint64_t bits = random();
    if (random() % 8 != 0) {
        if (t == F32) {
            return (bits & 0x80ffffff) | 0x3f000000;
        }
        if (t == F64) {
            return (bits & 0x801fffffffffffff) | 0x3fe0000000000000;
        }
    }
    const size_t size = lamprey_reference_size(t);
    return size == 8 ? bits : bits & ((1ull << 8 * size) - 1);
}

TEST(Reference, AgreesWithASecondWayOnRandomPatterns)
{
    std::mt19937_64 random(2);
    for (type t : all_types) {
        for (op o : all_ops) {
            for (int nranks : {1, 2, 3, 5, 8, 72}) {
                for (int i = 0; i < 2000; i++) {
                    std::vector<uint64_t> inputs;
                    for (int rank = 0; rank < nranks; rank++) {
                        inputs.push_back(random_pattern(t, random));
                    }
                    ASSERT_EQ(reduce(t, o, inputs), expected(t, o, inputs))
                        << name(t) << " " << name(o) << " of " << nranks;
                }
            }
        }
    }
}

TEST(Reference, TreatsEveryElementAlike)
{
    std::mt19937_64 random(3);
    const size_t count = 37;
    const size_t offset = 1; // aligned to nothing
    for (type t : all_types) {
        for (op o : all_ops) {
            const size_t size = lamprey_reference_size(t);
            std::vector<std::vector<unsigned char>> buffers(3);
            for (auto &buffer : buffers) {
                for (size_t i = 0; i < offset + count * size; i++) {
                    buffer.push_back((unsigned char)random());
                }
            }
            const void *const inputs[] = {&buffers[0][offset], &buffers[1][offset],
                                          &buffers[2][offset]};
            std::vector<unsigned char> output(count * size + 2, 0xa5);
            lamprey_reference_all_reduce(t, o, 3, inputs, &output[1], count);
            for (size_t i = 0; i < count; i++) {
                std::vector<uint64_t> elements(3);
                for (size_t rank = 0; rank < 3; rank++) {
                    memcpy(&elements[rank], (const char *)inputs[rank] + i * size, size);
                }
                const uint64_t result = reduce(t, o, elements);
                ASSERT_EQ(memcmp(&output[1 + i * size], &result, size), 0) << name(t) << name(o);
            }
            ASSERT_EQ(output.front(), 0xa5);
            ASSERT_EQ(output.back(), 0xa5);

            for (auto &buffer : buffers) { // in place, on every rank
                const std::vector<unsigned char> before = buffer;
                lamprey_reference_all_reduce(t, o, 3, inputs, &buffer[offset], count);
                ASSERT_EQ(memcmp(&buffer[offset], &output[1], count * size), 0)
                    << name(t) << name(o);
                buffer = before;
            }
        }
    }
}

TEST(Reference, WritesNothingForNoElements)
{
    const uint64_t one = 1;
    const void *const inputs[] = {&one, &one};
    uint64_t output = 5;
    lamprey_reference_all_reduce(U64, SUM, 2, inputs, &output, 0);
    EXPECT_EQ(output, 5u);
}

} // namespace
