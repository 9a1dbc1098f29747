// SPDX-License-Identifier: Apache-2.0
// What the probe asks of NVML, and what it then writes into the tree.
#include "topology/annotate.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/fixtures/fake_nvml_table.h"
#include "tests/fixtures/machine_tables.h"
#include "topology/attributes.h"

namespace {

using namespace lamprey;

TEST_F(AnnotateTest, WritesTheMeasuredMachineAsItsFixture)
{
    describe(two_h200());
    expect_equal(*load_fixture("hgx-h200-vm-2"), *annotated("hgx-h200-vm-2"));
}

/* Every machine that a fake NVML can tell of, and then through XML and back. */
class AnnotateMachineTest : public AnnotateTest,
                            public testing::WithParamInterface<lamprey::MachineRow> {};

TEST_P(AnnotateMachineTest, WritesTheFixture)
{
    const lamprey::MachineRow &row = GetParam();
    if (row.far_end == "-") {
        return;
    }
    Machine want = load_fixture(row.name);
    describe(tell(*want, row.far_end));
    expect_equal(*want, *annotated(row.name));
}

TEST_P(AnnotateMachineTest, SurvivesExportAndImport)
{
    const lamprey::MachineRow &row = GetParam();
    if (row.far_end == "-") {
        return;
    }
    describe(tell(*load_fixture(row.name), row.far_end));
    Tree tree = bare_tree(row.name);
    ASSERT_EQ(0, annotate(tree)) << reason_.text();
    std::string xml = export_xml(tree);
    Tree imported = tree_of(xml);
    expect_equal(*read_tree(tree.get()), *read_tree(imported.get()));
    EXPECT_EQ(xml, export_xml(imported));
    EXPECT_FALSE(lamprey_annotate_wanted(imported.get()));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, AnnotateMachineTest, testing::ValuesIn(lamprey::machine_rows()),
                         [](const testing::TestParamInfo<lamprey::MachineRow> &info) {
                             std::string name = info.param.name;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

template <typename Work> std::chrono::duration<double, std::milli> time_of(Work &&work)
{
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::steady_clock::now() - start;
}

/* What a process pays once beside hwloc's own load: annotating, making the tables, for a file
 * looking it over first, and for NVML's answers, of which there must be few. The best of some tries
 * counts, since the machine may be busy. */
TEST_F(AnnotateTest, CostsLittleBesideHwloc)
{
    for (const char *name : {"hgx-h100-8", "dgx-2-16"}) {
        std::chrono::duration<double, std::milli> annotating(1e9);
        std::chrono::duration<double, std::milli> hwloc(1e9);
        std::chrono::duration<double, std::milli> reading(1e9);
        describe(tell(*load_fixture(name), "0000:05:00.0"));
        for (int i = 0; i < 5; i++) {
            Tree tree = bare_tree(name);
            fake_.calls = 0;
            annotating = std::min(annotating, time_of([&] {
                                      EXPECT_EQ(0, annotate(tree)) << reason_.text();
                                      read_tree(tree.get());
                                  }));
            hwloc = std::min(hwloc, time_of([&] { tree_of(read_file(fixture_path(name))); }));
            reading = std::min(reading, time_of([&] { load_fixture(name); }));
        }
        printf("%s: annotating %.2f ms and %zu calls of NVML; reading %.2f ms, hwloc's %.2f\n",
               name, annotating.count(), fake_.calls, reading.count(), hwloc.count());
        EXPECT_LT(fake_.calls, 1600u);
        EXPECT_LT(annotating.count(), 50);
        EXPECT_LT((reading - hwloc).count(), 50);
    }
}

TEST_F(AnnotateTest, StandsInForGpusThatHwlocDoesNotSee)
{
    describe(two_h200());
    Tree tree = load_tree("no-gpu");
    ASSERT_EQ(0, annotate(tree)) << reason_.text();
    Machine machine = read_tree(tree.get());
    ASSERT_EQ(2u, machine->ngpus);
    EXPECT_EQ(lamprey_pci_id(0, 0, 6, 0), machine->gpus[0].pci_id);
    EXPECT_EQ(LAMPREY_NVLINK_SWITCH, machine->gpus[1].links.kind);
    EXPECT_EQ(478116u, machine->pairs[1].mbps);
    expect_equal(*machine, *read_tree(tree_of(export_xml(tree)).get()));
}

TEST_F(AnnotateTest, StandsInBesideGpusThatHwlocSees)
{
    describe(two_h200());
    fake_.gpus[1].pci_id = lamprey_pci_id(0x10000, 1, 0, 0);
    Tree tree = bare_tree("hgx-h200-vm-2");
    ASSERT_EQ(0, annotate(tree)) << reason_.text();
    Machine machine = read_tree(tree.get());
    ASSERT_EQ(3u, machine->ngpus);
    EXPECT_EQ(LAMPREY_NVLINK_SWITCH, machine->gpus[0].links.kind);
    EXPECT_EQ(LAMPREY_NVLINK_UNKNOWN, machine->gpus[1].links.kind);
    EXPECT_EQ(fake_.gpus[1].pci_id, machine->gpus[2].pci_id);
    EXPECT_EQ(478116u, machine->pairs[2].mbps);
    EXPECT_EQ(0u, machine->pairs[1].mbps);
    expect_equal(*machine, *read_tree(tree_of(export_xml(tree)).get()));
}

TEST_F(AnnotateTest, LeavesGpusAloneThatNvmlDoesNotShow)
{
    Machine want = load_fixture("container-2-of-8");
    std::string text = tell(*load_fixture("hgx-h100-8"), "0000:05:00.0");
    describe(text);
    fake_.gpus = {fake_.gpus[2], fake_.gpus[5]};
    Machine got = annotated("container-2-of-8");
    expect_equal(*want, *got);
}

TEST_F(AnnotateTest, KnowsDirectPeersBeyondTheContainer)
{
    /* One GPU of a bridged pair: NVML and hwloc show no other. */
    describe("pci 0000:17:00.0\nsm 9.0\nlinks 12 26562 gpu 0000:3d:00.0\n");
    Tree tree = load_tree("no-gpu");
    ASSERT_EQ(0, annotate(tree)) << reason_.text();
    Machine machine = read_tree(tree.get());
    ASSERT_EQ(1u, machine->ngpus);
    EXPECT_EQ(LAMPREY_NVLINK_DIRECT, machine->gpus[0].links.kind);
    ASSERT_EQ(1u, machine->gpus[0].links.peer_count);
    EXPECT_EQ(lamprey_pci_id(0, 0x3d, 0, 0), machine->gpus[0].links.peers[0]);
}

TEST_F(AnnotateTest, TakesOneSidesWordForAPeerThatOnlyHwlocSees)
{
    describe(tell(*load_fixture("h100-nvl-bridge-4"), "hidden"));
    fake_.gpus.resize(1);
    Machine machine = annotated("h100-nvl-bridge-4");
    EXPECT_EQ(LAMPREY_PAIR_DIRECT, machine->pairs[1].kind);
    EXPECT_EQ(318744u, machine->pairs[1].mbps);
    EXPECT_EQ(1u, machine->gpus[0].links.peer_count);
    EXPECT_EQ(LAMPREY_NVLINK_UNKNOWN, machine->gpus[1].links.kind);
}

TEST_F(AnnotateTest, BelievesADirectLinkOnlyFromBothEnds)
{
    describe(tell(*load_fixture("h100-nvl-bridge-4"), "hidden"));
    fake_.gpus[1].links.resize(10);
    Machine machine = annotated("h100-nvl-bridge-4");
    EXPECT_EQ(265620u, machine->pairs[1].mbps);
    fake_.gpus[1].links.assign(
        12, FakeLink{true, true, 26562, LAMPREY_NVML_REMOTE_GPU, fake_.gpus[2].pci_id});
    machine = annotated("h100-nvl-bridge-4");
    EXPECT_EQ(0u, machine->pairs[1].mbps);
    EXPECT_EQ(0u, machine->gpus[0].links.peer_count);
}

TEST_F(AnnotateTest, TakesPeerAccessAwayWhereNvmlRulesItOut)
{
    Machine want = load_fixture("hgx-h100-p2p-off");
    describe(tell(*load_fixture("hgx-h100-8"), "0000:05:00.0"));
    for (auto pair : {std::make_pair(6, 7), std::make_pair(7, 6)}) {
        for (int index : {0, 1, 2}) {
            SCOPED_TRACE(index);
            fake_.p2p_refused = {pair};
            fake_.p2p_index = index;
            expect_equal(*want, *annotated("hgx-h100-8"));
        }
    }
    fake_.p2p_index = 3; /* atomics */
    expect_equal(*load_fixture("hgx-h100-8"), *annotated("hgx-h100-8"));
}

TEST_F(AnnotateTest, ReadsMigMode)
{
    Machine want = load_fixture("hgx-h100-mig");
    describe(tell(*load_fixture("hgx-h100-8"), "0000:05:00.0"));
    fake_.gpus[0].mig = 1;
    for (size_t i = 1; i < 8; i++) {
        fake_.p2p_refused.push_back({0, i});
    }
    expect_equal(*want, *annotated("hgx-h100-mig"));
    fake_.gpus[0].mig = -1;
    EXPECT_EQ(0u, annotated("hgx-h100-mig")->gpus[0].links.mig);
}

TEST_F(AnnotateTest, ClassifiesFarEndsWithoutNvmlsHelp)
{
    const struct {
        const char *far; /* a switch, an InfiniBand card of nobody, a GPU, nothing */
        uint32_t kind;
    } cases[] = {
        {"hidden", LAMPREY_NVLINK_SWITCH},       {"0000:c4:00.0", LAMPREY_NVLINK_SWITCH},
        {"0000:99:00.0", LAMPREY_NVLINK_SWITCH}, {"0000:0f:00.0", LAMPREY_NVLINK_DIRECT},
        {"0000:bd:00.0", LAMPREY_NVLINK_DIRECT}, /* in the tree only */
    };
    for (int step = 0; step < 3; step++) {
        nvml_.link_remote_type = step == 0 ? nullptr : fake_link_remote_type;
        fake_.codes["link_remote_type"] = step == 1 ? kUnknownError : kOk;
        for (const auto &c : cases) {
            /* In the last step NVML answers, but with "unknown". */
            describe(std::string("pci 0000:07:00.0\nsm 8.0\nlinks 12 25000 unknown ") + c.far +
                     "\npci 0000:0f:00.0\nsm 8.0\nlinks 12 25000 unknown 0000:07:00.0\n");
            Machine machine = annotated("dgx-a100-8");
            EXPECT_EQ(c.kind,
                      lamprey_machine_find(machine.get(), lamprey_pci_id(0, 7, 0, 0))->links.kind)
                << c.far << " " << step;
        }
    }
}

TEST_F(AnnotateTest, TakesHiddenEndsForSwitchesWhateverIsMissing)
{
    describe(two_h200());
    nvml_.link_remote_type = nullptr;
    nvml_.link_remote_pci = nullptr;
    expect_equal(*load_fixture("hgx-h200-vm-2"), *annotated("hgx-h200-vm-2"));
}

TEST_F(AnnotateTest, LeavesLinksToCpusOut)
{
    describe("pci 0000:00:06.0\nsm 7.0\nlinks 3 25000 cpu 0004:04:00.0\n"
             "links 3 25000 gpu 0000:00:07.0\n"
             "pci 0000:00:07.0\nsm 7.0\nlinks 6 25000 cpu 0004:04:00.0\n");
    Machine machine = annotated("hgx-h200-vm-2");
    EXPECT_EQ(3u, machine->gpus[0].links.links_active);
    EXPECT_EQ(LAMPREY_NVLINK_DIRECT, machine->gpus[0].links.kind);
    EXPECT_EQ(0u, machine->gpus[1].links.links_active);
    EXPECT_EQ(LAMPREY_NVLINK_NONE, machine->gpus[1].links.kind);
}

TEST_F(AnnotateTest, CallsLinksToGpusAndSwitchesMixed)
{
    describe("pci 0000:00:06.0\nsm 9.0\nlinks 2 25000 gpu 0000:00:07.0\n"
             "links 4 25000 switch hidden\n"
             "pci 0000:00:07.0\nsm 9.0\nlinks 2 25000 gpu 0000:00:06.0\n"
             "links 4 25000 switch hidden\n");
    Machine machine = annotated("hgx-h200-vm-2");
    EXPECT_EQ(LAMPREY_NVLINK_DIRECT, machine->gpus[0].links.kind);
    EXPECT_EQ(1u, machine->gpus[0].links.peer_count);
    EXPECT_EQ(150000u, machine->pairs[1].mbps);
}

TEST_F(AnnotateTest, CountsActiveLinksOnly)
{
    describe("pci 0000:00:06.0\nsm 9.0\nlinks 2 0 off hidden\nlinks 16 26562 switch hidden\n"
             "pci 0000:00:07.0\nsm 7.0\nlinks 5 25000 switch hidden\nlinks 1 0 off hidden\n");
    for (bool counted : {true, false}) {
        for (bool asks : {true, false}) {
            fake_.counts_links = counted;
            nvml_.link_capability = asks ? fake_link_capability : nullptr;
            Machine machine = annotated("hgx-h200-vm-2");
            EXPECT_EQ(16u, machine->gpus[0].links.links_active);
            EXPECT_EQ(26562u, machine->gpus[0].links.link_mbps);
            EXPECT_EQ(5u, machine->gpus[1].links.links_active);
            EXPECT_EQ(125000u, machine->pairs[1].mbps);
        }
    }
}

TEST_F(AnnotateTest, LeavesLinksWithoutPeerAccessOut)
{
    describe("pci 0000:00:06.0\nsm 9.0\nlinks 2 26562 barred hidden\n"
             "links 16 26562 switch hidden\n"
             "pci 0000:00:07.0\nsm 9.0\nlinks 18 26562 barred hidden\n");
    Machine machine = annotated("hgx-h200-vm-2");
    EXPECT_EQ(16u, machine->gpus[0].links.links_active);
    EXPECT_EQ(LAMPREY_NVLINK_NONE, machine->gpus[1].links.kind);
}

TEST_F(AnnotateTest, NotesWhetherTheFarEndsAreHidden)
{
    const struct {
        const char *links;
        const char *hidden;
    } cases[] = {
        {"18 26562 switch hidden", "1"},
        {"18 26562 switch 0000:05:00.0", "0"},
        {"2 26562 switch 0000:05:00.0\nlinks 16 26562 switch hidden", "0"},
    };
    for (const auto &c : cases) {
        describe(two_h200(c.links));
        Tree tree = bare_tree("hgx-h200-vm-2");
        ASSERT_EQ(0, annotate(tree)) << reason_.text();
        hwloc_obj_t gpu = hwloc_get_next_pcidev(tree.get(), nullptr);
        EXPECT_STREQ(c.hidden, hwloc_obj_get_info_by_name(gpu, LAMPREY_ATTRIBUTE_HIDDEN));
        EXPECT_STREQ("18", hwloc_obj_get_info_by_name(gpu, LAMPREY_ATTRIBUTE_LINK_COUNT));
        EXPECT_STREQ("GPU-00000020-0000-4000-8000-000000000000",
                     hwloc_obj_get_info_by_name(gpu, LAMPREY_ATTRIBUTE_UUID));
    }
}

TEST_F(AnnotateTest, TakesTheSlowestLinkForAll)
{
    describe("pci 0000:00:06.0\nsm 9.0\nlinks 17 26562 switch hidden\n"
             "links 1 13281 switch hidden\n");
    EXPECT_EQ(13281u, annotated("hgx-h200-vm-2")->gpus[0].links.link_mbps);
    std::swap(fake_.gpus[0].links[3], fake_.gpus[0].links[17]);
    EXPECT_EQ(13281u, annotated("hgx-h200-vm-2")->gpus[0].links.link_mbps);
}

TEST_F(AnnotateTest, KnowsUsualSpeedsWhereTheDriverTellsNone)
{
    const struct {
        const char *sm;
        uint32_t mbps;
    } cases[] = {
        {"6.0", 20000},  {"7.0", 25000},  {"8.0", 25000},  {"8.6", 14000}, {"9.0", 25000},
        {"10.0", 50000}, {"10.3", 50000}, {"12.0", 50000}, {"5.2", 14000},
    };
    for (const auto &c : cases) {
        describe(std::string("pci 0000:00:06.0\nsm ") + c.sm + "\nlinks 4 0 switch hidden\n");
        EXPECT_EQ(c.mbps, annotated("hgx-h200-vm-2")->gpus[0].links.link_mbps) << c.sm;
    }
    nvml_.compute_capability = nullptr;
    EXPECT_EQ(14000u, annotated("hgx-h200-vm-2")->gpus[0].links.link_mbps);
}

TEST_F(AnnotateTest, AsksTheFabricInEveryVersion)
{
    Machine want = load_fixture("gb200-unhealthy");
    describe(tell(*want, "hidden"));
    for (unsigned version : {2, 3}) {
        fake_.fabric_version = version;
        expect_equal(*want, *annotated("gb200-unhealthy"));
    }
    /* The first form has no health. */
    for (bool exists : {true, false}) {
        fake_.fabric_version = 1;
        nvml_.fabric_info = exists ? fake_fabric_info : nullptr;
        Machine machine = annotated("gb200-unhealthy");
        EXPECT_EQ(3u, machine->gpus[3].links.fabric_state);
        EXPECT_EQ(4026u, machine->gpus[3].links.fabric_clique);
        EXPECT_EQ(0xc5, machine->gpus[3].links.fabric_uuid[0]);
        EXPECT_EQ(0u, machine->gpus[3].links.fabric_health);
    }
    nvml_.fabric_info_v1 = nullptr;
    EXPECT_EQ(0u, annotated("gb200-unhealthy")->gpus[3].links.fabric_state);
}

TEST_F(AnnotateTest, TellsChassisApart)
{
    std::string text = tell(*load_fixture("emulator-tray"), "hidden");
    describe(text);
    Machine machine = annotated("emulator-tray");
    const uint32_t chassis = machine->gpus[0].links.chassis;
    EXPECT_NE(0u, chassis);
    EXPECT_EQ(chassis, machine->gpus[3].links.chassis);
    fake_.gpus[1].chassis = "emulated-rack-2";
    fake_.gpus[2].chassis = "";
    machine = annotated("emulator-tray");
    EXPECT_EQ(chassis, machine->gpus[0].links.chassis);
    EXPECT_NE(chassis, machine->gpus[1].links.chassis);
    EXPECT_NE(0u, machine->gpus[1].links.chassis);
    EXPECT_EQ(0u, machine->gpus[2].links.chassis);
    nvml_.platform_info = nullptr;
    EXPECT_EQ(0u, annotated("emulator-tray")->gpus[0].links.chassis);
}

/* Whichever function is missing or fails, NVLinks are never made up nor denied: a GPU with links is
 * on switches or unknown, one without is without or unknown. */
TEST_F(AnnotateTest, ToleratesEveryMissingFunctionAndReturnCode)
{
    struct Member {
        const char *name;
        bool required;
        void (*remove)(lamprey_nvml *);
    };
    const Member members[] = {
#define MEMBER(member, symbol, required, parameters)                                               \
    {#member, required, [](lamprey_nvml *nvml) { nvml->member = nullptr; }},
        LAMPREY_NVML_FUNCTIONS(MEMBER)
#undef MEMBER
            {"field_result", false, [](lamprey_nvml *) {}},
    };
    const int codes[] = {1, 2, 3, 4, 6, 7, 9, 12, 13, 15, 25, 999, -1};
    const lamprey_nvml whole = nvml_;

    for (const Member &member : members) {
        SCOPED_TRACE(member.name);
        for (size_t i = 0; i <= sizeof(codes) / sizeof(*codes); i++) {
            bool missing = i == sizeof(codes) / sizeof(*codes);
            SCOPED_TRACE(missing ? 0 : codes[i]);
            nvml_ = whole;
            fake_.codes.clear();
            if (missing && member.required) {
                continue; /* lamprey_nvml_load refuses */
            }
            if (missing) {
                member.remove(&nvml_);
            } else {
                fake_.codes[member.name] = codes[i];
            }
            describe(two_h200());
            fake_.gpus[1].links.clear();
            Tree tree = bare_tree("hgx-h200-vm-2");
            int result = annotate(tree);
            std::string name = member.name;
            if (name == "init" || name == "device_count") {
                EXPECT_EQ(EIO, result);
                EXPECT_NE(std::string::npos, reason_.text().find("(" + std::to_string(codes[i])))
                    << reason_.text();
                continue;
            }
            ASSERT_EQ(0, result) << reason_.text();
            Machine machine = read_tree(tree.get());
            ASSERT_EQ(2u, machine->ngpus);
            uint32_t linked = machine->gpus[0].links.kind;
            uint32_t unlinked = machine->gpus[1].links.kind;
            bool lost = name == "device_by_index" || name == "pci_info";
            EXPECT_EQ(lost ? LAMPREY_NVLINK_UNKNOWN : LAMPREY_NVLINK_SWITCH, linked);
            EXPECT_EQ(lost ? LAMPREY_NVLINK_UNKNOWN : LAMPREY_NVLINK_NONE, unlinked);
        }
    }
}

TEST_F(AnnotateTest, KnowsUnknownLinksFromAbsentOnes)
{
    const struct {
        int state_code; /* of link_state, where field 165 isn't there */
        uint32_t kind;
    } cases[] = {
        {kOk, LAMPREY_NVLINK_SWITCH},    {kNotSupported, LAMPREY_NVLINK_NONE},
        {kInvalid, LAMPREY_NVLINK_NONE}, {kUnknownError, LAMPREY_NVLINK_UNKNOWN},
        {1, LAMPREY_NVLINK_UNKNOWN},     {15, LAMPREY_NVLINK_UNKNOWN},
    };
    for (const auto &c : cases) {
        fake_.codes = {{"link_state", c.state_code}, {"field_values", kUnknownError}};
        describe(two_h200());
        EXPECT_EQ(c.kind, annotated("hgx-h200-vm-2")->gpus[0].links.kind) << c.state_code;
    }
    fake_.codes.clear();
    nvml_.link_state = nullptr;
    nvml_.field_values = nullptr;
    EXPECT_EQ(LAMPREY_NVLINK_UNKNOWN, annotated("hgx-h200-vm-2")->gpus[0].links.kind);
}

TEST_F(AnnotateTest, SkipsAGpuWhoseOwnPciIdIsHidden)
{
    describe(two_h200());
    fake_.gpus[0].pci_id = LAMPREY_PCI_UNKNOWN;
    Machine machine = annotated("hgx-h200-vm-2");
    ASSERT_EQ(2u, machine->ngpus);
    EXPECT_EQ(LAMPREY_NVLINK_UNKNOWN, machine->gpus[0].links.kind);
    EXPECT_EQ(LAMPREY_NVLINK_SWITCH, machine->gpus[1].links.kind);
}

TEST_F(AnnotateTest, MarksAMachineWithoutGpusToo)
{
    Tree tree = load_tree("no-gpu");
    Tree bare = bare_tree("no-gpu");
    ASSERT_EQ(0, annotate(bare));
    expect_equal(*read_tree(tree.get()), *read_tree(bare.get()));
}

TEST_F(AnnotateTest, FindsVirtualFunctions)
{
    describe("pci 0000:00:06.4\nsm 9.0\nlinks 18 26562 switch hidden\n");
    Tree tree = load_tree("no-gpu");
    ASSERT_EQ(0, annotate(tree));
    EXPECT_EQ(lamprey_pci_id(0, 0, 6, 4), read_tree(tree.get())->gpus[0].pci_id);
}

TEST_F(AnnotateTest, IsWantedOnThisMachineOnly)
{
    Tree foreign = bare_tree("hgx-h200-vm-2");
    EXPECT_FALSE(lamprey_annotate_wanted(foreign.get()));

    /* hwloc's own way to pass a file off as this machine. */
    ASSERT_EQ(0, setenv("HWLOC_THISSYSTEM", "1", 1));
    Tree own = bare_tree("hgx-h200-vm-2");
    Tree annotated_already = load_tree("hgx-h200-vm-2");
    unsetenv("HWLOC_THISSYSTEM");
    EXPECT_TRUE(lamprey_annotate_wanted(own.get()));
    EXPECT_FALSE(lamprey_annotate_wanted(annotated_already.get()));

    describe(two_h200());
    ASSERT_EQ(0, annotate(own));
    EXPECT_FALSE(lamprey_annotate_wanted(own.get()));
}

} // namespace
