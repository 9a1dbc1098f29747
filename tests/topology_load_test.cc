// SPDX-License-Identifier: Apache-2.0
// This machine as it is loaded, with NVML and without.
#include "topology/load.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstdio>
#include <string>

#include "tests/fixtures/topology_fixture.h"
#include "topology/nvml.h"

namespace {

using lamprey::expect_equal;
using lamprey::Machine;
using lamprey::Reason;

/* The real loader on a real library, which fixtures/fake_nvml.c stands in for. */
constexpr char kLibrary[] = "tests/libfake_nvml.so";

TEST(NvmlTest, LoadsVersionedSymbols)
{
    Reason reason;
    lamprey_nvml nvml;
    ASSERT_EQ(0, lamprey_nvml_load(kLibrary, &nvml, reason)) << reason.text();
    EXPECT_NE(nullptr, nvml.field_values);
    EXPECT_NE(nullptr, nvml.p2p_status);
    EXPECT_EQ(nullptr, nvml.fabric_info_v1);
    EXPECT_EQ(nullptr, nvml.link_remote_type);
}

TEST(NvmlTest, SaysWhatIsMissing)
{
    Reason reason;
    lamprey_nvml nvml;
    EXPECT_EQ(ENOENT, lamprey_nvml_load("libnvidia-ml-of-nobody.so.1", &nvml, reason));
    EXPECT_EQ(0u, reason.text().find("no NVML: libnvidia-ml-of-nobody.so.1: "));
    EXPECT_EQ(ENOENT, lamprey_nvml_load("libm.so.6", &nvml, reason));
    EXPECT_EQ("NVML (libm.so.6) lacks nvmlInit_v2", reason.text());
}

TEST(LoadTest, DescribesThisMachineThroughNvml)
{
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

TEST(LoadTest, ExportsWhatItSees)
{
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

TEST(LoadTest, GoesOnWithoutNvml)
{
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
