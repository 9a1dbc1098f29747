// SPDX-License-Identifier: Apache-2.0
// What the fixtures read as, and what the ranks on such machines decide.
#include "topology/read.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "tests/fixtures/machine_tables.h"

// Instead of hwloc's: as if the process held another one.
static unsigned api_version = HWLOC_API_VERSION;
extern "C" unsigned hwloc_get_api_version(void)
{
    return api_version;
}

namespace {

using lamprey::expect_equal;
using lamprey::fixture_path;
using lamprey::load_fixture;
using lamprey::Machine;
using lamprey::MachineRow;
using lamprey::Reason;
using lamprey::record_of;

const char *const kKinds[] = {"unknown", "none", "direct", "switch"};

std::string test_name(const std::string &fixture)
{
    std::string name = fixture;
    for (char &c : name) {
        c = isalnum(static_cast<unsigned char>(c)) ? c : '_';
    }
    return name;
}

/* A cell of machines.txt: * is any value. */
void expect_cell(const std::string &want, const std::string &got, const std::string &what)
{
    if (want != "*") {
        EXPECT_EQ(want, got) << what;
    }
}

class MachineTest : public testing::TestWithParam<MachineRow> {};

TEST_P(MachineTest, ReadsAsItsRow)
{
    const MachineRow &want = GetParam();
    Machine machine = load_fixture(want.name);
    ASSERT_NE(nullptr, machine);
    ASSERT_EQ(want.gpus, machine->ngpus);
    for (size_t i = 0; i < machine->ngpus; i++) {
        const lamprey_machine_gpu &gpu = machine->gpus[i];
        const std::string what = "GPU " + std::to_string(i);
        expect_cell(want.kind, kKinds[gpu.links.kind], what);
        expect_cell(want.links, std::to_string(gpu.links.links_active), what);
        expect_cell(want.mbps, std::to_string(gpu.links.link_mbps), what);
        expect_cell(want.fabric, std::to_string(gpu.links.fabric_state), what);
        expect_cell(want.peers, std::to_string(gpu.links.peer_count), what);
        expect_cell(want.sm, gpu.sm[0] != '\0' ? gpu.sm : "?", what);
        EXPECT_EQ(&gpu, lamprey_machine_find(machine.get(), gpu.pci_id)) << i;
    }
    const char *const pairs[] = {"unknown", "self", "direct", "switch", "none"};
    for (size_t i = 0; i < machine->ngpus * machine->ngpus; i++) {
        const lamprey_machine_pair &pair = machine->pairs[i];
        if (i / machine->ngpus != i % machine->ngpus) {
            expect_cell(want.pair, pairs[pair.kind] + (":" + std::to_string(pair.mbps)),
                        "pair " + std::to_string(i));
        } else {
            EXPECT_EQ(LAMPREY_PAIR_SELF, pair.kind) << i;
            EXPECT_EQ(0u, pair.mbps) << i;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, MachineTest, testing::ValuesIn(lamprey::machine_rows()),
                         [](const testing::TestParamInfo<MachineRow> &info) {
                             return test_name(info.param.name);
                         });

/* Malformed ones, and one that hwloc may not read, have tests of their own. */
TEST(MachineTablesTest, EveryMachineHasARowAndADecision)
{
    std::set<std::string> files;
    for (const auto &entry : std::filesystem::directory_iterator("tests/fixtures")) {
        std::string name = entry.path().stem();
        if (entry.path().extension() == ".xml" && name.compare(0, 9, "malformed") != 0 &&
            name != "hwloc-3-vm-2") {
            files.insert(name);
        }
    }
    std::set<std::string> rows;
    for (const MachineRow &row : lamprey::machine_rows()) {
        EXPECT_TRUE(rows.insert(row.name).second) << row.name << " has two rows";
    }
    EXPECT_EQ(files, rows);
    rows.erase("no-gpu");
    for (const lamprey::Decision &decision : lamprey::decisions()) {
        for (const std::string &word : decision.hosts) {
            uint16_t host = 1;
            for (const lamprey::Seat &seat : lamprey::seats_of(word, &host)) {
                rows.erase(seat.machine);
            }
        }
    }
    EXPECT_EQ(std::set<std::string>(), rows) << "no decision";
}

TEST(ReadTest, TellsWhoAnnotated)
{
    EXPECT_STREQ("nvml 580.159.04", load_fixture("hgx-h200-vm-2")->probe);
    EXPECT_STREQ("", load_fixture("not-annotated-8")->probe);
}

TEST(ReadTest, ReadsIdentity)
{
    Machine machine = load_fixture("gb200-tray-b");
    const uint64_t ids[] = {lamprey_pci_id(0x8, 1, 0, 0), lamprey_pci_id(0x9, 1, 0, 0),
                            lamprey_pci_id(0x18, 1, 0, 0), lamprey_pci_id(0x19, 1, 0, 0)};
    ASSERT_EQ(4u, machine->ngpus);
    for (size_t i = 0; i < 4; i++) {
        EXPECT_EQ(ids[i], machine->gpus[i].pci_id);
        EXPECT_STREQ("NVIDIA GB200", machine->gpus[i].model);
    }
    EXPECT_STREQ("GPU-000000b2-0000-4000-8000-000000000005", machine->gpus[1].uuid);
}

TEST(ReadTest, ReadsTheFabric)
{
    const uint8_t cluster[16] = {0xc5, 0x6b, 0x1f, 0x5e, 0x7d, 0x0a, 0x4c, 0x3e,
                                 0x9b, 0x2f, 0x60, 0x71, 0x82, 0x93, 0xa4, 0xb5};
    Machine machine = load_fixture("gb200-unhealthy");
    ASSERT_EQ(4u, machine->ngpus);
    const lamprey_gpu_links &links = machine->gpus[3].links;
    EXPECT_EQ(0, memcmp(cluster, links.fabric_uuid, sizeof(cluster)));
    EXPECT_EQ(4026u, links.fabric_clique);
    EXPECT_EQ(0xa9u, links.fabric_health);
    EXPECT_EQ(0xaau, machine->gpus[0].links.fabric_health);
    machine = load_fixture("gb200-refused");
    EXPECT_EQ(999u, machine->gpus[1].links.fabric_status);
    machine = load_fixture("gb200-in-progress");
    EXPECT_EQ(2u, machine->gpus[2].links.fabric_state);
}

TEST(ReadTest, ReadsLocalityWithoutGpuMemoryNodes)
{
    const struct {
        const char *name;
        std::vector<int> numa;
    } cases[] = {
        {"dgx-a100-8", {1, 1, 3, 3, 5, 5, 7, 7}},
        {"gb200-tray-a", {0, 0, 1, 1}},
        {"hgx-h200-vm-2", {0, 0}},
        {"wide-domain-2", {0, 0}},
    };
    for (const auto &c : cases) {
        Machine machine = load_fixture(c.name);
        std::vector<int> numa;
        for (size_t i = 0; i < machine->ngpus; i++) {
            numa.push_back(machine->gpus[i].numa);
        }
        EXPECT_EQ(c.numa, numa) << c.name;
    }
}

TEST(ReadTest, ReadsPairs)
{
    const struct {
        const char *name;
        size_t a;
        size_t b;
        lamprey_pair_kind kind;
        uint32_t mbps;
    } cases[] = {
        {"dgx-a100-8", 0, 7, LAMPREY_PAIR_SWITCH, 300000},
        {"dgx-a100-8", 3, 3, LAMPREY_PAIR_SELF, 0},
        {"hgx-a100-4", 0, 3, LAMPREY_PAIR_DIRECT, 100000},
        {"hgx-h100-8", 2, 5, LAMPREY_PAIR_SWITCH, 478116},
        {"hgx-h100-dead-links", 2, 3, LAMPREY_PAIR_SWITCH, 424992},
        {"hgx-h100-dead-links", 2, 4, LAMPREY_PAIR_SWITCH, 478116},
        {"hgx-h100-p2p-off", 6, 7, LAMPREY_PAIR_PCIE, 0},
        {"hgx-h100-p2p-off", 5, 7, LAMPREY_PAIR_SWITCH, 478116},
        {"l40s-8", 0, 1, LAMPREY_PAIR_PCIE, 0},
        {"h100-nvl-bridge-4", 0, 1, LAMPREY_PAIR_DIRECT, 318744},
        {"h100-nvl-bridge-4", 1, 2, LAMPREY_PAIR_PCIE, 0},
        {"v100-cube-mesh-8", 0, 3, LAMPREY_PAIR_DIRECT, 50000},
        {"v100-cube-mesh-8", 0, 5, LAMPREY_PAIR_PCIE, 0},
        {"container-2-of-8", 2, 5, LAMPREY_PAIR_SWITCH, 478116},
        {"container-2-of-8", 2, 3, LAMPREY_PAIR_UNKNOWN, 0},
        {"not-annotated-8", 0, 1, LAMPREY_PAIR_UNKNOWN, 0},
        {"wide-domain-2", 0, 1, LAMPREY_PAIR_SWITCH, 478116},
    };
    for (const auto &c : cases) {
        Machine machine = load_fixture(c.name);
        ASSERT_LT(c.b, machine->ngpus);
        for (size_t i : {c.a * machine->ngpus + c.b, c.b * machine->ngpus + c.a}) {
            EXPECT_EQ(c.kind, machine->pairs[i].kind) << c.name << " " << c.a << " " << c.b;
            EXPECT_EQ(c.mbps, machine->pairs[i].mbps) << c.name << " " << c.a << " " << c.b;
        }
    }
}

TEST(ReadTest, ListsDirectPeers)
{
    Machine machine = load_fixture("v100-cube-mesh-8");
    const size_t peers[8][4] = {{1, 2, 3, 4}, {0, 2, 3, 5}, {0, 1, 3, 6}, {0, 1, 2, 7},
                                {0, 5, 6, 7}, {1, 4, 6, 7}, {2, 4, 5, 7}, {3, 4, 5, 6}};
    for (size_t i = 0; i < 8; i++) {
        for (size_t j = 0; j < 4; j++) {
            EXPECT_EQ(machine->gpus[peers[i][j]].pci_id, machine->gpus[i].links.peers[j]);
        }
    }
}

TEST(ReadTest, ListsPeersWhereTheSwitchesMayNotJoinAll)
{
    Machine machine = load_fixture("hgx-h100-p2p-off");
    ASSERT_EQ(8u, machine->ngpus);
    for (size_t i = 0; i < 8; i++) {
        EXPECT_EQ(i < 6 ? "switch" : "direct", std::string(kKinds[machine->gpus[i].links.kind]))
            << i;
        EXPECT_EQ(i < 6 ? 0u : 6u, machine->gpus[i].links.peer_count) << i;
    }
}

TEST(ReadTest, MigCostsTheOthersNothing)
{
    Machine machine = load_fixture("hgx-h100-mig");
    ASSERT_EQ(8u, machine->ngpus);
    EXPECT_EQ(1u, machine->gpus[0].links.mig);
    for (size_t i = 1; i < 8; i++) {
        EXPECT_EQ(0u, machine->gpus[i].links.mig);
        EXPECT_EQ(LAMPREY_NVLINK_SWITCH, machine->gpus[i].links.kind);
    }
}

TEST(ReadTest, FindsGpusWhateverTheirFunction)
{
    lamprey_machine_gpu gpus[3] = {};
    gpus[0].pci_id = lamprey_pci_id(0, 0x10, 0, 4);
    gpus[1].pci_id = lamprey_pci_id(0, 0x11, 0, 4);
    gpus[2].pci_id = lamprey_pci_id(0, 0x11, 0, 5);
    lamprey_machine machine = {};
    machine.gpus = gpus;
    machine.ngpus = 3;
    EXPECT_EQ(&gpus[0], lamprey_machine_find(&machine, lamprey_pci_id(0, 0x10, 0, 0)));
    EXPECT_EQ(&gpus[2], lamprey_machine_find(&machine, lamprey_pci_id(0, 0x11, 0, 5)));
    EXPECT_EQ(nullptr, lamprey_machine_find(&machine, lamprey_pci_id(0, 0x11, 0, 0)));
    EXPECT_EQ(nullptr, lamprey_machine_find(&machine, lamprey_pci_id(1, 0x10, 0, 4)));
}

struct Malformed {
    const char *name;
    const char *reason; /* part of it */
};

void PrintTo(const Malformed &file, std::ostream *out)
{
    *out << file.name;
}

class MalformedTest : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedTest, IsRefusedWithAReason)
{
    std::string path = fixture_path(GetParam().name);
    lamprey_machine *machine = nullptr;
    Reason reason;
    EXPECT_EQ(EIO, lamprey_load_file(path.c_str(), &machine, reason));
    EXPECT_EQ(nullptr, machine);
    EXPECT_NE(std::string::npos, reason.text().find(GetParam().reason)) << reason.text();
}

/* Where hwloc itself refuses, its two parsers do so at different steps: only the file is named. */
INSTANTIATE_TEST_SUITE_P(
    Fixtures, MalformedTest,
    testing::Values(
        Malformed{"malformed-uuid", "GPU 0000:07:00.0: GPUFabricClusterUUID makes no sense"},
        Malformed{"malformed-number", "NVLinkActive makes no sense (\"18 links\")"},
        Malformed{"malformed-overflow", "NVLinkSpeed makes no sense (\"4294967296\")"},
        Malformed{"malformed-remote", "NVLinkRemote makes no sense (\"none\")"},
        Malformed{"malformed-remote-word", "NVLinkRemote makes no sense (\"hub\")"},
        Malformed{"malformed-peers", "NVLinkPeers makes no sense (\"0000:06:00.0 gpu0\")"},
        Malformed{"malformed-annotation-version", "version 2, this library knows 1"},
        Malformed{"malformed-matrix-asymmetric", "row 0, column 1: 478116, and back 1"},
        Malformed{"malformed-matrix-diagonal", "row 0, column 0: 7"},
        Malformed{"malformed-matrix-wide", "row 0, column 1: 4294967296"},
        Malformed{"malformed-matrix-size", "tests/fixtures/malformed-matrix-size.xml"},
        Malformed{"malformed-matrix-lacks-gpu", "lacks GPU 0000:08:00.0"},
        Malformed{"malformed-matrix-missing", "2 GPUs have NVLinks, but NVLinkPeerBandwidth"},
        Malformed{"malformed-matrix-object", "row 1 of NVLinkPeerBandwidth is no GPU"},
        Malformed{"malformed-misc-pci", "NVIDIAGPU has no valid PCIBusID (somewhere)"},
        Malformed{"malformed-v4", "tests/fixtures/malformed-v4.xml"},
        Malformed{"malformed-truncated", "tests/fixtures/malformed-truncated.xml"},
        Malformed{"malformed-empty", "tests/fixtures/malformed-empty.xml"},
        Malformed{"malformed-text", "tests/fixtures/malformed-text.xml"},
        Malformed{"missing", "cannot read tests/fixtures/missing.xml: No such file"}),
    [](const testing::TestParamInfo<Malformed> &info) { return test_name(info.param.name); });

/* hwloc 2 reads version 3 of its format from 2.10 on. What it reads must mean the same to us. */
TEST(ReadTest, ReadsTheFormatOfHwloc3WhereHwlocDoes)
{
    std::string path = fixture_path("hwloc-3-vm-2");
    hwloc_topology_t tree = nullptr;
    ASSERT_EQ(0, hwloc_topology_init(&tree));
    bool readable =
        hwloc_topology_set_xml(tree, path.c_str()) == 0 && hwloc_topology_load(tree) == 0;
    hwloc_topology_destroy(tree);
    if (readable) {
        expect_equal(*load_fixture("hgx-h200-vm-2"), *load_fixture("hwloc-3-vm-2"));
    } else {
        lamprey_machine *machine = nullptr;
        Reason reason;
        EXPECT_EQ(EIO, lamprey_load_file(path.c_str(), &machine, reason));
        EXPECT_EQ(nullptr, machine);
        EXPECT_NE(std::string::npos, reason.text().find(path)) << reason.text();
    }
}

/* Every cut of a good file is refused or, where only white space is lost, read: never a crash. */
TEST(ReadTest, SurvivesATruncatedFile)
{
    std::string whole = lamprey::read_file(fixture_path("hgx-h200-vm-2"));
    std::string path = testing::TempDir() + "topology_read_cut.xml";
    size_t refused = 0;
    for (size_t size = 0; size < whole.size() - 2; size += 37) {
        std::ofstream(path, std::ios::binary | std::ios::trunc) << whole.substr(0, size);
        lamprey_machine *machine = nullptr;
        Reason reason;
        int result = lamprey_load_file(path.c_str(), &machine, reason);
        EXPECT_TRUE(result == 0 || result == EIO) << size;
        EXPECT_EQ(result == 0, reason.text().empty()) << size;
        refused += result != 0;
        lamprey_machine_destroy(machine);
    }
    EXPECT_GT(refused, whole.size() / 37 / 2);
    remove(path.c_str());
}

TEST(ReadTest, TakesNoStandardInput)
{
    lamprey_machine *machine = nullptr;
    Reason reason;
    EXPECT_EQ(EIO, lamprey_load_file("-", &machine, reason));
    EXPECT_EQ("the topology must be a file, not \"-\"", reason.text());
}

TEST(ReadTest, RefusesAnHwlocOfAnotherAbi)
{
    lamprey_machine *machine = nullptr;
    Reason reason;
    api_version = 0x10b00;
    EXPECT_EQ(EIO, lamprey_load_file(fixture_path("emulator-8").c_str(), &machine, reason));
    EXPECT_EQ(0u, reason.text().find("hwloc has API version 0x10b00, built for 0x2"));
    api_version = 0x20c00;
    EXPECT_EQ(0, lamprey_load_file(fixture_path("emulator-8").c_str(), &machine, reason));
    api_version = HWLOC_API_VERSION;
    lamprey_machine_destroy(machine);
}

TEST(ReadTest, ParsesPciIds)
{
    const struct {
        const char *text;
        bool valid;
        uint64_t id;
    } cases[] = {
        {"0000:06:00.0", true, 0x600},
        {"00000000:9B:1f.7", true, 0x9bff},
        {"10000:01:00.0", true, 0x100000100},
        {"0008:01:00.0", true, 0x80100},
        {"0000:06:00", false, 0},
        {"0000:06:20.0", false, 0},
        {"0000:06:00.8", false, 0},
        {"0000:06:00.0 ", false, 0},
        {" 0000:06:00.0", false, 0},
        {"-1:06:00.0", false, 0},
        {"0000: 6:00.0", false, 0},
        {"0000:06:+1.0", false, 0},
        {"0000:0x6:00.0", false, 0},
        {"0x00:06:00.0", false, 0},
        {"123456789:06:00.0", false, 0},
        {"", false, 0},
    };
    for (const auto &c : cases) {
        uint64_t id = 0;
        EXPECT_EQ(c.valid, lamprey_pci_parse(c.text, &id, nullptr)) << c.text;
        EXPECT_EQ(c.id, id) << c.text;
    }
    char text[LAMPREY_PCI_TEXT];
    EXPECT_STREQ("10000:01:02.3", lamprey_pci_text(lamprey_pci_id(0x10000, 1, 2, 3), text));
    uint64_t id = 0;
    const char *end = nullptr;
    EXPECT_TRUE(lamprey_pci_parse("0000:06:00.0 0000:07:00.0", &id, &end));
    EXPECT_STREQ(" 0000:07:00.0", end);
}

} // namespace
