// SPDX-License-Identifier: Apache-2.0
// Holds the reference's sums over experts to NUMERICS.md: by numbers of which every sum is exact,
// by cases that show each rounding, and by a second way.
#include "kernels/fused_reference.h"

#include <gtest/gtest.h>

#include <math.h>

#include <random>
#include <vector>

#include "tests/reference.h"

namespace {

using lamprey_test::bytes;
using lamprey_test::data_kind;
using lamprey_test::element_type;
using lamprey_test::load_numbers;
using lamprey_test::make_data;
using lamprey_test::numbers;
using lamprey_test::store_numbers;

constexpr element_type F16 = LAMPREY_REFERENCE_F16;
constexpr element_type BF16 = LAMPREY_REFERENCE_BF16;
constexpr element_type F32 = LAMPREY_REFERENCE_F32;
const element_type all_types[] = {F16, BF16, F32};
const lamprey_reference_accumulation accumulations[] = {LAMPREY_REFERENCE_IN_F32,
                                                        LAMPREY_REFERENCE_IN_ELEMENT};

// Whole numbers from -limit to limit.
numbers whole_numbers(size_t count, int limit, unsigned seed)
{
    std::mt19937 random(seed);
    numbers values(count);
    for (float &value : values) {
        value = (float)((int)(random() % (unsigned)(2 * limit + 1)) - limit);
    }
    return values;
}

struct reduction {
    element_type type;
    lamprey_reference_accumulation accumulation;
    size_t tokens;
    size_t hidden;
    numbers scales;
    bytes expert_rows;
    bytes token_rows;

    bytes run() const
    {
        lamprey_reference_moe_reduction r = {};
        r.type = type;
        r.accumulation = accumulation;
        r.tokens = tokens;
        r.hidden = hidden;
        r.experts = scales.size() / tokens;
        r.scales = scales.data();
        r.expert_rows = expert_rows.data();
        r.token_rows = token_rows.empty() ? nullptr : token_rows.data();
        bytes output(tokens * hidden * lamprey_reference_size(type));
        lamprey_reference_moe_reduce(&r, output.data());
        return output;
    }
};

TEST(MoeReduction, AddsTheScaledRowsOfAllExperts)
{
    const size_t tokens = 5, hidden = 24, experts = 3;
    const numbers rows = whole_numbers(experts * tokens * hidden, 5, 1);
    const numbers own = whole_numbers(tokens * hidden, 5, 2);
    const numbers scales = whole_numbers(experts * tokens, 4, 3);
    for (element_type type : all_types) {
        for (auto accumulation : accumulations) {
            for (bool with_own : {true, false}) {
                const reduction r = {type,
                                     accumulation,
                                     tokens,
                                     hidden,
                                     scales,
                                     store_numbers(type, rows),
                                     with_own ? store_numbers(type, own) : bytes()};
                numbers expected;
                for (size_t token = 0; token < tokens; token++) {
                    for (size_t i = 0; i < hidden; i++) {
                        double sum = with_own ? own[token * hidden + i] : 0;
                        for (size_t expert = 0; expert < experts; expert++) {
                            sum += (double)scales[expert * tokens + token] *
                                   rows[(expert * tokens + token) * hidden + i];
                        }
                        expected.push_back((float)sum);
                    }
                }
                EXPECT_EQ(load_numbers(type, r.run()), expected) << type;
            }
        }
    }
}

TEST(MoeReduction, RoundsAtTheEndOrAtEachStep)
{
    const struct {
        numbers rows, scales;
        float own, in_f32, in_element;
    } cases[] = {
        // bf16 has 8 bits: above 256 the even numbers.
        {{256, 1, 1}, {1, 1, 1}, 0, 258, 256},
        {{129, 0, 0}, {3, 0, 0}, 1, 388, 388},  // 387 is tied, to 388, and 389 too
        {{129, 0, 0}, {3, 0, 0}, -1, 386, 388}, // 386, or 388 - 1 to 388 again
        {{256, 0, 0}, {1, 0, 0}, 1, 256, 256},
        {{1, 0, 0}, {1.001f, 0, 0}, 0, 1, 1},
        {{128, -128, 0}, {1.01f, 1, 0}, 0, 1.28125f, 1}, // the product, and 1.28 rounded
        {{3e38f, 3e38f, -3e38f}, {1, 1, 1}, 0, INFINITY, INFINITY},
        {{-0.0f, -0.0f, -0.0f}, {1, 1, 1}, -0.0f, 0, 0},
    };
    for (const auto &c : cases) {
        reduction r = {BF16,
                       LAMPREY_REFERENCE_IN_F32,
                       1,
                       1,
                       c.scales,
                       store_numbers(BF16, c.rows),
                       store_numbers(BF16, {c.own})};
        EXPECT_EQ(r.run(), store_numbers(BF16, {c.in_f32})) << c.rows[0];
        r.accumulation = LAMPREY_REFERENCE_IN_ELEMENT;
        EXPECT_EQ(r.run(), store_numbers(BF16, {c.in_element})) << c.rows[0];
    }
}

// Expert by expert over whole matrices, rounded by hand.
TEST(MoeReduction, HasTheBitsOfASecondWay)
{
    const size_t tokens = 3, hidden = 40, experts = 6, count = tokens * hidden;
    for (element_type type : all_types) {
        for (auto accumulation : accumulations) {
            const bool each = accumulation == LAMPREY_REFERENCE_IN_ELEMENT;
            const reduction r = {
                type,
                accumulation,
                tokens,
                hidden,
                load_numbers(F32, make_data(F32, experts * tokens, data_kind::numbers, 4)),
                make_data(type, experts * count, data_kind::numbers, 5),
                make_data(type, count, data_kind::numbers, 6)};
            const numbers rows = load_numbers(type, r.expert_rows);
            const numbers own = load_numbers(type, r.token_rows);
            numbers sums(count, 0);
            for (size_t expert = 0; expert < experts; expert++) {
                numbers scaled;
                for (size_t i = 0; i < count; i++) {
                    scaled.push_back(rows[expert * count + i] *
                                     r.scales[expert * tokens + i / hidden]);
                }
                scaled = each ? load_numbers(type, store_numbers(type, scaled)) : scaled;
                for (size_t i = 0; i < count; i++) {
                    sums[i] += scaled[i];
                }
                sums = each ? load_numbers(type, store_numbers(type, sums)) : sums;
            }
            for (size_t i = 0; i < count; i++) {
                sums[i] += own[i];
            }
            EXPECT_EQ(r.run(), store_numbers(type, sums)) << type << " " << each;
        }
    }
}

struct finalisation {
    element_type type;
    lamprey_reference_accumulation accumulation;
    size_t hidden;
    size_t top_k;
    std::vector<int32_t> row_of;
    bytes rows;
    element_type scale_type = F32;
    bytes scales = {};
    float routed_scale = 1;
    bytes shared = {};

    bytes run() const
    {
        lamprey_reference_moe_finalisation f = {};
        f.type = type;
        f.scale_type = scale_type;
        f.accumulation = accumulation;
        f.tokens = row_of.size() / top_k;
        f.hidden = hidden;
        f.top_k = top_k;
        f.rows = rows.data();
        f.row_of = row_of.data();
        f.scales = scales.empty() ? nullptr : scales.data();
        f.routed_scale = routed_scale;
        f.shared = shared.empty() ? nullptr : shared.data();
        bytes output(f.tokens * hidden * lamprey_reference_size(type));
        lamprey_reference_moe_finalise(&f, output.data());
        return output;
    }
};

TEST(MoeFinalisation, AddsTheChosenRows)
{
    const size_t tokens = 7, hidden = 24, top_k = 3, permuted = 30;
    const numbers rows = whole_numbers(permuted * hidden, 5, 1);
    const numbers shared = whole_numbers(tokens * hidden, 5, 2);
    const numbers scales = whole_numbers(tokens * top_k, 3, 3);
    std::vector<int32_t> row_of;
    for (size_t slot = 0; slot < tokens * top_k; slot++) {
        row_of.push_back(slot % 5 == 1 || slot / top_k == 4 ? -1 : (int32_t)(slot * 11 % permuted));
    }
    for (element_type type : all_types) {
        for (auto accumulation : accumulations) {
            for (int parts = 0; parts < 8; parts++) {
                finalisation f = {type,  accumulation, hidden,
                                  top_k, row_of,       store_numbers(type, rows)};
                f.scale_type = parts & 4 ? type : F32;
                f.scales = parts & 1 ? store_numbers(f.scale_type, scales) : bytes();
                f.shared = parts & 2 ? store_numbers(type, shared) : bytes();
                f.routed_scale = parts & 2 ? 2.0f : 1.0f;
                numbers expected;
                for (size_t token = 0; token < tokens; token++) {
                    for (size_t i = 0; i < hidden; i++) {
                        double sum = 0;
                        for (size_t slot = token * top_k; slot < (token + 1) * top_k; slot++) {
                            if (row_of[slot] != -1) {
                                sum += (double)(parts & 1 ? scales[slot] : 1) *
                                       rows[(size_t)row_of[slot] * hidden + i];
                            }
                        }
                        expected.push_back((float)(sum * f.routed_scale +
                                                   (parts & 2 ? shared[token * hidden + i] : 0)));
                    }
                }
                EXPECT_EQ(load_numbers(type, f.run()), expected) << type << " " << parts;
            }
        }
    }
}

TEST(MoeFinalisation, RoundsAtTheEndOrAtEachStep)
{
    const struct {
        numbers rows, scales;
        float routed, shared, in_f32, in_element;
    } cases[] = {
        {{256, 1, 1}, {1, 1, 1}, 1, 0, 258, 256},
        {{129, 0, 0}, {3, 1, 1}, 1, -1, 386, 388},
        {{128, 1, 0}, {1, 1, 1}, 3, -1, 386, 388}, // the routed scale's product
        {{128, -128, 0}, {1.01f, 1, 1}, 1, 0, 1.28125f, 1},
        {{256, 1, 0}, {1, 1, 1}, 0.5f, 0.5f, 129, 128}, // 257 / 2 + 1 / 2; 256 / 2 + 1 / 2 is tied
        {{INFINITY, 1, 1}, {1, 1, 1}, 0, 0, NAN, NAN},
    };
    for (const auto &c : cases) {
        finalisation f = {BF16,      LAMPREY_REFERENCE_IN_F32,   1, 3,
                          {0, 1, 2}, store_numbers(BF16, c.rows)};
        f.scales = store_numbers(F32, c.scales);
        f.routed_scale = c.routed;
        f.shared = store_numbers(BF16, {c.shared});
        EXPECT_EQ(f.run(), store_numbers(BF16, {c.in_f32})) << c.rows[0];
        f.accumulation = LAMPREY_REFERENCE_IN_ELEMENT;
        EXPECT_EQ(f.run(), store_numbers(BF16, {c.in_element})) << c.rows[0];
    }
}

TEST(MoeFinalisation, AddsInTheOrderOfTheSlots)
{
    finalisation f = {F32,       LAMPREY_REFERENCE_IN_F32,           1, 3,
                      {0, 1, 2}, store_numbers(F32, {0x1p24f, 1, 1})};
    EXPECT_EQ(f.run(), store_numbers(F32, {0x1p24f}));
    f.row_of = {2, 1, 0};
    EXPECT_EQ(f.run(), store_numbers(F32, {0x1p24f + 2}));
}

// A token whose experts are all elsewhere contributes +0.0, a skipped row's NaN nothing.
TEST(MoeFinalisation, SkipsRowsThatAreNotHere)
{
    finalisation f = {BF16, LAMPREY_REFERENCE_IN_F32, 2,
                      2,    {-1, -1, 1, -1},          store_numbers(BF16, {NAN, NAN, 3, -0.0f})};
    EXPECT_EQ(f.run(), store_numbers(BF16, {0, 0, 3, 0}));
    f.scales = store_numbers(F32, {NAN, NAN, 2, NAN});
    EXPECT_EQ(f.run(), store_numbers(BF16, {0, 0, 6, 0}));
}

} // namespace
