// SPDX-License-Identifier: Apache-2.0
// Communicators over several hosts of one NVLink domain, and what keeps them apart.
#include <fstream>
#include <sstream>

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

    ~ServingFabric() override
    {
        for (int rank = 0; rank < 8; rank++) {
            unlink(log_of(rank).c_str());
        }
    }

    // Puts rank on a GPU of a host that has so many.
    static void seat(int rank, int gpus)
    {
        const std::string host = std::to_string(rank / gpus);
        setenv("LAMPREY_EMULATOR_GPUS", std::to_string(gpus).c_str(), 1);
        setenv("LAMPREY_EMULATOR_HOST", host.c_str(), 1);
        setenv("NCCL_HOSTID", ("host-" + host).c_str(), 1);
    }

    std::string log_of(int rank) const
    {
        return directory_ + "/rank-" + std::to_string(rank) + ".log";
    }

    // Four ranks, two a host, of which every one says that.
    void expect_told(const std::string &what, const std::function<void(int)> &prepare,
                     const std::function<void(int)> &body = nullptr)
    {
        constexpr int kRanks = 4;
        memset(shared, 0, sizeof *shared);
        auto prepare_all = [&](int rank) {
            seat(rank, 2);
            setenv("NCCL_DEBUG", "INFO", 1);
            setenv("NCCL_DEBUG_FILE", log_of(rank).c_str(), 1);
            prepare(rank);
        };
        if (body) {
            processes(kRanks, [&](int rank) {
                prepare_all(rank);
                body(rank);
            });
        } else {
            expect_refused(kRanks, prepare_all);
        }
        for (int rank = 0; rank < kRanks; rank++) {
            std::stringstream log;
            log << std::ifstream(log_of(rank)).rdbuf();
            EXPECT_NE(log.str().find(what), std::string::npos)
                << "rank " << rank << " doesn't say \"" << what << "\":\n"
                << log.str();
            unlink(log_of(rank).c_str());
        }
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
    expect_told(
        "are served (across hosts, ", [](int) {}, [](int rank) { mixed_rounds(rank, 4); });
}

// Descriptors need no IMEX channel, and the ranks of one host have no use for more.
TEST_F(ServingFabric, KeepsToDescriptorsOnOneHost)
{
    expect_told(
        "are served (one host, ",
        [](int rank) {
            seat(rank, 4);
            unsetenv("LAMPREY_EMULATOR_IMEX");
        },
        [](int rank) { mixed_rounds(rank, 4); });
}

TEST_F(ServingFabric, RefusesWhereOneHostHasNoImexChannel)
{
    expect_told("is left to NCCL: rank 2: no staging memory for other hosts to map (not permitted; "
                "is there an IMEX channel?)",
                [](int rank) {
                    if (rank / 2 == 1) {
                        unsetenv("LAMPREY_EMULATOR_IMEX");
                    }
                });
}

TEST_F(ServingFabric, RefusesWhereHostsHaveDifferentChannels)
{
    expect_told("is left to NCCL: rank 0: a peer's staging memory can't be mapped (CUDA driver "
                "call failed)",
                [](int rank) { setenv("LAMPREY_EMULATOR_IMEX", rank / 2 ? "1" : "0", 1); });
}

TEST_F(ServingFabric, ObeysNcclsSettingsOfTheFabric)
{
    const std::string hosts = "is left to NCCL: ranks 0 and 2 are on different hosts; ";
    expect_told(hosts + "ranks 0 and 2 are in different NVLink clusters",
                [](int rank) { setenv("NCCL_MNNVL_UUID", rank / 2 ? "0x1234" : "77", 1); });
    expect_told(hosts + "ranks 0 and 2 are in different cliques (5, 6)",
                [](int rank) { setenv("NCCL_MNNVL_CLIQUE_ID", rank / 2 ? "6" : "5", 1); });
    expect_told(hosts + "rank 1 keeps to its host (NCCL_MNNVL_ENABLE=0)", [](int rank) {
        if (rank == 1) {
            setenv("NCCL_MNNVL_ENABLE", "0", 1);
        }
    });
}

// Machines that are in no cluster, or in different ones by their own account, but not by the
// user's.
TEST_F(ServingFabric, BelievesTheUserThatHostsAreOneCluster)
{
    std::string alone = tray_;
    alone.replace(alone.rfind('/'), std::string::npos, "/emulator-8.xml");
    auto prepare = [&](int rank) {
        if (rank / 2 == 1) {
            setenv("LAMPREY_TOPOLOGY", alone.c_str(), 1);
        }
    };
    expect_told("rank 2's GPU belongs to no NVLink cluster", prepare);
    expect_told(
        "are served (across hosts, ",
        [&](int rank) {
            prepare(rank);
            setenv("NCCL_MNNVL_UUID", "0x1234", 1);
            setenv("NCCL_MNNVL_CLIQUE_ID", "3", 1);
        },
        [](int rank) { mixed_rounds(rank, 4); });
    // A clique is a chassis: one of them doesn't know its own.
    expect_told("are in different cliques (", [&](int rank) {
        prepare(rank);
        setenv("NCCL_MNNVL_UUID", "0x1234", 1);
        setenv("NCCL_MNNVL_CLIQUE_ID", "-2", 1);
    });
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
