// SPDX-License-Identifier: Apache-2.0
#include "tests/programs/reference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

float FromBf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// Round to nearest even by adding just under half a unit, as hardware does for finite numbers.
uint16_t ToBf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <typename T>
std::vector<T> Input(size_t count, ncclDataType_t type, ncclRedOp_t op, int rank, int nranks) {
    std::vector<T> data(count);
    reference_fill(data.data(), 0, count, type, op, 7, rank, nranks);
    return data;
}

TEST(Reference, Bf16SumIsFp32InRankOrderRoundedOnce) {
    const size_t count = 5000;
    const int nranks = 5;
    std::vector<uint16_t> result(count);
    std::vector<float> sum(count, 0.0f);
    for (int rank = 0; rank < nranks; rank++) {
        auto input = Input<uint16_t>(count, ncclBfloat16, ncclSum, rank, nranks);
        for (size_t i = 0; i < count; i++) {
            sum[i] = rank == 0 ? FromBf16(input[i]) : sum[i] + FromBf16(input[i]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        result[i] = ToBf16(sum[i]);
    }
    EXPECT_EQ(reference_check(result.data(), 0, count, ncclBfloat16, ncclSum, 7, nranks, 1, "test"), 0u);
}

TEST(Reference, FindsEveryWrongElementWhenExact) {
    const size_t count = 300;
    auto data = Input<uint16_t>(count, ncclBfloat16, ncclSum, 0, 1);
    EXPECT_EQ(reference_check(data.data(), 0, count, ncclBfloat16, ncclSum, 7, 1, 1, "test"), 0u);
    data[0] ^= 1;
    data[299] ^= 1;
    EXPECT_EQ(reference_check(data.data(), 0, count, ncclBfloat16, ncclSum, 7, 1, 1, "test"), 2u);
}

TEST(Reference, ToleranceCatchesAMissingRank) {
    const size_t count = 1000;
    auto first = Input<float>(count, ncclFloat32, ncclSum, 0, 2);
    size_t wrong = reference_check(first.data(), 0, count, ncclFloat32, ncclSum, 7, 2, 0, "test");
    EXPECT_GT(wrong, count * 9 / 10);
}

TEST(Reference, ToleranceAllowsRoundingAfterEveryAddition) {
    const size_t count = 5000;
    const int nranks = 8;
    std::vector<uint16_t> result = Input<uint16_t>(count, ncclBfloat16, ncclSum, nranks - 1, nranks);
    for (int rank = nranks - 2; rank >= 0; rank--) {
        auto input = Input<uint16_t>(count, ncclBfloat16, ncclSum, rank, nranks);
        for (size_t i = 0; i < count; i++) {
            result[i] = ToBf16(FromBf16(result[i]) + FromBf16(input[i]));
        }
    }
    EXPECT_EQ(reference_check(result.data(), 0, count, ncclBfloat16, ncclSum, 7, nranks, 0, "test"), 0u);
    EXPECT_GT(reference_check(result.data(), 0, count, ncclBfloat16, ncclSum, 7, nranks, 1, "test"), 0u);
}

// GCC has _Float16 in C++ from 12 on, for processors other than x86 from 13 on.
#if defined(__FLT16_MAX__) && (defined(__x86_64__) || __GNUC__ >= 13)
TEST(Reference, HalfMatchesTheCompilersConversions) {
    const size_t count = 3000;
    auto a = Input<_Float16>(count, ncclFloat16, ncclProd, 0, 2);
    auto b = Input<_Float16>(count, ncclFloat16, ncclProd, 1, 2);
    for (size_t i = 0; i < count; i++) {
        a[i] = (_Float16)((float)a[i] * (float)b[i]);
    }
    EXPECT_EQ(reference_check(a.data(), 0, count, ncclFloat16, ncclProd, 7, 2, 1, "test"), 0u);
}
#endif

TEST(Reference, DoubleSumIsExact) {
    const size_t count = 1000;
    auto a = Input<double>(count, ncclFloat64, ncclSum, 0, 2);
    auto b = Input<double>(count, ncclFloat64, ncclSum, 1, 2);
    for (size_t i = 0; i < count; i++) {
        a[i] += b[i];
    }
    EXPECT_EQ(reference_check(a.data(), 0, count, ncclFloat64, ncclSum, 7, 2, 1, "test"), 0u);
}

TEST(Reference, SignedMinimumAndWrappingProduct) {
    const size_t count = 1000;
    auto a = Input<int8_t>(count, ncclInt8, ncclMin, 0, 2);
    auto b = Input<int8_t>(count, ncclInt8, ncclMin, 1, 2);
    std::vector<int8_t> least(count);
    std::vector<int8_t> product(count);
    for (size_t i = 0; i < count; i++) {
        least[i] = std::min(a[i], b[i]);
        product[i] = (int8_t)(a[i] * b[i]);
    }
    EXPECT_EQ(reference_check(least.data(), 0, count, ncclInt8, ncclMin, 7, 2, 0, "test"), 0u);
    EXPECT_EQ(reference_check(product.data(), 0, count, ncclInt8, ncclProd, 7, 2, 0, "test"), 0u);
    EXPECT_GT(reference_check(product.data(), 0, count, ncclInt8, ncclMin, 7, 2, 0, "test"), 0u);
}

TEST(Reference, NaNIsNeverGood) {
    uint16_t nan = 0x7fff;
    EXPECT_EQ(reference_check(&nan, 0, 1, ncclBfloat16, ncclSum, 7, 4, 0, "test"), 1u);
}

} // namespace
