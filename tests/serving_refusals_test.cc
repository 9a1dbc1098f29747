// SPDX-License-Identifier: Apache-2.0
// When nothing is served, and that all ranks agree on it.
#include "kernels/check.h"
#include "kernels/instances.h"
#include "kernels/row_instances.h"
#include "tests/failing_calls.h"
#include "tests/serving_world.h"

namespace {

using namespace serving_test;
using lamprey_test::fail_call;
using lamprey_test::failing_call;

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

std::function<void(int)> only_call_of_rank(int wanted, failing_call call, int nth)
{
    return [=](int rank) {
        if (rank == wanted) {
            fail_call(call, nth);
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
        {"cuMemMap:2", "rank 0's staging memory can't be mapped (out of memory)"},
    };
    for (const auto &c : cases) {
        SCOPED_TRACE(c.fault);
        expect_refused(2, std::string("rank 1: ") + c.reason,
                       only_rank(1, std::string("LAMPREY_EMULATOR_FAIL=") + c.fault));
    }
}

// Links that can be mapped but don't carry what they should are found before any call uses them,
// and what goes wrong on one rank meanwhile doesn't keep its peers for ever.
TEST_F(Serving, RefusesAfterAWaitForPeers)
{
    const std::string lost = "stores to the peers' memory don't arrive (system call failed)";
    const std::string failed = "stores to the peers' memory don't arrive (CUDA driver call failed)";
    const struct {
        int nranks;
        std::string reason;
        std::function<void(int)> prepare;
    } cases[] = {
        {3, "rank 0: " + lost, only_rank(1, "LAMPREY_EMULATOR_LINKS=deaf")},
        {2, "rank 0: " + lost, only_rank(1, "LAMPREY_EMULATOR_LINKS=late:6000")},
        {2, "rank 0: " + lost, only_rank(0, "LAMPREY_EMULATOR_LINKS=bent")},
        {2, "rank 0: " + failed, only_rank(0, "LAMPREY_EMULATOR_FAIL=cuLaunchKernelEx:1:719")},
        {2, "rank 0: its staging memory can't be passed on (system call failed)",
         only_call_of_rank(0, failing_call::packet_socket, 2)},
        {2, "rank 0: a peer's staging memory doesn't come (timed out)",
         only_call_of_rank(1, failing_call::packet_socket, 2)},
    };
    std::vector<std::function<void()>> waits;
    for (const auto &c : cases) {
        waits.push_back([&] { expect_refused(c.nranks, c.reason, c.prepare); });
    }
    at_once(waits);
}

// The set-up waits for them; the small message is none that would be served.
TEST_F(Serving, TrustsLinksThatAreSlow)
{
    processes(2, [](int rank) {
        setenv("LAMPREY_EMULATOR_LINKS", "late:200", 1);
        setenv("LAMPREY_MAX_BYTES", "100", 1);
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_F32, 1000, 1, false);
        REQUIRE(stats_of(self.comm).communicators_served == 1);
        REQUIRE(stats_of(self.comm).fallback_size == 1);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

TEST_F(Serving, RefusesKernelsThatCannotBeLoaded)
{
    // Kernels of lanes, with their twins, come first, then the one that checks calls.
    int lanes = LAMPREY_KERNEL_COUNT;
    for (int i = 0; i < LAMPREY_KERNEL_COUNT; i++) {
        lanes += lamprey_fused_kernel_name(i) != nullptr;
    }
    const struct {
        std::string fault;
        std::string reason;
    } cases[] = {
        {"cuLibraryLoadData:1", "the driver can't load the kernels"},
        {"cuLibraryGetKernel:5", "kernel lamprey_"},
        {"cuKernelGetFunction:" + std::to_string(lanes + 1),
         std::string("kernel ") + LAMPREY_CHECK_KERNEL + " can't be loaded"},
        {"cuFuncLoad:1", std::string("kernel ") + lamprey_kernel_name(0) + " can't be loaded"},
    };
    for (const auto &c : cases) {
        SCOPED_TRACE(c.fault);
        expect_refused(2, "rank 1: " + c.reason, only_rank(1, "LAMPREY_EMULATOR_FAIL=" + c.fault));
    }
}

TEST_F(Serving, RefusesGpusWithoutRoom)
{
    expect_refused(2, "rank 1: no multiprocessor takes a CTA",
                   only_rank(1, "LAMPREY_EMULATOR_MULTIPROCESSORS=0"));
    expect_refused(8, "the ranks on one GPU are more than it holds", [](int) {
        setenv("LAMPREY_EMULATOR_GPUS", "1", 1);
        setenv("LAMPREY_SHARE_GPU", "1", 1);
        setenv("LAMPREY_EMULATOR_MULTIPROCESSORS", "1", 1);
    });
}

TEST_F(Serving, RefusesWhenTheSystemDoes)
{
    const struct {
        failing_call call;
        int nth;
        const char *reason;
    } cases[] = {
        {failing_call::getrandom, 1, "no random numbers"},
        {failing_call::stat_of_network, 1, "the host can't be identified (/proc is missing)"},
        {failing_call::packet_socket, 1, "no Unix socket can be opened"},
        {failing_call::accept4, 1, "a peer's staging memory doesn't come (system call failed)"},
#ifndef __SANITIZE_THREAD__ // which has an mmap of its own
        {failing_call::mmap_to_execute, 0,
         "NCCL's code can't be redirected, and callers' slots miss some calls"},
#endif
    };
    for (const auto &c : cases) {
        SCOPED_TRACE(c.reason);
        expect_refused(2, std::string("rank 1: ") + c.reason, only_call_of_rank(1, c.call, c.nth));
    }
}

TEST_F(Serving, RefusesNonBlockingCommunicators)
{
    expect_refused(2, "rank 1: this process makes non-blocking communicators", [](int rank) {
        if (rank == 1) {
            Rank other(0, 1);
            for (int blocking : {1, 0}) { // the first one loads the plugin, which then sees others
                ncclUniqueId id;
                ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
                ncclResult_t state = ncclInProgress;
                config.blocking = blocking;
                REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
                ncclCommInitRankConfig(&other.comm, 1, id, 0, &config);
                while (ncclCommGetAsyncError(other.comm, &state) == ncclSuccess &&
                       state == ncclInProgress) {
                    usleep(200);
                }
                REQUIRE(state == ncclSuccess);
            }
        }
    });
}

TEST_F(Serving, RefusesWhereTheSettingsLeaveNoMessage)
{
    expect_refused(2, "the settings leave no message to serve",
                   [](int) { setenv("LAMPREY_MAX_BYTES", "0", 1); });
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
