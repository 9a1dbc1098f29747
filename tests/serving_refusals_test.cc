// SPDX-License-Identifier: Apache-2.0
// When nothing is served, and that all ranks agree on it.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

// Sets variables of the one rank, "NAME=value", as the environment would hold them.
std::function<void(int)> only_rank(int wanted, const std::string &setting)
{
    return [=](int rank) {
        const size_t equals = setting.find('=');
        if (rank == wanted) {
            setenv(setting.substr(0, equals).c_str(), setting.substr(equals + 1).c_str(), 1);
        }
    };
}

TEST_F(Serving, StandsDownTogetherWhenOneRankIsDisabled)
{
    expect_refused(3, "rank 1: LAMPREY_DISABLE is set", only_rank(1, "LAMPREY_DISABLE=1"));
}

// One rank's environment is enough.
TEST_F(Serving, StandsDownUnderNcclsOwnSettings)
{
    for (const char *setting :
         {"NCCL_P2P_DISABLE=1", "NCCL_CHECK_POINTERS=1", "NCCL_LAUNCH_ORDER_IMPLICIT=1"}) {
        const std::string text = setting;
        expect_refused(2, "rank 0: " + text.substr(0, text.find('=')) + " is set",
                       only_rank(0, setting));
    }
    for (const char *setting : {"NCCL_P2P_LEVEL=LOC", "NCCL_CHECK_MODE=DEBUG_LOCAL"}) {
        expect_refused(2, std::string("rank 0: ") + setting, only_rank(0, setting));
    }
}

TEST_F(Serving, RefusesRanksThatDisagree)
{
    expect_refused(2, "ranks 0 and 1 have different settings (LAMPREY_MAX_BYTES 32768 and 65536,",
                   [](int rank) { setenv("LAMPREY_MAX_BYTES", rank ? "64K" : "32K", 1); });
    expect_refused(2,
                   "ranks 0 and 1 have different settings (LAMPREY_MAX_BYTES -1 and -1, "
                   "LAMPREY_MAX_CTAS 32 and 16)",
                   [](int rank) { setenv("LAMPREY_MAX_CTAS", rank ? "16" : "32", 1); });
    expect_refused(2, "ranks 0 and 1 have different settings (LAMPREY_ALGORITHM)",
                   only_rank(1, "LAMPREY_ALGORITHM=one_shot"));
}

TEST_F(Serving, FallsBackTogetherWhenMemoryOrMappingFails)
{
    // The first pinned memory of a process is the exchange's.
    const struct {
        const char *fault;
        const char *reason; // of rank 1
    } cases[] = {
        {"cuMemCreate:1", "no staging memory (out of memory)"},
        {"cuMemExportToShareableHandle:1", "no staging memory (CUDA driver call failed)"},
        {"cuMemImportFromShareableHandle:1",
         "rank 0's staging memory can't be mapped (CUDA driver call failed)"},
        {"cuMemHostAlloc:2", "no staging memory (out of memory)"},
        {"cuLibraryLoadData:1", "the driver can't load the kernels"},
        {"cuLibraryGetKernel:5", "kernel lamprey_"},
        {"cuMemMap:2", "rank 0's staging memory can't be mapped (out of memory)"},
    };
    for (const auto &c : cases) {
        SCOPED_TRACE(c.fault);
        expect_refused(2, std::string("rank 1: ") + c.reason,
                       only_rank(1, std::string("LAMPREY_EMULATOR_FAIL=") + c.fault));
    }
}

// Memory that can be mapped but not reached is found before any call uses it.
TEST_F(Serving, RefusesPeersThatStoresDoNotReach)
{
    expect_refused(3, "rank 0: stores to the peers' memory don't arrive (system call failed)",
                   only_rank(1, "LAMPREY_EMULATOR_DEAF_IMPORTS=1"));
}

TEST_F(Serving, RefusesAnOldDriver)
{
    expect_refused(2, "rank 1: the CUDA driver (12.0) lacks ",
                   only_rank(1, "LAMPREY_EMULATOR_DRIVER_VERSION=12000"));
}

TEST_F(Serving, RefusesWithoutTopology)
{
    unlink((directory_ + "/liblamprey-topology.so").c_str());
    expect_refused(2, "rank 0: no topology (", [](int) {});
}

TEST_F(Serving, RefusesGpusThatTheTopologyDoesNotKnow)
{
    FILE *file = fopen((directory_ + "/broken.xml").c_str(), "w");
    ASSERT_NE(file, nullptr);
    fputs("<?xml version=\"1.0\"?>\n<topology version=\"2.0\"><obj", file);
    fclose(file);
    expect_refused(
        2, "rank 1: topology: ", only_rank(1, "LAMPREY_TOPOLOGY=" + directory_ + "/broken.xml"));
    unlink((directory_ + "/broken.xml").c_str());
}

TEST_F(Serving, RefusesTwoRanksOnOneGpuUnlessToldOtherwise)
{
    expect_refused(2, "ranks 0 (pid ", [](int) { setenv("LAMPREY_EMULATOR_GPUS", "1", 1); });
    memset(shared, 0, sizeof *shared);
    processes(2, [](int rank) {
        setenv("LAMPREY_EMULATOR_GPUS", "1", 1);
        setenv("LAMPREY_SHARE_GPU", "1", 1);
        mixed_rounds(rank, 2);
    });
}

TEST_F(Serving, WarnsOfMalformedSettingsAndUsesDefaults)
{
    processes(2, [](int rank) {
        setenv("LAMPREY_MAX_BYTES", "lots", 1);
        setenv("LAMPREY_PDL", "maybe", 1);
        mixed_rounds(rank, 2);
    });
}

} // namespace
