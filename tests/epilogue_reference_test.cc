// SPDX-License-Identifier: Apache-2.0
// A fused all-reduce's outputs have the bits of NUMERICS.md whichever of them are asked for, with
// whatever rows beside them, and in place.
#include "kernels/fused_reference.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/fused_call.h"

namespace {

using lamprey_test::bytes;
using lamprey_test::call;
using lamprey_test::data_kind;
using lamprey_test::element_type;
using lamprey_test::load_numbers;
using lamprey_test::numbers;
using lamprey_test::random_call;

const element_type all_types[] = {LAMPREY_REFERENCE_F16, LAMPREY_REFERENCE_BF16,
                                  LAMPREY_REFERENCE_F32};

const lamprey_reference_quantisation quantisations[] = {
    {LAMPREY_REFERENCE_UNQUANTISED, 0, 0, LAMPREY_REFERENCE_LINEAR},
    {LAMPREY_REFERENCE_FP8, 0.37f, 0, LAMPREY_REFERENCE_LINEAR},
    {LAMPREY_REFERENCE_FP8_TOKEN, 0, 0, LAMPREY_REFERENCE_LINEAR},
    {LAMPREY_REFERENCE_FP8_GROUP, 0, 64, LAMPREY_REFERENCE_LINEAR},
    {LAMPREY_REFERENCE_NVFP4, 300, 0, LAMPREY_REFERENCE_128X4},
    {LAMPREY_REFERENCE_NVFP4, 300, 0, LAMPREY_REFERENCE_8X4},
    {LAMPREY_REFERENCE_NVFP4, 300, 0, LAMPREY_REFERENCE_LINEAR},
};

TEST(Epilogue, GivesEachOutputTheSameBitsWhateverElseIsAskedFor)
{
    for (element_type type : all_types) {
        for (const auto &quantisation : quantisations) {
            call all = random_call(type, {5, 448}, type, data_kind::numbers);
            all.quantisation = quantisation;
            all.run();
            for (int outputs = 0; outputs < 4; outputs++) {
                call some = all;
                some.residual_out.assign(outputs & 1 ? all.residual_out.size() : 0, 0xaa);
                some.norm_out.assign(outputs & 2 ? all.norm_out.size() : 0, 0xaa);
                some.run();
                EXPECT_EQ(some.residual_out, outputs & 1 ? all.residual_out : bytes());
                EXPECT_EQ(some.norm_out, outputs & 2 ? all.norm_out : bytes());
                EXPECT_EQ(some.codes, all.codes);
                EXPECT_EQ(some.scales, all.scales);
            }
        }
    }
}

TEST(Epilogue, QuantisesTheRoundedNormOrElseTheResidual)
{
    for (element_type type : all_types) {
        for (const auto &quantisation : quantisations) {
            for (bool norm : {true, false}) {
                call c = random_call(type, {3, 448}, type, data_kind::numbers);
                c.norm = norm;
                c.quantisation = quantisation;
                c.run();
                const numbers rows = load_numbers(type, norm ? c.norm_out : c.residual_out);
                bytes codes(c.codes.size(), 0xaa);
                bytes scales(c.scales.size(), 0xaa);
                for (size_t row = 0; row < 3; row++) {
                    lamprey_reference_quantise_row(&quantisation, 3, 448, row, &rows[row * 448],
                                                   codes.data(), scales.data());
                }
                EXPECT_EQ(c.codes, codes);
                EXPECT_EQ(c.scales, scales);
            }
        }
    }
}

// Without the padding, column by column.
bytes scales_of(const call &c, size_t row)
{
    const lamprey_reference_quantisation &q = c.quantisation;
    bytes scales;
    switch (q.format) {
    case LAMPREY_REFERENCE_FP8_TOKEN:
        scales.assign(&c.scales[row * 4], &c.scales[row * 4] + 4);
        break;
    case LAMPREY_REFERENCE_FP8_GROUP:
        for (size_t group = 0; group < c.hidden / q.group; group++) {
            const size_t stride = (c.tokens + 3) / 4 * 4;
            scales.push_back(c.scales[(group / 4 * stride + row) * 4 + group % 4]);
        }
        break;
    case LAMPREY_REFERENCE_NVFP4:
        for (size_t column = 0; column < c.hidden / 16; column++) {
            scales.push_back(
                c.scales[lamprey_reference_fp4_scale_index(q.layout, c.hidden / 16, row, column)]);
        }
        break;
    default:
        break;
    }
    return scales;
}

TEST(Epilogue, GivesARowTheSameBitsInEveryBatch)
{
    const size_t tokens = 9;
    for (element_type type : all_types) {
        for (const auto &quantisation : quantisations) {
            call batch = random_call(type, {tokens, 448}, type, data_kind::numbers);
            batch.quantisation = quantisation;
            batch.run();
            for (size_t row = 0; row < tokens; row++) {
                const auto part = [&](const bytes &rows) {
                    const long size = (long)(rows.size() / tokens);
                    return bytes(rows.begin() + (long)row * size,
                                 rows.begin() + (long)(row + 1) * size);
                };
                call single = batch;
                single.tokens = 1;
                single.sum = part(batch.sum);
                single.residual = part(batch.residual);
                single.residual_out = bytes(single.sum.size());
                single.norm_out = bytes(single.sum.size());
                single.run();
                EXPECT_EQ(single.residual_out, part(batch.residual_out));
                EXPECT_EQ(single.norm_out, part(batch.norm_out));
                EXPECT_EQ(single.codes, part(batch.codes));
                EXPECT_EQ(scales_of(single, 0), scales_of(batch, row));
            }
        }
    }
}

TEST(Epilogue, WorksInPlace)
{
    for (element_type type : all_types) {
        call apart = random_call(type, {3, 200}, type, data_kind::numbers);
        apart.run();
        call in_place = random_call(type, {3, 200}, type, data_kind::numbers);
        lamprey_reference_epilogue e = in_place.epilogue();
        e.residual_out = in_place.residual.data();
        e.norm_out = in_place.sum.data();
        lamprey_reference_finish_rows(&e);
        EXPECT_EQ(in_place.residual, apart.residual_out);
        EXPECT_EQ(in_place.sum, apart.norm_out);
    }
}

} // namespace
