// SPDX-License-Identifier: Apache-2.0
// When nothing is served, and that all ranks agree on it.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

TEST_F(Serving, StandsDownTogetherWhenOneRankIsDisabled)
{
    expect_refused(3, [](int rank) {
        if (rank == 1) {
            setenv("LAMPREY_DISABLE", "1", 1);
        }
    });
}

TEST_F(Serving, StandsDownUnderNcclsOwnSettings)
{
    for (const char *setting : {"NCCL_P2P_DISABLE=1", "NCCL_P2P_LEVEL=LOC", "NCCL_CHECK_POINTERS=1",
                                "NCCL_CHECK_MODE=DEBUG_LOCAL", "NCCL_LAUNCH_ORDER_IMPLICIT=1"}) {
        memset(shared, 0, sizeof *shared);
        expect_refused(2, [&](int rank) {
            const std::string text = setting;
            const size_t equals = text.find('=');
            if (rank == 0) { // one rank's environment is enough
                setenv(text.substr(0, equals).c_str(), text.substr(equals + 1).c_str(), 1);
            }
        });
    }
}

TEST_F(Serving, RefusesRanksThatDisagree)
{
    expect_refused(2, [](int rank) { setenv("LAMPREY_MAX_BYTES", rank ? "64K" : "32K", 1); });
    memset(shared, 0, sizeof *shared);
    expect_refused(2, [](int rank) { setenv("LAMPREY_MAX_CTAS", rank ? "16" : "32", 1); });
}

TEST_F(Serving, FallsBackTogetherWhenMemoryOrMappingFails)
{
    // The first allocation of a process is the exchange's, the second the staging memory's.
    for (const char *fault :
         {"cuMemCreate:2", "cuMemExportToShareableHandle:1", "cuMemImportFromShareableHandle:1",
          "cuMemHostAlloc:1", "cuLibraryLoadData:1", "cuLibraryGetKernel:5", "cuMemMap:3"}) {
        SCOPED_TRACE(fault);
        memset(shared, 0, sizeof *shared);
        expect_refused(2, [&](int rank) {
            if (rank == 1) {
                setenv("LAMPREY_EMULATOR_FAIL", fault, 1);
            }
        });
    }
}

// Memory that can be mapped but not reached is found before any call uses it.
TEST_F(Serving, RefusesPeersThatStoresDoNotReach)
{
    expect_refused(3, [](int rank) {
        if (rank == 1) {
            setenv("LAMPREY_EMULATOR_DEAF_IMPORTS", "1", 1);
        }
    });
}

TEST_F(Serving, RefusesAnOldDriver)
{
    expect_refused(2, [](int rank) {
        if (rank == 1) {
            setenv("LAMPREY_EMULATOR_DRIVER_VERSION", "12000", 1);
        }
    });
}

TEST_F(Serving, RefusesWithoutTopology)
{
    unlink((directory_ + "/liblamprey-topology.so").c_str());
    expect_refused(2, [](int) {});
}

TEST_F(Serving, RefusesGpusThatTheTopologyDoesNotKnow)
{
    FILE *file = fopen((directory_ + "/broken.xml").c_str(), "w");
    ASSERT_NE(file, nullptr);
    fputs("<?xml version=\"1.0\"?>\n<topology version=\"2.0\"><obj", file);
    fclose(file);
    expect_refused(
        2, [this](int) { setenv("LAMPREY_TOPOLOGY", (directory_ + "/broken.xml").c_str(), 1); });
    unlink((directory_ + "/broken.xml").c_str());
}

TEST_F(Serving, RefusesTwoRanksOnOneGpuUnlessToldOtherwise)
{
    expect_refused(2, [](int) { setenv("LAMPREY_EMULATOR_GPUS", "1", 1); });
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
