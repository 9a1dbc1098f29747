// SPDX-License-Identifier: Apache-2.0
// Communicators over several hosts of one NVLink domain, and what keeps them apart.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

class ServingFabric : public Serving {
  protected:
    void SetUp() override
    {
        Serving::SetUp();
        tray_ = std::string(getenv("LAMPREY_TOPOLOGY"));
        tray_.replace(tray_.rfind('/'), std::string::npos, "/emulator-tray.xml");
        setenv("LAMPREY_TOPOLOGY", tray_.c_str(), 1);
        setenv("LAMPREY_EMULATOR_IMEX", "0", 1);
    }

    // Puts rank on a GPU of a host that has so many.
    static void seat(int rank, int gpus)
    {
        const std::string host = std::to_string(rank / gpus);
        setenv("LAMPREY_EMULATOR_GPUS", std::to_string(gpus).c_str(), 1);
        setenv("LAMPREY_EMULATOR_HOST", host.c_str(), 1);
        setenv("NCCL_HOSTID", ("host-" + host).c_str(), 1);
    }

    // Four ranks, two a host.
    void expect_four_told(const std::string &what, const std::function<void(int)> &prepare)
    {
        expect_told(4, what, [&](int rank) {
            seat(rank, 2);
            prepare(rank);
            mixed_rounds(rank, 4);
        });
    }

    void expect_four_refused(const std::string &reason, const std::function<void(int)> &prepare)
    {
        expect_refused(4, reason, [&](int rank) {
            seat(rank, 2);
            prepare(rank);
        });
    }

    std::string tray_;
};

TEST_F(ServingFabric, ServesRanksOfSeveralHosts)
{
    const struct {
        int hosts;
        int gpus; // each
    } worlds[] = {{2, 1}, {4, 1}, {4, 2}, {2, 4}};
    for (const auto &world : worlds) {
        const int nranks = world.hosts * world.gpus;
        SCOPED_TRACE(world.hosts);
        memset(shared, 0, sizeof *shared);
        processes(nranks, [&](int rank) {
            seat(rank, world.gpus);
            mixed_rounds(rank, nranks);
        });
    }
}

TEST_F(ServingFabric, ServesProcessesOfSeveralRanksOnSeveralHosts)
{
    processes(2, [](int host) {
        std::vector<std::thread> ranks;
        seat(2 * host, 2);
        for (int rank = 2 * host; rank < 2 * host + 2; rank++) {
            ranks.emplace_back([rank] { mixed_rounds(rank, 4); });
        }
        for (std::thread &rank : ranks) {
            rank.join();
        }
    });
}

TEST_F(ServingFabric, SaysThatMemoryCrossesHosts)
{
    expect_four_told("are served (across hosts, ", [](int) {});
}

// Descriptors need no IMEX channel, and the ranks of one host have no use for more.
TEST_F(ServingFabric, KeepsToDescriptorsOnOneHost)
{
    expect_four_told("are served (one host, ", [](int rank) {
        seat(rank, 4);
        unsetenv("LAMPREY_EMULATOR_IMEX");
    });
}

// A name for each rank is how NCCL is made to take several on one GPU: no host of its own then.
TEST_F(ServingFabric, LeavesHostNamesAsideWhereRanksShareAGpu)
{
    expect_four_told("are served (one host, ", [](int rank) {
        setenv("NCCL_HOSTID", std::to_string(rank).c_str(), 1);
        setenv("LAMPREY_SHARE_GPU", "1", 1);
        setenv("LAMPREY_EMULATOR_GPUS", "1", 1);
        setenv("LAMPREY_EMULATOR_HOST", "0", 1);
    });
}

TEST_F(ServingFabric, RefusesWhereOneHostHasNoImexChannel)
{
    expect_four_refused("rank 2: no staging memory for other hosts to map (not permitted; is there "
                        "an IMEX channel?)",
                        [](int rank) {
                            if (rank / 2 == 1) {
                                unsetenv("LAMPREY_EMULATOR_IMEX");
                            }
                        });
}

TEST_F(ServingFabric, RefusesWhereHostsHaveDifferentChannels)
{
    expect_four_refused("rank 0: rank 2's staging memory can't be mapped (CUDA driver call failed)",
                        [](int rank) { setenv("LAMPREY_EMULATOR_IMEX", rank / 2 ? "1" : "0", 1); });
}

TEST_F(ServingFabric, ObeysNcclsSettingsOfTheFabric)
{
    const std::string hosts = "ranks 0 and 2 are on different hosts; ";
    expect_four_refused(hosts + "ranks 0 and 2 are in different NVLink clusters",
                        [](int rank) { setenv("NCCL_MNNVL_UUID", rank / 2 ? "0x1234" : "77", 1); });
    expect_four_refused(hosts + "ranks 0 and 2 are in different cliques (5, 6)",
                        [](int rank) { setenv("NCCL_MNNVL_CLIQUE_ID", rank / 2 ? "6" : "5", 1); });
    expect_four_refused(hosts + "rank 1 keeps to its host (NCCL_MNNVL_ENABLE=0)", [](int rank) {
        if (rank == 1) {
            setenv("NCCL_MNNVL_ENABLE", "0", 1);
        }
    });
}

// Machines that by their own account are in different clusters, or in none, but not by the user's.
TEST_F(ServingFabric, BelievesTheUserThatHostsAreOneCluster)
{
    const std::string hosts = "ranks 0 and 2 are on different hosts; ";
    std::string alone = tray_;
    alone.replace(alone.rfind('/'), std::string::npos, "/emulator-8.xml");
    auto prepare = [&](int rank) {
        if (rank / 2 == 1) {
            setenv("LAMPREY_TOPOLOGY", alone.c_str(), 1);
        }
    };
    auto join = [&](int rank, const char *clique) {
        prepare(rank);
        setenv("NCCL_MNNVL_UUID", "0x1234", 1);
        setenv("NCCL_MNNVL_CLIQUE_ID", clique, 1);
    };
    expect_four_refused(hosts + "rank 2's GPU belongs to no NVLink cluster", prepare);
    expect_four_told("are served (across hosts, ", [&](int rank) { join(rank, "3"); });
    // Each chassis a clique: only one of them is known.
    expect_four_refused(hosts + "ranks 0 and 2 are in different cliques (1337170348, 0)",
                        [&](int rank) { join(rank, "-2"); });
}

TEST_F(ServingFabric, LeaksNothingWhereSetUpsFail)
{
    for (const char *fault : {"cuMemImportFromShareableHandle:0", "cuMemExportToShareableHandle:0",
                              "cuMemCreate:0:800"}) {
        SCOPED_TRACE(fault);
        memset(shared, 0, sizeof *shared);
        expect_refused_without_leaks(4, [&](int rank) {
            seat(rank, 2);
            if (rank == 1) {
                setenv("LAMPREY_EMULATOR_FAIL", fault, 1);
            }
        });
    }
    memset(shared, 0, sizeof *shared);
    expect_refused_without_leaks(4, [](int rank) { // half of the peers' memory is mapped
        seat(rank, 2);
        setenv("LAMPREY_EMULATOR_IMEX", rank / 2 ? "1" : "0", 1);
    });
}

} // namespace
