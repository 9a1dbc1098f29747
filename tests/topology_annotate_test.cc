// SPDX-License-Identifier: Apache-2.0
// NVML is a table of functions here, driven by a few lines of text per GPU.
#include "topology/annotate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tests/fixtures/machine_tables.h"
#include "topology/attributes.h"
#include "topology/probe.h"

namespace {

using lamprey::expect_equal;
using lamprey::fixture_path;
using lamprey::load_fixture;
using lamprey::load_tree;
using lamprey::Machine;
using lamprey::read_tree;
using lamprey::Reason;
using lamprey::Tree;

constexpr int kOk = LAMPREY_NVML_SUCCESS;
constexpr int kInvalid = LAMPREY_NVML_INVALID_ARGUMENT;
constexpr int kNotSupported = LAMPREY_NVML_NOT_SUPPORTED;
constexpr int kVersionMismatch = 25;
constexpr int kUnknownError = 999;

struct FakeLink {
    bool active = true;
    bool peer_to_peer = true;
    int64_t mbps = 0; /* 0: the field isn't supported */
    int type = LAMPREY_NVML_REMOTE_SWITCH;
    uint64_t remote = LAMPREY_PCI_UNKNOWN;
};

struct FakeGpu {
    uint64_t pci_id = 0;
    std::string uuid;
    std::string model;
    int sm_major = 0;
    int sm_minor = 0;
    int mig = -1; /* -1: not supported */
    std::vector<FakeLink> links;
    bool has_fabric = false;
    unsigned fabric_state = 0;
    int fabric_status = 0;
    unsigned fabric_clique = 0;
    unsigned fabric_health = 0;
    uint8_t fabric_uuid[16] = {};
};

/* The machine that the table speaks of. */
struct Fake {
    std::vector<FakeGpu> gpus;
    std::map<std::string, int> codes; /* by member of the table: what it returns */
    std::vector<std::pair<size_t, size_t>> p2p_refused;
    int p2p_index = LAMPREY_NVML_P2P_NVLINK; /* that says so */
    unsigned fabric_version = 2;             /* the only one known to fabric_info */
    bool counts_links = true;                /* field 91 */
    int started = 0;
};

Fake *fake;

int code_of(const char *member) {
    auto at = fake->codes.find(member);
    return at == fake->codes.end() ? kOk : at->second;
}

/* Lines of "key value...": pci starts a GPU; links: how many, MB/s, type, far end ("hidden"). */
std::vector<FakeGpu> parse_gpus(const std::string &text) {
    std::vector<FakeGpu> gpus;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::string key;
        std::string value;
        if (!(words >> key)) {
            continue;
        }
        if (key == "pci") {
            words >> value;
            gpus.emplace_back();
            EXPECT_TRUE(lamprey_pci_parse(value.c_str(), &gpus.back().pci_id, nullptr)) << line;
        } else if (key == "uuid") {
            words >> gpus.back().uuid;
        } else if (key == "model") {
            std::getline(words >> std::ws, gpus.back().model);
        } else if (key == "sm") {
            char dot = 0;
            words >> gpus.back().sm_major >> dot >> gpus.back().sm_minor;
        } else if (key == "mig") {
            words >> gpus.back().mig;
        } else if (key == "fabric") {
            FakeGpu &gpu = gpus.back();
            gpu.has_fabric = true;
            words >> gpu.fabric_state >> gpu.fabric_status >> value >> gpu.fabric_clique >>
                std::hex >> gpu.fabric_health;
            for (size_t i = 0; i < 16; i++) {
                gpu.fabric_uuid[i] =
                    static_cast<uint8_t>(std::stoul(value.substr(2 * i, 2), nullptr, 16));
            }
        } else if (key == "links") {
            size_t n = 0;
            FakeLink link;
            std::string type;
            words >> n >> link.mbps >> type >> value;
            link.active = type != "off";
            link.peer_to_peer = type != "barred";
            link.type = type == "gpu"      ? LAMPREY_NVML_REMOTE_GPU
                        : type == "cpu"    ? LAMPREY_NVML_REMOTE_CPU
                        : type == "switch" ? LAMPREY_NVML_REMOTE_SWITCH
                                           : LAMPREY_NVML_REMOTE_UNKNOWN;
            if (value != "hidden") {
                EXPECT_TRUE(lamprey_pci_parse(value.c_str(), &link.remote, nullptr)) << line;
            }
            gpus.back().links.insert(gpus.back().links.end(), n, link);
        } else {
            ADD_FAILURE() << line;
        }
    }
    return gpus;
}

/* The device handle is the GPU, and NVML's own types are checked by use. */
FakeGpu &gpu_of(lamprey_nvml_device device) {
    return *static_cast<FakeGpu *>(device);
}

void fill_pci(uint64_t id, lamprey_nvml_pci *pci) {
    memset(pci, 0, sizeof(*pci));
    if (id == LAMPREY_PCI_UNKNOWN) {
        pci->domain = pci->bus = pci->device = 0xffffffff;
        snprintf(pci->bus_id, sizeof(pci->bus_id), "FFFFFFFF:FF:FF.0");
        return;
    }
    pci->domain = static_cast<unsigned>(id >> 16);
    pci->bus = id >> 8 & 0xff;
    pci->device = id >> 3 & 0x1f;
    snprintf(pci->bus_id, sizeof(pci->bus_id), "%08X:%02X:%02X.%X", pci->domain, pci->bus,
             pci->device, static_cast<unsigned>(id & 7));
}

int put_text(const char *member, const std::string &value, char *text, unsigned size) {
    int code = code_of(member);
    if (code == kOk) {
        snprintf(text, size, "%s", value.c_str());
    }
    return code;
}

int fake_init() {
    int code = code_of("init");
    fake->started += code == kOk;
    return code;
}

int fake_shutdown() {
    fake->started--;
    return code_of("shutdown");
}

int fake_driver_version(char *text, unsigned size) {
    return put_text("driver_version", "580.159.04", text, size);
}

int fake_device_count(unsigned *count) {
    *count = static_cast<unsigned>(fake->gpus.size());
    return code_of("device_count");
}

int fake_device_by_index(unsigned index, lamprey_nvml_device *device) {
    *device = &fake->gpus.at(index);
    return code_of("device_by_index");
}

int fake_pci_info(lamprey_nvml_device device, lamprey_nvml_pci *pci) {
    fill_pci(gpu_of(device).pci_id, pci);
    return code_of("pci_info");
}

int fake_uuid(lamprey_nvml_device device, char *text, unsigned size) {
    return put_text("uuid", gpu_of(device).uuid, text, size);
}

int fake_name(lamprey_nvml_device device, char *text, unsigned size) {
    return put_text("name", gpu_of(device).model, text, size);
}

int fake_compute_capability(lamprey_nvml_device device, int *major, int *minor) {
    *major = gpu_of(device).sm_major;
    *minor = gpu_of(device).sm_minor;
    return code_of("compute_capability");
}

int fake_mig_mode(lamprey_nvml_device device, unsigned *current, unsigned *pending) {
    if (gpu_of(device).mig < 0) {
        return kNotSupported;
    }
    *current = *pending = static_cast<unsigned>(gpu_of(device).mig);
    return code_of("mig_mode");
}

/* Field values come in several types; the fake uses two. */
int fake_field_values(lamprey_nvml_device device, int count, lamprey_nvml_field *fields) {
    const FakeGpu &gpu = gpu_of(device);
    for (int i = 0; i < count; i++) {
        lamprey_nvml_field *field = &fields[i];
        field->result = code_of("field_result");
        field->type = LAMPREY_NVML_TYPE_UINT;
        bool link = field->scope < gpu.links.size();
        switch (field->id) {
        case 91:
            if (!fake->counts_links) {
                field->result = kNotSupported;
            }
            field->value.uint_value = static_cast<unsigned>(gpu.links.size());
            break;
        case 164:
            if (!link || gpu.links[field->scope].mbps == 0) {
                field->result = link ? kNotSupported : kInvalid;
            } else {
                field->value.uint_value = static_cast<unsigned>(gpu.links[field->scope].mbps);
            }
            break;
        case 165:
            field->type = LAMPREY_NVML_TYPE_ULONGLONG;
            if (!link) {
                field->result = kInvalid;
            } else {
                /* Before Hopper it says nothing: whoever asks is told "off". */
                field->value.ulonglong_value = gpu.sm_major >= 9 && gpu.links[field->scope].active;
            }
            break;
        default:
            field->result = kInvalid;
        }
    }
    return code_of("field_values");
}

int link_code(const char *member, const FakeGpu &gpu, unsigned link) {
    int code = code_of(member);
    if (code != kOk) {
        return code;
    }
    if (gpu.links.empty()) {
        return kNotSupported;
    }
    return link < gpu.links.size() ? kOk : kInvalid;
}

int fake_link_capability(lamprey_nvml_device device, unsigned link, int capability,
                         unsigned *result) {
    EXPECT_EQ(0, capability);
    int code = link_code("link_capability", gpu_of(device), link);
    if (code == kOk) {
        *result = gpu_of(device).links[link].peer_to_peer;
    }
    return code;
}

int fake_link_state(lamprey_nvml_device device, unsigned link, int *active) {
    int code = link_code("link_state", gpu_of(device), link);
    if (code == kOk) {
        *active = gpu_of(device).links[link].active;
    }
    return code;
}

int fake_link_remote_type(lamprey_nvml_device device, unsigned link, int *type) {
    int code = link_code("link_remote_type", gpu_of(device), link);
    if (code == kOk) {
        *type = gpu_of(device).links[link].type;
    }
    return code;
}

int fake_link_remote_pci(lamprey_nvml_device device, unsigned link, lamprey_nvml_pci *pci) {
    int code = link_code("link_remote_pci", gpu_of(device), link);
    if (code == kOk) {
        fill_pci(gpu_of(device).links[link].remote, pci);
    }
    return code;
}

int fake_p2p_status(lamprey_nvml_device a, lamprey_nvml_device b, int index, int *status) {
    size_t from = static_cast<size_t>(&gpu_of(a) - fake->gpus.data());
    size_t to = static_cast<size_t>(&gpu_of(b) - fake->gpus.data());
    *status = 0;
    for (const auto &pair : fake->p2p_refused) {
        if (pair.first == from && pair.second == to && index == fake->p2p_index) {
            *status = 4;
        }
    }
    return code_of("p2p_status");
}

int fake_fabric_info(lamprey_nvml_device device, lamprey_nvml_fabric *fabric) {
    const FakeGpu &gpu = gpu_of(device);
    const unsigned sizes[] = {0, 0, 36, 40};
    if (fabric->version != (sizes[fake->fabric_version] | fake->fabric_version << 24)) {
        return kVersionMismatch;
    }
    int code = code_of("fabric_info");
    if (code != kOk || !gpu.has_fabric) {
        return code != kOk ? code : kNotSupported;
    }
    memcpy(fabric->cluster_uuid, gpu.fabric_uuid, 16);
    fabric->status = gpu.fabric_status;
    fabric->clique = gpu.fabric_clique;
    fabric->state = static_cast<unsigned char>(gpu.fabric_state);
    fabric->health = gpu.fabric_health;
    return kOk;
}

int fake_fabric_info_v1(lamprey_nvml_device device, lamprey_nvml_fabric_v1 *fabric) {
    const FakeGpu &gpu = gpu_of(device);
    int code = code_of("fabric_info_v1");
    if (code != kOk || !gpu.has_fabric) {
        return code != kOk ? code : kNotSupported;
    }
    memcpy(fabric->cluster_uuid, gpu.fabric_uuid, 16);
    fabric->status = gpu.fabric_status;
    fabric->clique = gpu.fabric_clique;
    fabric->state = gpu.fabric_state;
    return kOk;
}

/* Two H200 as they were measured, in the form that parse_gpus reads. */
std::string two_h200(const char *links = "18 26562 switch hidden") {
    std::string text;
    for (int i = 0; i < 2; i++) {
        text += "pci 0000:00:0" + std::to_string(6 + i) + ".0\n";
        text += "uuid GPU-00000020-0000-4000-8000-00000000000" + std::to_string(i) + "\n";
        text += std::string("model NVIDIA H200\nsm 9.0\nmig 0\nlinks ") + links + "\n";
        text += "fabric 3 0 00000000000000000000000000000000 0 0\n";
    }
    return text;
}

class AnnotateTest : public testing::Test {
  protected:
    AnnotateTest() {
        fake = &fake_;
#define FAKE(member, symbol, required, parameters) nvml_.member = fake_##member;
        LAMPREY_NVML_FUNCTIONS(FAKE)
#undef FAKE
    }
    ~AnnotateTest() override {
        EXPECT_EQ(0, fake_.started) << "NVML was not shut down as often as started";
        fake = nullptr;
    }

    void describe(const std::string &text) {
        fake_.gpus = parse_gpus(text);
    }

    /* The fixture's tree without what the probe wrote into it. */
    static Tree bare_tree(const std::string &name) {
        std::istringstream in(lamprey::read_file(fixture_path(name)));
        std::string bare;
        bool inside_matrix = false;
        for (std::string line; std::getline(in, line);) {
            inside_matrix = inside_matrix || line.find("<distances2") != std::string::npos;
            if (!inside_matrix && line.find("<info") == std::string::npos) {
                bare += line + "\n";
            }
            inside_matrix = inside_matrix && line.find("</distances2") == std::string::npos;
        }
        return tree_of(bare);
    }

    static Tree tree_of(const std::string &xml) {
        hwloc_topology_t tree = nullptr;
        EXPECT_EQ(0, hwloc_topology_init(&tree));
        hwloc_topology_set_io_types_filter(tree, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
        hwloc_topology_set_type_filter(tree, HWLOC_OBJ_MISC, HWLOC_TYPE_FILTER_KEEP_ALL);
        EXPECT_EQ(
            0, hwloc_topology_set_xmlbuffer(tree, xml.c_str(), static_cast<int>(xml.size() + 1)));
        EXPECT_EQ(0, hwloc_topology_load(tree));
        return Tree(tree, hwloc_topology_destroy);
    }

    int annotate(const Tree &tree) {
        return lamprey_annotate(tree.get(), &nvml_, reason_);
    }

    /* Annotates the bare tree and gives the tables. */
    Machine annotated(const std::string &name) {
        Tree tree = bare_tree(name);
        EXPECT_EQ(0, annotate(tree)) << reason_.text();
        return read_tree(tree.get());
    }

    lamprey_nvml nvml_ = {};
    Fake fake_;
    Reason reason_;
};

std::string export_xml(const Tree &tree) {
    char *buffer = nullptr;
    int length = 0;
    EXPECT_EQ(0, hwloc_topology_export_xmlbuffer(tree.get(), &buffer, &length, 0));
    std::string xml(buffer, static_cast<size_t>(length) - 1);
    hwloc_free_xmlbuffer(tree.get(), buffer);
    return xml;
}

/* GPUs of a fixture as NVML would tell them, taken from its tables: links from the pairs. */
std::string tell(const lamprey_machine &machine, const std::string &switched) {
    std::ostringstream out;
    for (size_t i = 0; i < machine.ngpus; i++) {
        const lamprey_machine_gpu &gpu = machine.gpus[i];
        char text[LAMPREY_PCI_TEXT];
        out << "pci " << lamprey_pci_text(gpu.pci_id, text) << "\nuuid " << gpu.uuid << "\nmodel "
            << gpu.model << "\nsm " << gpu.sm << "\nmig " << gpu.links.mig << "\n";
        if (gpu.links.fabric_state != 0) {
            out << "fabric " << gpu.links.fabric_state << " " << gpu.links.fabric_status << " ";
            for (uint8_t byte : gpu.links.fabric_uuid) {
                snprintf(text, sizeof(text), "%02x", byte);
                out << text;
            }
            out << " " << gpu.links.fabric_clique << " " << std::hex << gpu.links.fabric_health
                << std::dec << "\n";
        }
        if (gpu.links.kind == LAMPREY_NVLINK_SWITCH) {
            out << "links " << gpu.links.links_active << " " << gpu.links.link_mbps << " switch "
                << switched << "\n";
        }
        for (size_t j = 0; gpu.links.kind == LAMPREY_NVLINK_DIRECT && j < machine.ngpus; j++) {
            uint32_t mbps = machine.pairs[i * machine.ngpus + j].mbps;
            if (mbps != 0) {
                out << "links " << mbps / gpu.links.link_mbps << " " << gpu.links.link_mbps
                    << " gpu " << lamprey_pci_text(machine.gpus[j].pci_id, text) << "\n";
            }
        }
    }
    return out.str();
}

TEST_F(AnnotateTest, WritesTheMeasuredMachineAsItsFixture) {
    describe(two_h200());
    expect_equal(*load_fixture("hgx-h200-vm-2"), *annotated("hgx-h200-vm-2"));
}

/* Every machine that a fake NVML can tell of, and then through XML and back. */
class AnnotateMachineTest : public AnnotateTest,
                            public testing::WithParamInterface<lamprey::MachineRow> {};

TEST_P(AnnotateMachineTest, WritesTheFixture) {
    const lamprey::MachineRow &row = GetParam();
    if (row.far_end == "-") {
        return;
    }
    Machine want = load_fixture(row.name);
    describe(tell(*want, row.far_end));
    expect_equal(*want, *annotated(row.name));
}

TEST_P(AnnotateMachineTest, SurvivesExportAndImport) {
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

TEST_F(AnnotateTest, StandsInForGpusThatHwlocDoesNotSee) {
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

TEST_F(AnnotateTest, StandsInBesideGpusThatHwlocSees) {
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

TEST_F(AnnotateTest, LeavesGpusAloneThatNvmlDoesNotShow) {
    Machine want = load_fixture("container-2-of-8");
    std::string text = tell(*load_fixture("hgx-h100-8"), "0000:05:00.0");
    describe(text);
    fake_.gpus = {fake_.gpus[2], fake_.gpus[5]};
    Machine got = annotated("container-2-of-8");
    expect_equal(*want, *got);
}

TEST_F(AnnotateTest, KnowsDirectPeersBeyondTheContainer) {
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

TEST_F(AnnotateTest, TakesOneSidesWordForAPeerThatOnlyHwlocSees) {
    describe(tell(*load_fixture("h100-nvl-bridge-4"), "hidden"));
    fake_.gpus.resize(1);
    Machine machine = annotated("h100-nvl-bridge-4");
    EXPECT_EQ(LAMPREY_PAIR_DIRECT, machine->pairs[1].kind);
    EXPECT_EQ(318744u, machine->pairs[1].mbps);
    EXPECT_EQ(1u, machine->gpus[0].links.peer_count);
    EXPECT_EQ(LAMPREY_NVLINK_UNKNOWN, machine->gpus[1].links.kind);
}

TEST_F(AnnotateTest, BelievesADirectLinkOnlyFromBothEnds) {
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

TEST_F(AnnotateTest, TakesPeerAccessAwayWhereNvmlRulesItOut) {
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

TEST_F(AnnotateTest, ReadsMigMode) {
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

TEST_F(AnnotateTest, ClassifiesFarEndsWithoutNvmlsHelp) {
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

TEST_F(AnnotateTest, TakesHiddenEndsForSwitchesWhateverIsMissing) {
    describe(two_h200());
    nvml_.link_remote_type = nullptr;
    nvml_.link_remote_pci = nullptr;
    expect_equal(*load_fixture("hgx-h200-vm-2"), *annotated("hgx-h200-vm-2"));
}

TEST_F(AnnotateTest, LeavesLinksToCpusOut) {
    describe("pci 0000:00:06.0\nsm 7.0\nlinks 3 25000 cpu 0004:04:00.0\n"
             "links 3 25000 gpu 0000:00:07.0\n"
             "pci 0000:00:07.0\nsm 7.0\nlinks 6 25000 cpu 0004:04:00.0\n");
    Machine machine = annotated("hgx-h200-vm-2");
    EXPECT_EQ(3u, machine->gpus[0].links.links_active);
    EXPECT_EQ(LAMPREY_NVLINK_DIRECT, machine->gpus[0].links.kind);
    EXPECT_EQ(0u, machine->gpus[1].links.links_active);
    EXPECT_EQ(LAMPREY_NVLINK_NONE, machine->gpus[1].links.kind);
}

TEST_F(AnnotateTest, CallsLinksToGpusAndSwitchesMixed) {
    describe("pci 0000:00:06.0\nsm 9.0\nlinks 2 25000 gpu 0000:00:07.0\n"
             "links 4 25000 switch hidden\n"
             "pci 0000:00:07.0\nsm 9.0\nlinks 2 25000 gpu 0000:00:06.0\n"
             "links 4 25000 switch hidden\n");
    Machine machine = annotated("hgx-h200-vm-2");
    EXPECT_EQ(LAMPREY_NVLINK_DIRECT, machine->gpus[0].links.kind);
    EXPECT_EQ(1u, machine->gpus[0].links.peer_count);
    EXPECT_EQ(150000u, machine->pairs[1].mbps);
}

TEST_F(AnnotateTest, CountsActiveLinksOnly) {
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

TEST_F(AnnotateTest, LeavesLinksWithoutPeerAccessOut) {
    describe("pci 0000:00:06.0\nsm 9.0\nlinks 2 26562 barred hidden\n"
             "links 16 26562 switch hidden\n"
             "pci 0000:00:07.0\nsm 9.0\nlinks 18 26562 barred hidden\n");
    Machine machine = annotated("hgx-h200-vm-2");
    EXPECT_EQ(16u, machine->gpus[0].links.links_active);
    EXPECT_EQ(LAMPREY_NVLINK_NONE, machine->gpus[1].links.kind);
}

TEST_F(AnnotateTest, NotesWhetherTheFarEndsAreHidden) {
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

TEST_F(AnnotateTest, TakesTheSlowestLinkForAll) {
    describe("pci 0000:00:06.0\nsm 9.0\nlinks 17 26562 switch hidden\n"
             "links 1 13281 switch hidden\n");
    EXPECT_EQ(13281u, annotated("hgx-h200-vm-2")->gpus[0].links.link_mbps);
    std::swap(fake_.gpus[0].links[3], fake_.gpus[0].links[17]);
    EXPECT_EQ(13281u, annotated("hgx-h200-vm-2")->gpus[0].links.link_mbps);
}

TEST_F(AnnotateTest, KnowsUsualSpeedsWhereTheDriverTellsNone) {
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

TEST_F(AnnotateTest, AsksTheFabricInEveryVersion) {
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

/* Whichever function is missing or fails, NVLinks are never made up nor denied: a GPU with links is
 * on switches or unknown, one without is without or unknown. */
TEST_F(AnnotateTest, ToleratesEveryMissingFunctionAndReturnCode) {
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

TEST_F(AnnotateTest, KnowsUnknownLinksFromAbsentOnes) {
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

TEST_F(AnnotateTest, SkipsAGpuWhoseOwnPciIdIsHidden) {
    describe(two_h200());
    fake_.gpus[0].pci_id = LAMPREY_PCI_UNKNOWN;
    Machine machine = annotated("hgx-h200-vm-2");
    ASSERT_EQ(2u, machine->ngpus);
    EXPECT_EQ(LAMPREY_NVLINK_UNKNOWN, machine->gpus[0].links.kind);
    EXPECT_EQ(LAMPREY_NVLINK_SWITCH, machine->gpus[1].links.kind);
}

TEST_F(AnnotateTest, MarksAMachineWithoutGpusToo) {
    Tree tree = load_tree("no-gpu");
    Tree bare = bare_tree("no-gpu");
    ASSERT_EQ(0, annotate(bare));
    expect_equal(*read_tree(tree.get()), *read_tree(bare.get()));
}

TEST_F(AnnotateTest, FindsVirtualFunctions) {
    describe("pci 0000:00:06.4\nsm 9.0\nlinks 18 26562 switch hidden\n");
    Tree tree = load_tree("no-gpu");
    ASSERT_EQ(0, annotate(tree));
    EXPECT_EQ(lamprey_pci_id(0, 0, 6, 4), read_tree(tree.get())->gpus[0].pci_id);
}

TEST_F(AnnotateTest, IsWantedOnThisMachineOnly) {
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

/* The real loader on a real library, which fixtures/fake_nvml.c stands in for. */
constexpr char kLibrary[] = "tests/libfake_nvml.so";

TEST(NvmlTest, LoadsVersionedSymbols) {
    Reason reason;
    lamprey_nvml nvml;
    ASSERT_EQ(0, lamprey_nvml_load(kLibrary, &nvml, reason)) << reason.text();
    EXPECT_NE(nullptr, nvml.field_values);
    EXPECT_NE(nullptr, nvml.p2p_status);
    EXPECT_EQ(nullptr, nvml.fabric_info_v1);
    EXPECT_EQ(nullptr, nvml.link_remote_type);
}

TEST(NvmlTest, SaysWhatIsMissing) {
    Reason reason;
    lamprey_nvml nvml;
    EXPECT_EQ(ENOENT, lamprey_nvml_load("libnvidia-ml-of-nobody.so.1", &nvml, reason));
    EXPECT_EQ(0u, reason.text().find("no NVML: libnvidia-ml-of-nobody.so.1: "));
    EXPECT_EQ(ENOENT, lamprey_nvml_load("libm.so.6", &nvml, reason));
    EXPECT_EQ("NVML (libm.so.6) lacks nvmlInit_v2", reason.text());
}

TEST(LoadTest, DescribesThisMachineThroughNvml) {
    lamprey_machine *raw = nullptr;
    Reason note;
    Reason reason;
    ASSERT_EQ(0, lamprey_load_live(kLibrary, &raw, note, reason)) << reason.text();
    Machine machine(raw, lamprey_machine_destroy);
    EXPECT_EQ("", note.text());
    EXPECT_STREQ("nvml 1.2.3", machine->probe);
    for (uint32_t i = 0; i < 2; i++) {
        const lamprey_machine_gpu *gpu =
            lamprey_machine_find(machine.get(), lamprey_pci_id(0x7f00 + i, 1, 0, 0));
        ASSERT_NE(nullptr, gpu);
        EXPECT_EQ(LAMPREY_NVLINK_SWITCH, gpu->links.kind);
        EXPECT_EQ(4u, gpu->links.links_active);
        EXPECT_EQ(26562u, gpu->links.link_mbps);
        EXPECT_EQ(3u, gpu->links.fabric_state);
    }
}

TEST(LoadTest, ExportsWhatItSees) {
    std::string path = testing::TempDir() + "topology_annotate_export.xml";
    Reason note;
    Reason reason;
    lamprey_machine *raw = nullptr;
    ASSERT_EQ(0, lamprey_load(nullptr, kLibrary, path.c_str(), &raw, note, reason))
        << reason.text();
    Machine live(raw, lamprey_machine_destroy);
    ASSERT_EQ(0, lamprey_load_file(path.c_str(), &raw, reason)) << reason.text();
    Machine imported(raw, lamprey_machine_destroy);
    expect_equal(*live, *imported);
    remove(path.c_str());
    raw = nullptr;
    EXPECT_EQ(EIO, lamprey_load(nullptr, kLibrary, "/nonexistent/x.xml", &raw, note, reason));
    EXPECT_EQ(0u, reason.text().find("hwloc cannot write /nonexistent/x.xml"));
    EXPECT_EQ(nullptr, raw);
}

TEST(LoadTest, GoesOnWithoutNvml) {
    lamprey_machine *raw = nullptr;
    Reason note;
    Reason reason;
    ASSERT_EQ(0, lamprey_load_live("libnvidia-ml-of-nobody.so.1", &raw, note, reason));
    Machine machine(raw, lamprey_machine_destroy);
    EXPECT_EQ(0u, note.text().find("no NVML: "));
    EXPECT_STREQ("", machine->probe);
    for (size_t i = 0; i < machine->ngpus; i++) {
        EXPECT_EQ(LAMPREY_NVLINK_UNKNOWN, machine->gpus[i].links.kind);
    }
}

} // namespace
