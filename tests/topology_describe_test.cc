// SPDX-License-Identifier: Apache-2.0
// liblamprey-topology.so as the plugin uses it: opened by path, one symbol.
#include "topology/topology.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

// hwloc 2.9's own XML parser loses one object where a truncated file breaks off.
extern "C" const char *__lsan_default_suppressions();
extern "C" const char *__lsan_default_suppressions()
{
    return "leak:hwloc_alloc_setup_object\n";
}

namespace {

constexpr char kLibrary[] = "topology/liblamprey-topology.so";
constexpr char kEmulator[] = "tests/fixtures/emulator-8.xml";

struct Answer {
    int code;
    lamprey_gpu_links links;
    std::string reason;
};

class DescribeTest : public testing::Test {
  protected:
    static void SetUpTestSuite()
    {
        /* Has NVML's soname, and so is this machine's NVML from here on. */
        nvml_ = dlopen("tests/libfake_nvml.so", RTLD_NOW | RTLD_LOCAL);
        ASSERT_NE(nullptr, nvml_) << dlerror();
    }
    void SetUp() override
    {
        /* Stays, as in the plugin; also, LSan can't name the functions of what is gone. */
        library_ = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        ASSERT_NE(nullptr, library_) << dlerror();
        describe_ =
            reinterpret_cast<lamprey_topology_describe>(dlsym(library_, "lampreyTopologyDescribe"));
        ASSERT_NE(nullptr, describe_);
    }
    void TearDown() override
    {
        if (library_ != nullptr) {
            dlclose(library_);
        }
    }

    Answer ask(const char *path, uint64_t pci_id) const
    {
        Answer answer = {};
        char reason[512];
        memset(reason, 'x', sizeof(reason));
        answer.code = describe_(LAMPREY_TOPOLOGY_VERSION, path, pci_id, &answer.links,
                                sizeof(answer.links), reason, sizeof(reason));
        answer.reason = reason;
        return answer;
    }

    static void *nvml_;
    void *library_ = nullptr;
    lamprey_topology_describe describe_ = nullptr;
};

void *DescribeTest::nvml_;

uint64_t emulated(uint32_t gpu)
{
    return lamprey_pci_id(0, 0x10 + gpu, 0, 0);
}

void copy_file(const std::string &from, const std::string &to)
{
    std::ifstream in(from, std::ios::binary);
    ASSERT_TRUE(in.good());
    std::ofstream(to, std::ios::binary | std::ios::trunc) << in.rdbuf();
}

void copy_fixture(const std::string &name, const std::string &path)
{
    copy_file("tests/fixtures/" + name + ".xml", path);
}

TEST_F(DescribeTest, DescribesTheEmulatorsMachine)
{
    for (uint32_t gpu = 0; gpu < 8; gpu++) {
        Answer answer = ask(kEmulator, emulated(gpu));
        EXPECT_EQ(0, answer.code);
        EXPECT_EQ("", answer.reason);
        EXPECT_EQ(LAMPREY_NVLINK_SWITCH, answer.links.kind);
        EXPECT_EQ(18u, answer.links.links_active);
        EXPECT_EQ(26562u, answer.links.link_mbps);
        EXPECT_EQ(0u, answer.links.mig);
    }
}

TEST_F(DescribeTest, DescribesThisMachine)
{
    for (uint32_t gpu = 0; gpu < 2; gpu++) {
        Answer answer = ask(nullptr, lamprey_pci_id(0x7f00 + gpu, 1, 0, 0));
        EXPECT_EQ(0, answer.code) << answer.reason;
        EXPECT_EQ(LAMPREY_NVLINK_SWITCH, answer.links.kind);
        EXPECT_EQ(4u, answer.links.links_active);
    }
}

/* A copy of the library has probed nothing yet. */
TEST_F(DescribeTest, ProbesAgainWhileTheFabricIsInProgress)
{
    std::string path = testing::TempDir() + "topology_describe_copy.so";
    copy_file(kLibrary, path);
    void *copy = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    ASSERT_NE(nullptr, copy) << dlerror();
    remove(path.c_str());
    describe_ = reinterpret_cast<lamprey_topology_describe>(dlsym(copy, "lampreyTopologyDescribe"));
    auto *state = static_cast<unsigned *>(dlsym(nvml_, "fake_nvml_fabric_state"));
    ASSERT_NE(nullptr, state);
    const unsigned steps[][2] = {{2, 2}, {2, 2}, {3, 3}, {2, 3}}; /* told, answered */
    for (const auto &step : steps) {
        *state = step[0];
        EXPECT_EQ(step[1], ask(nullptr, lamprey_pci_id(0x7f00, 1, 0, 0)).links.fabric_state);
    }
    *state = 3;
    dlclose(copy);
}

TEST_F(DescribeTest, ExportsOneSymbol)
{
    for (const char *name : {"lamprey_machine_create", "lamprey_tree_load", "lamprey_annotate",
                             "lamprey_probe_create", "lamprey_nvml_load", "lamprey_load_file"}) {
        EXPECT_EQ(nullptr, dlsym(library_, name)) << name;
    }
}

TEST_F(DescribeTest, RefusesOtherVersionsAndSizes)
{
    lamprey_gpu_links links;
    memset(&links, 0x5a, sizeof(links));
    const lamprey_gpu_links before = links;
    char reason[128];
    for (uint32_t version : {0u, LAMPREY_TOPOLOGY_VERSION + 1u}) {
        EXPECT_EQ(EINVAL, describe_(version, kEmulator, emulated(0), &links, sizeof(links), reason,
                                    sizeof(reason)));
        EXPECT_EQ("asked for version " + std::to_string(version) + ", this library has " +
                      std::to_string(LAMPREY_TOPOLOGY_VERSION),
                  reason);
    }
    for (size_t size : {sizeof(links) - 1, sizeof(links) + 1, size_t{0}}) {
        EXPECT_EQ(EINVAL, describe_(LAMPREY_TOPOLOGY_VERSION, kEmulator, emulated(0), &links, size,
                                    reason, sizeof(reason)));
        EXPECT_EQ("asked for " + std::to_string(size) + " bytes, this library has 200", reason);
    }
    EXPECT_EQ(EINVAL, describe_(LAMPREY_TOPOLOGY_VERSION, kEmulator, emulated(0), nullptr,
                                sizeof(links), reason, sizeof(reason)));
    EXPECT_EQ(0, memcmp(&before, &links, sizeof(links)));
}

TEST_F(DescribeTest, NeedsNoRoomForAReason)
{
    lamprey_gpu_links links;
    EXPECT_EQ(ENODEV,
              describe_(LAMPREY_TOPOLOGY_VERSION, kEmulator, 1, &links, sizeof(links), nullptr, 0));
    EXPECT_EQ(ENODEV, describe_(LAMPREY_TOPOLOGY_VERSION, kEmulator, 1, &links, sizeof(links),
                                nullptr, 100));
    char reason[4] = {'x', 'x', 'x', 'x'};
    EXPECT_EQ(ENODEV,
              describe_(LAMPREY_TOPOLOGY_VERSION, kEmulator, 1, &links, sizeof(links), reason, 3));
    EXPECT_STREQ("no", reason);
    EXPECT_EQ('x', reason[3]);
}

TEST_F(DescribeTest, NamesAGpuThatIsNotThere)
{
    Answer answer = ask(kEmulator, lamprey_pci_id(0, 0x99, 0, 0));
    EXPECT_EQ(ENODEV, answer.code);
    EXPECT_EQ("no GPU 0000:99:00.0 among the 8 of tests/fixtures/emulator-8.xml", answer.reason);
    answer = ask(nullptr, lamprey_pci_id(0x7fff, 0x99, 0, 0));
    EXPECT_EQ(ENODEV, answer.code);
    EXPECT_EQ(0u, answer.reason.find("no GPU 7fff:99:00.0 among the ")) << answer.reason;
}

TEST_F(DescribeTest, SaysThatLinksAreUnknown)
{
    Answer answer = ask("tests/fixtures/not-annotated-8.xml", lamprey_pci_id(0, 0x43, 0, 0));
    EXPECT_EQ(0, answer.code);
    EXPECT_EQ(LAMPREY_NVLINK_UNKNOWN, answer.links.kind);
    EXPECT_EQ("the NVLinks of GPU 0000:43:00.0 are unknown: the topology carries no annotation",
              answer.reason);
    answer = ask("tests/fixtures/container-2-of-8.xml", lamprey_pci_id(0, 0x43, 0, 0));
    EXPECT_EQ(0, answer.code);
    EXPECT_EQ("the NVLinks of GPU 0000:43:00.0 are unknown: the driver did not tell",
              answer.reason);
}

TEST_F(DescribeTest, RefusesFilesThatAreNoTopology)
{
    for (const char *path :
         {"tests/fixtures/malformed-truncated.xml", "tests/fixtures/malformed-uuid.xml",
          "tests/fixtures/malformed-v4.xml", "tests/fixtures/malformed-empty.xml",
          "tests/fixtures/missing.xml", "tests/fixtures", ""}) {
        lamprey_gpu_links links;
        memset(&links, 0x5a, sizeof(links));
        const lamprey_gpu_links before = links;
        char reason[512] = "";
        EXPECT_EQ(EIO, describe_(LAMPREY_TOPOLOGY_VERSION, path, emulated(0), &links, sizeof(links),
                                 reason, sizeof(reason)))
            << path;
        EXPECT_STRNE("", reason) << path;
        EXPECT_EQ(0, memcmp(&before, &links, sizeof(links))) << path;
    }
    /* And the good file is still good. */
    EXPECT_EQ(0, ask(kEmulator, emulated(0)).code);
}

TEST_F(DescribeTest, SeesThatAFileHasChanged)
{
    std::string path = testing::TempDir() + "topology_describe.xml";
    copy_fixture("emulator-8", path);
    EXPECT_EQ(0, ask(path.c_str(), emulated(0)).code);
    copy_fixture("hgx-h100-8", path);
    EXPECT_EQ(ENODEV, ask(path.c_str(), emulated(0)).code);
    EXPECT_EQ(0, ask(path.c_str(), lamprey_pci_id(0, 0x1b, 0, 0)).code);
    remove(path.c_str());
    EXPECT_EQ(EIO, ask(path.c_str(), lamprey_pci_id(0, 0x1b, 0, 0)).code);
}

TEST_F(DescribeTest, AnswersFromWhatItKeptWhileTheFileIsTheSame)
{
    std::string path = testing::TempDir() + "topology_describe_kept.xml";
    copy_fixture("emulator-8", path);
    struct stat before;
    ASSERT_EQ(0, stat(path.c_str(), &before));
    ASSERT_EQ(0, ask(path.c_str(), emulated(0)).code);
    /* Same size, same times, other bytes: only a second reading could tell. */
    std::ofstream(path, std::ios::binary | std::ios::trunc) << std::string(before.st_size, ' ');
    struct timespec times[2] = {before.st_atim, before.st_mtim};
    ASSERT_EQ(0, utimensat(AT_FDCWD, path.c_str(), times, 0));
    EXPECT_EQ(0, ask(path.c_str(), emulated(7)).code);
    remove(path.c_str());
}

TEST_F(DescribeTest, AnswersManyThreads)
{
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (uint32_t id = 0; id < 8; id++) {
        threads.emplace_back([this, id, &wrong] {
            for (int i = 0; i < 20; i++) {
                const char *path = (id + i) % 3 == 0   ? "tests/fixtures/hgx-h200-vm-2.xml"
                                   : (id + i) % 3 == 1 ? kEmulator
                                                       : nullptr;
                Answer emulator = ask(path, emulated(id));
                bool expected = path == kEmulator
                                    ? emulator.code == 0 && emulator.links.links_active == 18
                                    : emulator.code == ENODEV || path == nullptr;
                wrong += !expected;
            }
        });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    EXPECT_EQ(0, wrong.load());
}

TEST_F(DescribeTest, KeepsNothingOpenBetweenCalls)
{
    auto descriptors = [] {
        int open = 0;
        for (int fd = 0; fd < 1024; fd++) {
            struct stat status;
            open += fstat(fd, &status) == 0;
        }
        return open;
    };
    ask(kEmulator, emulated(0));
    ask(nullptr, emulated(0));
    int before = descriptors();
    for (int i = 0; i < 5; i++) {
        ask(i % 2 == 0 ? kEmulator : "tests/fixtures/l40s-8.xml", emulated(0));
        ask("tests/fixtures/malformed-number.xml", emulated(0));
        ask("tests/fixtures/malformed-truncated.xml", emulated(0));
        ask(nullptr, emulated(0));
    }
    EXPECT_EQ(before, descriptors());
}

} // namespace
