// SPDX-License-Identifier: Apache-2.0
#include "plugin/decide.h"

#include <gtest/gtest.h>
#include <string.h>

#include <string>
#include <vector>

#include "kernels/instances.h"
#include "plugin/limits.h"

namespace {

std::vector<lamprey_record> records(int n)
{
    std::vector<lamprey_record> all(n);
    for (int i = 0; i < n; i++) {
        lamprey_record &record = all[i];
        memset(&record, 0, sizeof record);
        record.magic = LAMPREY_RECORD_MAGIC;
        record.version = LAMPREY_RECORD_VERSION;
        record.bytes = sizeof record;
        record.id = 1000 + i;
        record.rank = i;
        record.nranks = n;
        record.capability = 90;
        record.resident_ctas = 264;
        record.max_bytes = -1;
        record.max_ctas = 128;
        record.has_fp8 = 1;
        record.domain.links.kind = LAMPREY_NVLINK_SWITCH;
        record.domain.links.links_active = 18;
        record.domain.links.link_mbps = 26562;
        record.domain.pci_id = lamprey_pci_id(0, 0x10 + i, 0, 0);
        record.domain.host_id[0] = 1;
        record.domain.gpu_uuid[0] = (uint8_t)(i + 1);
        record.domain.pid = 100 + i;
    }
    return all;
}

std::string refusal(const std::vector<lamprey_record> &all)
{
    char reason[256] = "unset";
    const lamprey_agreed agreed = lamprey_agree(all.data(), (int)all.size(), reason, sizeof reason);
    EXPECT_FALSE(agreed.served);
    EXPECT_NE(std::string(reason), "");
    return reason;
}

TEST(Decide, ServesTwoToSeventyTwoRanksOfOneSwitch)
{
    for (int n = 2; n <= LAMPREY_MAX_RANKS; n++) {
        char reason[256] = "unset";
        const lamprey_agreed agreed = lamprey_agree(records(n).data(), n, reason, sizeof reason);
        ASSERT_TRUE(agreed.served) << reason;
        EXPECT_STREQ(reason, "");
        EXPECT_EQ(agreed.id, 1000u);
        EXPECT_EQ(agreed.nranks, (uint32_t)n);
        EXPECT_EQ(agreed.lanes, 128u);
        EXPECT_LE(lamprey_staging_bytes(agreed.lanes, agreed.slot_cells), 16u << 20) << n;
    }
}

TEST(Decide, SharesMemoryAcrossHostsOnlyWhereRanksAreOnSeveral)
{
    for (int n : {2, 8, LAMPREY_MAX_RANKS}) {
        auto all = records(n);
        char reason[256];
        for (lamprey_record &record : all) {
            record.domain.links.fabric_state = 3;
            record.domain.links.fabric_uuid[0] = 1;
        }
        EXPECT_FALSE(lamprey_agree(all.data(), n, reason, sizeof reason).across_hosts);
        all[n - 1].domain.host_id[0] = 2;
        const lamprey_agreed agreed = lamprey_agree(all.data(), n, reason, sizeof reason);
        EXPECT_TRUE(agreed.served) << reason;
        EXPECT_TRUE(agreed.across_hosts);
        EXPECT_EQ(agreed.lanes, 128u);
        all[n - 1].domain.links.fabric_clique = 2;
        EXPECT_NE(refusal(all).find("in different cliques (0, 2)"), std::string::npos);
    }
}

TEST(Decide, RefusesOneRankAndTooMany)
{
    EXPECT_NE(refusal(records(1)).find("1 ranks"), std::string::npos);
    EXPECT_NE(refusal(records(73)).find("73 ranks"), std::string::npos);
}

TEST(Decide, PassesOnARanksOwnReason)
{
    auto all = records(4);
    all[2].refuses = 1;
    strcpy(all[2].reason, "LAMPREY_DISABLE is set");
    EXPECT_EQ(refusal(all), "rank 2: LAMPREY_DISABLE is set");
}

TEST(Decide, RefusesDifferences)
{
    auto all = records(2);
    all[1].version++;
    EXPECT_NE(refusal(all).find("another version"), std::string::npos);
    all = records(2);
    all[1].magic = 0;
    EXPECT_NE(refusal(all).find("another version"), std::string::npos);
    all = records(2);
    all[1].max_bytes = 4096;
    EXPECT_NE(refusal(all).find("LAMPREY_MAX_BYTES"), std::string::npos);
    all = records(2);
    all[1].max_ctas = 16;
    EXPECT_NE(refusal(all).find("LAMPREY_MAX_CTAS"), std::string::npos);
    all = records(2);
    all[1].algorithm = LAMPREY_ALGORITHM_TWO_SHOT;
    EXPECT_NE(refusal(all).find("LAMPREY_ALGORITHM"), std::string::npos);
    all = records(2);
    all[1].capability = 100;
    EXPECT_NE(refusal(all).find("sm_100"), std::string::npos);
    all = records(2);
    all[1].domain.host_id[0] = 2;
    EXPECT_NE(refusal(all), "");
    all = records(3);
    all[1].domain.links.kind = LAMPREY_NVLINK_NONE;
    EXPECT_NE(refusal(all), "");
}

TEST(Decide, TakesTheSmallestGpuAndSharesIt)
{
    auto all = records(2);
    all[1].resident_ctas = 100;
    char reason[256];
    EXPECT_EQ(lamprey_agree(all.data(), 2, reason, sizeof reason).lanes, 50u);

    all = records(4);
    for (int i = 0; i < 4; i++) {
        all[i].domain.pci_id = lamprey_pci_id(0, 0x10 + i % 2, 0, 0);
        all[i].domain.gpu_uuid[0] = (uint8_t)(i % 2 + 1);
        all[i].domain.share_gpu = 1;
        all[i].resident_ctas = 132;
    }
    EXPECT_EQ(lamprey_agree(all.data(), 4, reason, sizeof reason).lanes, 33u) << reason;
}

TEST(Decide, KeepsStagingUnderTheCap)
{
    auto all = records(8);
    for (lamprey_record &record : all) {
        record.max_bytes = 64 << 20;
        record.max_ctas = 1024;
        record.resident_ctas = 4096;
    }
    char reason[256];
    const lamprey_agreed agreed = lamprey_agree(all.data(), 8, reason, sizeof reason);
    ASSERT_TRUE(agreed.served) << reason;
    EXPECT_LE(lamprey_staging_bytes(agreed.lanes, agreed.slot_cells), 64u << 20);
    EXPECT_GT(lamprey_staging_bytes(agreed.lanes, agreed.slot_cells), 63u << 20);
    EXPECT_EQ(agreed.max_bytes, 64u << 20);
}

TEST(Decide, TakesNoMoreLanesThanTheLargestMessageNeeds)
{
    auto all = records(2);
    all[0].max_bytes = all[1].max_bytes = 8192;
    char reason[256];
    const lamprey_agreed agreed = lamprey_agree(all.data(), 2, reason, sizeof reason);
    ASSERT_TRUE(agreed.served) << reason;
    EXPECT_EQ(agreed.lanes, 4u);
}

TEST(Decide, LooksAtVotesInRankOrder)
{
    lamprey_vote votes[3] = {};
    char reason[200];
    for (lamprey_vote &vote : votes) {
        vote.magic = LAMPREY_RECORD_MAGIC;
    }
    EXPECT_TRUE(lamprey_votes_pass(votes, 3, reason, sizeof reason));
    votes[1].refuses = 1;
    strcpy(votes[1].reason, "no staging memory");
    votes[2].refuses = 1;
    EXPECT_FALSE(lamprey_votes_pass(votes, 3, reason, sizeof reason));
    EXPECT_STREQ(reason, "rank 1: no staging memory");
}

TEST(Decide, DependsOnCountTypeAndOperatorAlone)
{
    lamprey_agreed agreed = {};
    agreed.served = true;
    agreed.max_bytes = 4096;
    agreed.max_integer_bytes = 1024;
    agreed.nranks = 2;
    EXPECT_EQ(lamprey_decide(&agreed, 2048, ncclBfloat16, ncclSum), LAMPREY_SERVE);
    EXPECT_EQ(lamprey_decide(&agreed, 2049, ncclFloat16, ncclSum), LAMPREY_NOT_SIZE);
    EXPECT_EQ(lamprey_decide(&agreed, 1024, ncclFloat32, ncclSum), LAMPREY_SERVE);
    EXPECT_EQ(lamprey_decide(&agreed, SIZE_MAX, ncclFloat32, ncclSum), LAMPREY_NOT_SIZE);
    EXPECT_EQ(lamprey_decide(&agreed, SIZE_MAX / 2 + 2, ncclFloat16, ncclSum), LAMPREY_NOT_SIZE);
    EXPECT_EQ(lamprey_decide(&agreed, 1024, ncclUint8, ncclSum), LAMPREY_SERVE);
    EXPECT_EQ(lamprey_decide(&agreed, 1025, ncclUint8, ncclSum), LAMPREY_NOT_SIZE);
    EXPECT_EQ(lamprey_decide(&agreed, 129, ncclInt64, ncclSum), LAMPREY_NOT_SIZE);
    EXPECT_EQ(lamprey_decide(&agreed, 0, ncclFloat32, ncclSum), LAMPREY_NOT_EMPTY);
    for (int type = ncclInt8; type <= ncclBfloat16; type++) {
        for (ncclRedOp_t op : {ncclSum, ncclProd, ncclMax, ncclMin, ncclAvg}) {
            EXPECT_EQ(lamprey_decide(&agreed, 8, (ncclDataType_t)type, op), LAMPREY_SERVE) << type;
        }
    }
    EXPECT_EQ(lamprey_decide(&agreed, 8, (ncclDataType_t)12, ncclSum), LAMPREY_NOT_TYPE);
    EXPECT_EQ(lamprey_decide(&agreed, 8, (ncclDataType_t)99, ncclSum), LAMPREY_NOT_TYPE);
    EXPECT_EQ(lamprey_decide(&agreed, 8, (ncclDataType_t)-1, ncclSum), LAMPREY_NOT_TYPE);
    EXPECT_EQ(lamprey_decide(&agreed, 8, ncclFloat32, (ncclRedOp_t)5), LAMPREY_NOT_OPERATOR);
    EXPECT_EQ(lamprey_decide(&agreed, 8, ncclFloat32, (ncclRedOp_t)1000), LAMPREY_NOT_OPERATOR);
}

TEST(Decide, SetsUpForWhatMayBeServedOnly)
{
    EXPECT_TRUE(lamprey_decide_setup(1, ncclInt8));
    EXPECT_TRUE(lamprey_decide_setup(16 << 20, ncclUint8));
    EXPECT_FALSE(lamprey_decide_setup((16 << 20) + 1, ncclUint8));
    EXPECT_TRUE(lamprey_decide_setup(2 << 20, ncclFloat64));
    EXPECT_FALSE(lamprey_decide_setup((2 << 20) + 1, ncclFloat64));
    EXPECT_FALSE(lamprey_decide_setup(SIZE_MAX, ncclFloat64));
    EXPECT_FALSE(lamprey_decide_setup(1, (ncclDataType_t)77));
}

TEST(Decide, LeavesFp8ToNcclWhereSomeRankCannot)
{
    auto all = records(3);
    char reason[256];
    for (uint32_t has : {1u, 0u}) {
        all[1].has_fp8 = has;
        const lamprey_agreed agreed = lamprey_agree(all.data(), 3, reason, sizeof reason);
        for (int type : {10, 11}) {
            EXPECT_EQ(lamprey_decide(&agreed, 8, (ncclDataType_t)type, ncclSum),
                      has ? LAMPREY_SERVE : LAMPREY_NOT_TYPE);
        }
    }
}

TEST(Decide, ChecksCallsWhereSomeRankAsks)
{
    auto all = records(3);
    char reason[256];
    EXPECT_FALSE(lamprey_agree(all.data(), 3, reason, sizeof reason).check);
    all[2].check = 1;
    EXPECT_TRUE(lamprey_agree(all.data(), 3, reason, sizeof reason).check);
}

std::string kernel_for(int nranks, lamprey_algorithm_choice choice, size_t count,
                       ncclDataType_t type, ncclRedOp_t op)
{
    auto all = records(nranks);
    for (lamprey_record &record : all) {
        record.algorithm = choice;
    }
    char reason[256];
    const lamprey_agreed agreed = lamprey_agree(all.data(), nranks, reason, sizeof reason);
    return lamprey_kernel_name(lamprey_way_of(&agreed, count, type, op).kernel);
}

TEST(Decide, ChoosesTheMostSpecialKernel)
{
    const auto automatic = LAMPREY_ALGORITHM_AUTO;
    EXPECT_EQ(kernel_for(2, automatic, 8, ncclBfloat16, ncclSum), "lamprey_one_shot_sum_bf16_2");
    EXPECT_EQ(kernel_for(2, automatic, 1 << 20, ncclFloat32, ncclSum),
              "lamprey_one_shot_sum_f32_2");
    EXPECT_EQ(kernel_for(2, automatic, 8, ncclBfloat16, ncclMax), "lamprey_one_shot_any_bf16_2");
    EXPECT_EQ(kernel_for(2, automatic, 8, ncclUint8, ncclSum), "lamprey_one_shot_any_i8_2");
    EXPECT_EQ(kernel_for(3, automatic, 8, ncclFloat16, ncclSum), "lamprey_one_shot_any_f16_n");
    EXPECT_EQ(kernel_for(8, automatic, 8, ncclFloat16, ncclSum), "lamprey_one_shot_sum_f16_8");
    EXPECT_EQ(kernel_for(8, automatic, 1 << 17, ncclFloat16, ncclSum),
              "lamprey_two_shot_sum_f16_8");
    EXPECT_EQ(kernel_for(72, automatic, 1 << 17, ncclInt64, ncclAvg), "lamprey_two_shot_any_i64_n");
    EXPECT_EQ(kernel_for(2, LAMPREY_ALGORITHM_TWO_SHOT, 8, ncclFloat64, ncclSum),
              "lamprey_two_shot_any_f64_n");
    EXPECT_EQ(kernel_for(8, LAMPREY_ALGORITHM_ONE_SHOT, 1 << 20, ncclFloat32, ncclSum),
              "lamprey_one_shot_sum_f32_8");
    /* An integer vector takes two cells. */
    EXPECT_EQ(kernel_for(8, automatic, 120 << 10, ncclInt8, ncclSum), "lamprey_two_shot_any_i8_n");
    EXPECT_EQ(kernel_for(8, automatic, 120 << 10, ncclFloat8e4m3, ncclSum),
              "lamprey_one_shot_any_e4m3_n");
    EXPECT_EQ(kernel_for(8, automatic, 70 << 10, ncclInt8, ncclSum), "lamprey_one_shot_any_i8_n");
}

TEST(Decide, HasAKernelForEveryCall)
{
    for (int algorithm = 0; algorithm < LAMPREY_ALGORITHMS; algorithm++) {
        for (int element = 0; element < LAMPREY_ELEMENTS; element++) {
            for (int op = LAMPREY_SUM; op <= LAMPREY_AVG; op++) {
                for (uint32_t nranks = 2; nranks <= LAMPREY_MAX_RANKS; nranks++) {
                    ASSERT_GE(lamprey_kernel_of((lamprey_algorithm)algorithm,
                                                (lamprey_element)element, (lamprey_operator)op,
                                                nranks),
                              0);
                }
            }
        }
    }
}

TEST(Decide, CoversEveryVectorWithItsPlan)
{
    for (int algorithm = 0; algorithm < LAMPREY_ALGORITHMS; algorithm++) {
        for (uint32_t nranks : {2u, 3u, 8u, 72u}) {
            for (uint64_t vectors = 1; vectors < 400000;
                 vectors += vectors < 2000 ? 1 : vectors / 50) {
                for (uint32_t lanes : {1u, 7u, 128u}) {
                    const uint32_t row =
                        lamprey_row_vectors((lamprey_algorithm)algorithm, nranks, 2048, 2);
                    const lamprey_plan plan =
                        lamprey_plan_of((lamprey_algorithm)algorithm, vectors, nranks, lanes, row);
                    const uint64_t shards = algorithm == LAMPREY_TWO_SHOT ? nranks : 1;
                    ASSERT_LE(plan.ctas, lanes);
                    ASSERT_GE(plan.threads, plan.lane_vectors);
                    ASSERT_LE(plan.threads,
                              lamprey_max_threads((lamprey_algorithm)algorithm, nranks));
                    ASSERT_LE(plan.lane_vectors, row);
                    ASSERT_GE(shards * plan.ctas * plan.lane_vectors * plan.rounds, vectors);
                    ASSERT_LT(shards * plan.ctas * plan.lane_vectors * (plan.rounds - 1), vectors)
                        << "an empty round";
                }
            }
        }
    }
}

} // namespace
