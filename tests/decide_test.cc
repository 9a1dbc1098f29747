// SPDX-License-Identifier: Apache-2.0
#include "plugin/decide.h"

#include <gtest/gtest.h>
#include <string.h>

#include <string>
#include <vector>

#include "kernels/protocol.h"

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
        record.resident_ctas = 1584;
        record.max_bytes = -1;
        record.max_ctas = 512;
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

TEST(Decide, ServesTwoToEightRanksOfOneSwitch)
{
    for (int n = 2; n <= 8; n++) {
        char reason[256] = "unset";
        const lamprey_agreed agreed = lamprey_agree(records(n).data(), n, reason, sizeof reason);
        EXPECT_TRUE(agreed.served) << reason;
        EXPECT_STREQ(reason, "");
        EXPECT_EQ(agreed.id, 1000u);
        EXPECT_EQ(agreed.lanes, n == 2 ? 512u : n <= 4 ? 256u : 128u);
        EXPECT_LE(lamprey_staging_bytes(n, agreed.lanes, agreed.lane_capacity), 16u << 20) << n;
        const lamprey_grid grid = lamprey_grid_of(agreed.max_bytes / 16, agreed.lanes);
        EXPECT_LE(grid.lane_vectors, agreed.lane_capacity);
    }
}

TEST(Decide, RefusesOneRankAndNine)
{
    EXPECT_NE(refusal(records(1)).find("1 ranks"), std::string::npos);
    EXPECT_NE(refusal(records(9)).find("9 ranks"), std::string::npos);
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
    all[1].resident_ctas = 200;
    char reason[256];
    EXPECT_EQ(lamprey_agree(all.data(), 2, reason, sizeof reason).lanes, 200u);

    all = records(4);
    for (int i = 0; i < 4; i++) {
        all[i].domain.pci_id = lamprey_pci_id(0, 0x10 + i % 2, 0, 0);
        all[i].domain.gpu_uuid[0] = (uint8_t)(i % 2 + 1);
        all[i].domain.share_gpu = 1;
        all[i].resident_ctas = 400;
    }
    EXPECT_EQ(lamprey_agree(all.data(), 4, reason, sizeof reason).lanes, 200u) << reason;
}

TEST(Decide, KeepsStagingUnderTheCap)
{
    auto all = records(8);
    for (lamprey_record &record : all) {
        record.max_bytes = 4 << 20;
    }
    char reason[256];
    const lamprey_agreed agreed = lamprey_agree(all.data(), 8, reason, sizeof reason);
    ASSERT_TRUE(agreed.served) << reason;
    EXPECT_LE(lamprey_staging_bytes(8, agreed.lanes, agreed.lane_capacity), 64u << 20);
    EXPECT_GE(agreed.max_bytes, 2u << 20);
    EXPECT_LE(lamprey_grid_of(agreed.max_bytes / 16, agreed.lanes).lane_vectors,
              agreed.lane_capacity);
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
    EXPECT_EQ(lamprey_decide(&agreed, 2048, ncclBfloat16, ncclSum), LAMPREY_SERVE);
    EXPECT_EQ(lamprey_decide(&agreed, 2049, ncclFloat16, ncclSum), LAMPREY_NOT_SIZE);
    EXPECT_EQ(lamprey_decide(&agreed, 1024, ncclFloat32, ncclSum), LAMPREY_SERVE);
    EXPECT_EQ(lamprey_decide(&agreed, SIZE_MAX, ncclFloat32, ncclSum), LAMPREY_NOT_SIZE);
    EXPECT_EQ(lamprey_decide(&agreed, SIZE_MAX / 2 + 2, ncclFloat16, ncclSum), LAMPREY_NOT_SIZE);
    EXPECT_EQ(lamprey_decide(&agreed, 0, ncclFloat32, ncclSum), LAMPREY_NOT_EMPTY);
    EXPECT_EQ(lamprey_decide(&agreed, 8, ncclFloat64, ncclSum), LAMPREY_NOT_TYPE);
    EXPECT_EQ(lamprey_decide(&agreed, 8, ncclInt32, ncclSum), LAMPREY_NOT_TYPE);
    EXPECT_EQ(lamprey_decide(&agreed, 8, (ncclDataType_t)99, ncclSum), LAMPREY_NOT_TYPE);
    EXPECT_EQ(lamprey_decide(&agreed, 8, ncclFloat32, ncclMax), LAMPREY_NOT_OPERATOR);
    EXPECT_EQ(lamprey_decide(&agreed, 8, ncclFloat32, (ncclRedOp_t)1000), LAMPREY_NOT_OPERATOR);
}

TEST(Decide, CoversEveryVectorWithItsGrid)
{
    for (uint64_t vectors = 1; vectors < 70000; vectors += vectors < 2000 ? 1 : 997) {
        for (uint32_t lanes : {1u, 2u, 7u, 132u, 512u}) {
            const lamprey_grid grid = lamprey_grid_of(vectors, lanes);
            ASSERT_LE(grid.ctas, lanes);
            ASSERT_GE((uint64_t)grid.ctas * grid.lane_vectors, vectors);
            ASSERT_LT((uint64_t)(grid.ctas - 1) * grid.lane_vectors, vectors) << "an empty lane";
            ASSERT_LE(grid.threads, (uint32_t)LAMPREY_CTA_THREADS);
            ASSERT_LE(grid.lane_vectors, lamprey_lane_capacity(vectors, lanes));
        }
    }
}

} // namespace
