// SPDX-License-Identifier: Apache-2.0
#include "topology/domain.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

namespace {

using Records = std::vector<lamprey_domain_record>;

constexpr uint32_t kFabricUp = 3;

uint64_t pci(size_t gpu)
{
    return lamprey_pci_id(0, 0x10 + static_cast<uint32_t>(gpu), 0, 0);
}

lamprey_domain_record switched(size_t gpu, uint8_t host = 1)
{
    lamprey_domain_record record = {};
    record.links.kind = LAMPREY_NVLINK_SWITCH;
    record.links.links_active = 18;
    record.links.link_mbps = 26562;
    record.links.fabric_state = kFabricUp;
    record.pci_id = pci(gpu);
    record.host_id[0] = host;
    record.gpu_uuid[0] = host;
    record.gpu_uuid[1] = static_cast<uint8_t>(gpu + 1);
    record.pid = static_cast<uint32_t>(100 * host + gpu);
    return record;
}

lamprey_domain_record direct(size_t gpu, const std::vector<size_t> &peers)
{
    lamprey_domain_record record = switched(gpu);
    record.links.kind = LAMPREY_NVLINK_DIRECT;
    record.links.fabric_state = 0;
    for (size_t peer : peers) {
        record.links.peers[record.links.peer_count++] = pci(peer);
    }
    return record;
}

lamprey_domain_record clustered(size_t gpu, uint8_t host)
{
    lamprey_domain_record record = switched(gpu, host);
    record.links.fabric_uuid[3] = 0xc5;
    record.links.fabric_clique = 4026;
    record.links.fabric_health = 0xaa;
    return record;
}

Records all_switched(size_t n)
{
    Records records;
    for (size_t i = 0; i < n; i++) {
        records.push_back(switched(i));
    }
    return records;
}

/* Two hosts of two GPUs in one cluster. */
Records two_trays()
{
    return {clustered(0, 1), clustered(1, 1), clustered(0, 2), clustered(1, 2)};
}

struct Decision {
    lamprey_domain domain;
    std::string reason;
};

Decision decide(const Records &records)
{
    char reason[512];
    std::memset(reason, 'x', sizeof(reason));
    lamprey_domain domain =
        lamprey_domain_decide(records.data(), records.size(), reason, sizeof(reason));
    return {domain, reason};
}

void expect_domain(lamprey_domain domain, const Records &records)
{
    Decision decision = decide(records);
    EXPECT_EQ(domain, decision.domain) << decision.reason;
    EXPECT_EQ("", decision.reason);
}

void expect_refused(const Records &records, const std::string &reason)
{
    Decision decision = decide(records);
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, decision.domain);
    EXPECT_EQ(reason, decision.reason);
}

TEST(DomainTest, AcceptsSwitchedGpusOfOneHost)
{
    for (size_t n : {2, 3, 4, 8, 16, 72}) {
        expect_domain(LAMPREY_DOMAIN_HOST, all_switched(n));
    }
}

TEST(DomainTest, AcceptsOneRankWhateverItsLinks)
{
    Records records = {lamprey_domain_record{}};
    expect_domain(LAMPREY_DOMAIN_HOST, records);
}

TEST(DomainTest, RefusesWithoutRecords)
{
    char reason[64];
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, lamprey_domain_decide(nullptr, 2, reason, sizeof(reason)));
    EXPECT_STREQ("no records", reason);
    Records records = all_switched(2);
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, lamprey_domain_decide(records.data(), 0, reason, 64));
    EXPECT_STREQ("no records", reason);
}

TEST(DomainTest, NeedsNoRoomForAReason)
{
    Records records = all_switched(2);
    records[1].links.kind = LAMPREY_NVLINK_NONE;
    char reason[8];
    std::memset(reason, 'x', sizeof(reason));
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, lamprey_domain_decide(records.data(), 2, nullptr, 0));
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, lamprey_domain_decide(records.data(), 2, nullptr, 100));
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, lamprey_domain_decide(records.data(), 2, reason, 0));
    EXPECT_EQ('x', reason[0]);
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, lamprey_domain_decide(records.data(), 2, reason, 5));
    EXPECT_STREQ("rank", reason);
    EXPECT_EQ('x', reason[5]);
}

TEST(DomainTest, RefusesRecordsThatMakeNoSense)
{
    Records records = all_switched(3);
    records[2].links.kind = LAMPREY_NVLINK_SWITCH + 1;
    expect_refused(records, "rank 2's record makes no sense (NVLink kind 4, 0 peers)");
    records = all_switched(3);
    records[1].links.peer_count = LAMPREY_TOPOLOGY_MAX_PEERS + 1;
    expect_refused(records, "rank 1's record makes no sense (NVLink kind 3, 19 peers)");
}

TEST(DomainTest, RefusesUnknownAndMissingLinks)
{
    Records records = all_switched(3);
    records[1].links.kind = LAMPREY_NVLINK_UNKNOWN;
    expect_refused(records, "nothing is known of the NVLinks of rank 1's GPU");
    records[1].links.kind = LAMPREY_NVLINK_NONE;
    expect_refused(records, "rank 1's GPU has no active NVLink");
}

TEST(DomainTest, RefusesMigEvenInAFabric)
{
    Records records = two_trays();
    records[3].links.mig = 1;
    expect_refused(records, "rank 3's GPU is in MIG mode, which has no NVLink");
    records = all_switched(1);
    records[0].links.mig = 1;
    expect_refused(records, "rank 0's GPU is in MIG mode, which has no NVLink");
}

TEST(DomainTest, RefusesOneGpuTwice)
{
    Records records = all_switched(4);
    records[3].gpu_uuid[1] = records[1].gpu_uuid[1];
    expect_refused(records, "ranks 1 (pid 101) and 3 (pid 103) use the same GPU 0000:11:00.0");
}

TEST(DomainTest, RefusesOneGpuTwiceByPciIdWhereUuidsAreUnknown)
{
    Records records = all_switched(3);
    std::memset(records[2].gpu_uuid, 0, sizeof(records[2].gpu_uuid));
    expect_domain(LAMPREY_DOMAIN_HOST, records);
    records[2].pci_id = records[0].pci_id;
    expect_refused(records, "ranks 0 (pid 100) and 2 (pid 102) use the same GPU 0000:10:00.0");
}

TEST(DomainTest, PciIdsOfDifferentHostsAreDifferentGpus)
{
    Records records = two_trays();
    for (lamprey_domain_record &record : records) {
        std::memset(record.gpu_uuid, 0, sizeof(record.gpu_uuid));
    }
    expect_domain(LAMPREY_DOMAIN_FABRIC, records);
}

TEST(DomainTest, AcceptsASharedGpuOnlyWhenAllRanksDo)
{
    Records records = all_switched(3);
    records[2].gpu_uuid[1] = records[0].gpu_uuid[1];
    records[2].pci_id = records[0].pci_id;
    records[0].share_gpu = 1;
    records[2].share_gpu = 1;
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, decide(records).domain);
    records[1].share_gpu = 1;
    expect_domain(LAMPREY_DOMAIN_HOST, records);
}

TEST(DomainTest, RanksOnOneSharedGpuNeedNoLinks)
{
    Records records(2, lamprey_domain_record{});
    for (lamprey_domain_record &record : records) {
        record.host_id[0] = 1;
        record.gpu_uuid[0] = 1;
        record.share_gpu = 1;
    }
    expect_domain(LAMPREY_DOMAIN_HOST, records);
    records.push_back(records[0]);
    records[2].gpu_uuid[0] = 2;
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, decide(records).domain);
}

TEST(DomainTest, RefusesDifferentAndUnknownHosts)
{
    Records records = all_switched(3);
    records[2].host_id[15] = 9;
    expect_refused(records, "ranks 0 and 2 are on different hosts; rank 0's GPU belongs to no "
                            "NVLink cluster");
    records = all_switched(3);
    for (lamprey_domain_record &record : records) {
        std::memset(record.host_id, 0, sizeof(record.host_id));
    }
    expect_refused(records,
                   "rank 0 does not know its host; rank 0's GPU belongs to no NVLink cluster");
}

TEST(DomainTest, DirectLinksNeedBothDirections)
{
    Records records = {direct(0, {1, 2}), direct(1, {0, 2}), direct(2, {0, 1})};
    expect_domain(LAMPREY_DOMAIN_HOST, records);
    records[2] = direct(2, {0});
    expect_refused(records, "no NVLink between rank 1's GPU 0000:11:00.0 and rank 2's GPU "
                            "0000:12:00.0");
    records[2] = direct(2, {0, 1});
    records[1] = direct(1, {0});
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, decide(records).domain);
}

TEST(DomainTest, DirectLinksMustJoinEveryPair)
{
    Records ring = {direct(0, {1, 3}), direct(1, {0, 2}), direct(2, {1, 3}), direct(3, {2, 0})};
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, decide(ring).domain);
    EXPECT_EQ(0u, decide(ring).reason.find("no NVLink between rank 0's GPU"));
}

TEST(DomainTest, AListOfPeersMeetsSwitchesByConsent)
{
    /* GPUs 0 and 1 are ruled out for each other on a machine of switches. */
    Records records = {direct(0, {2, 3}), switched(2), switched(3)};
    expect_domain(LAMPREY_DOMAIN_HOST, records);
    records = {direct(0, {2, 3}), direct(1, {2, 3}), switched(2)};
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, decide(records).domain);
    /* A bridged GPU doesn't know the one on switches. */
    records = {direct(0, {1}), switched(2)};
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, decide(records).domain);
}

TEST(DomainTest, SwitchesCarryNothingBeforeTheFabricIsUp)
{
    struct {
        uint32_t state;
        uint32_t status;
        lamprey_domain domain;
        const char *reason;
    } cases[] = {
        {0, 0, LAMPREY_DOMAIN_HOST, ""},
        {0, 7, LAMPREY_DOMAIN_HOST, ""},
        {1, 0, LAMPREY_DOMAIN_NONE, "the NVLink fabric of rank 1's GPU is not up (state 1)"},
        {2, 0, LAMPREY_DOMAIN_NONE, "the NVLink fabric of rank 1's GPU is not up (state 2)"},
        {3, 0, LAMPREY_DOMAIN_HOST, ""},
        {3, 7, LAMPREY_DOMAIN_NONE, "the NVLink fabric refused rank 1's GPU (status 7)"},
        {9, 0, LAMPREY_DOMAIN_NONE, "the NVLink fabric of rank 1's GPU is not up (state 9)"},
    };
    for (const auto &c : cases) {
        Records records = all_switched(2);
        records[1].links.fabric_state = c.state;
        records[1].links.fabric_status = c.status;
        Decision decision = decide(records);
        EXPECT_EQ(c.domain, decision.domain) << "state " << c.state << " status " << c.status;
        EXPECT_EQ(0u, decision.reason.find(c.reason)) << decision.reason;
    }
}

TEST(DomainTest, AcceptsOneCliqueOverHosts)
{
    expect_domain(LAMPREY_DOMAIN_FABRIC, two_trays());
}

TEST(DomainTest, PrefersTheHost)
{
    Records records = {clustered(0, 1), clustered(1, 1)};
    expect_domain(LAMPREY_DOMAIN_HOST, records);
    records[1].fabric_off = 1;
    expect_domain(LAMPREY_DOMAIN_HOST, records);
}

TEST(DomainTest, AFabricJoinsOneHostWhoseLinksAreUnknown)
{
    Records records = {clustered(0, 1), clustered(1, 1)};
    records[0].links.kind = LAMPREY_NVLINK_UNKNOWN;
    expect_domain(LAMPREY_DOMAIN_FABRIC, records);
}

TEST(DomainTest, RefusesFabricsThatDiffer)
{
    const std::string hosts = "ranks 0 and 2 are on different hosts; ";
    Records records = two_trays();
    records[2].links.fabric_uuid[15] = 1;
    expect_refused(records, hosts + "ranks 0 and 2 are in different NVLink clusters");
    records = two_trays();
    records[3].links.fabric_clique = 4027;
    expect_refused(records, hosts + "ranks 0 and 3 are in different cliques (4026, 4027)");
    records = two_trays();
    std::memset(records[1].links.fabric_uuid, 0, 16);
    expect_refused(records, hosts + "rank 1's GPU belongs to no NVLink cluster");
    records = two_trays();
    records[1].links.fabric_state = 2;
    expect_refused(records, hosts + "rank 1's GPU is not registered with a fabric (state 2)");
    records = two_trays();
    records[2].links.fabric_status = 999;
    expect_refused(records, hosts + "the fabric refused rank 2's GPU (status 999)");
    records = two_trays();
    records[3].fabric_off = 1;
    expect_refused(records, hosts + "rank 3 keeps to its host (NCCL_MNNVL_ENABLE=0)");
}

TEST(DomainTest, RefusesPartitionsOfOneHost)
{
    Records records = {clustered(0, 1), clustered(1, 1)};
    EXPECT_EQ(LAMPREY_DOMAIN_HOST, decide(records).domain);
    records[1].links.fabric_clique++;
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, decide(records).domain);
    records = {clustered(0, 1), clustered(1, 1)};
    records[0].links.fabric_uuid[15] ^= 1;
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, decide(records).domain);
}

TEST(DomainTest, RefusesAnUnhealthyFabricOnOneHostToo)
{
    Records records = {clustered(0, 1), clustered(1, 1)};
    records[1].links.fabric_health = 0xa6;
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, decide(records).domain);
}

TEST(DomainTest, ReadsHealthByFields)
{
    struct {
        uint32_t mask;
        bool healthy;
    } cases[] = {
        {0x000, true},  {0xaa, true},   {0x02, true},   {0x80, true},   {0x1aa, true},
        {0x100, true},  {0x01, false},  {0xa9, false},  {0xa6, false},  {0x9a, false},
        {0x6a, false},  {0xba, false},  {0x1a9, false}, {0x2aa, false}, {0x4aa, false},
        {0x7aa, false}, {0xfaa, false}, {0x11aa, true}, {0x21aa, true},
    };
    for (const auto &c : cases) {
        Records records = two_trays();
        records[3].links.fabric_health = c.mask;
        EXPECT_EQ(c.healthy ? LAMPREY_DOMAIN_FABRIC : LAMPREY_DOMAIN_NONE, decide(records).domain)
            << std::hex << c.mask;
    }
}

TEST(DomainTest, GivesTheSameAnswerForAnyOrderOfRanks)
{
    Records records = {direct(0, {1, 2}), direct(1, {0, 2}), direct(2, {0})};
    for (int turn = 0; turn < 3; turn++) {
        EXPECT_EQ(LAMPREY_DOMAIN_NONE, decide(records).domain);
        records.insert(records.begin(), records.back());
        records.pop_back();
    }
}

TEST(DomainTest, AnswersForThousandsOfRanksAtOnce)
{
    Records records;
    for (size_t rank = 0; rank < 20000; rank++) {
        records.push_back(switched(rank % 8, 0));
        std::memcpy(records.back().host_id, &rank, sizeof(rank));
        records.back().host_id[15] = 1;
    }
    EXPECT_EQ(LAMPREY_DOMAIN_NONE, decide(records).domain);
}

TEST(DomainTest, NamesDomains)
{
    EXPECT_STREQ("none", lamprey_domain_name(LAMPREY_DOMAIN_NONE));
    EXPECT_STREQ("host", lamprey_domain_name(LAMPREY_DOMAIN_HOST));
    EXPECT_STREQ("fabric", lamprey_domain_name(LAMPREY_DOMAIN_FABRIC));
    EXPECT_STREQ("invalid", lamprey_domain_name(static_cast<lamprey_domain>(7)));
}

} // namespace
