// SPDX-License-Identifier: Apache-2.0
// Doors that NCCL itself opens: the real one as far as it goes without a GPU, and the emulator's.
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nccl.h>

#include "tests/doors/process.h"

namespace {

std::string real_nccl()
{
    std::vector<std::string> candidates;
    const char *chosen = getenv("LAMPREY_TEST_NCCL");
    if (chosen != nullptr) {
        return chosen;
    }
    const char *home = getenv("CUDA_HOME");
    for (std::string root :
         {std::string(home != nullptr ? home : ""), std::string("/usr/local/cuda")}) {
        for (const char *folder : {"/lib/", "/lib64/"}) {
            candidates.push_back(root + folder + "libnccl.so.2");
        }
    }
    for (const std::string &candidate : candidates) {
        if (access(candidate.c_str(), R_OK) == 0) {
            return candidate;
        }
    }
    return "";
}

#define SKIP_WITHOUT_REAL_NCCL(nccl)                                                               \
    std::string nccl = real_nccl();                                                                \
    if (nccl.empty()) {                                                                            \
        GTEST_SKIP() << "LAMPREY_TEST_NCCL is not set, and there is no libnccl.so.2 in CUDA_HOME " \
                        "or /usr/local/cuda";                                                      \
    }

// The first call of many programs needs a network interface to listen on, nothing more.
Environment for_real(Environment more)
{
    more.emplace("NCCL_SOCKET_IFNAME", "lo");
    return more;
}

void expect_real_redirected(const Outcome &outcome)
{
    EXPECT_EQ(outcome.value("before"), "none") << outcome;
    EXPECT_EQ(outcome.value("unique_id"), "0") << outcome;
    // The way through us to NCCL and back: it is NCCL that refuses.
    EXPECT_EQ(outcome.value("null_communicator"), std::to_string(ncclInvalidArgument)) << outcome;
    expect_redirected(outcome);
}

TEST(RealNccl, OpensTheEnvDoorByName)
{
    SKIP_WITHOUT_REAL_NCCL(nccl);
    Installed installed;
    expect_real_redirected(
        run({"unique-id", nccl},
            for_real({{"NCCL_ENV_PLUGIN", "lamprey"}, {"LD_LIBRARY_PATH", installed.path()}})));
}

TEST(RealNccl, OpensTheEnvDoorByPath)
{
    SKIP_WITHOUT_REAL_NCCL(nccl);
    Installed installed;
    expect_real_redirected(
        run({"unique-id", nccl}, for_real({{"NCCL_ENV_PLUGIN", installed.library()}})));
}

TEST(RealNccl, OpensTheDefaultDoor)
{
    SKIP_WITHOUT_REAL_NCCL(nccl);
    Installed installed;
    installed.add_default_doors();
    expect_real_redirected(
        run({"unique-id", nccl},
            for_real({{"NCCL_PLUGIN", "lamprey"}, {"LD_LIBRARY_PATH", installed.path()}})));
}

TEST(RealNccl, OpensTheDefaultDoorIfItsOwnFileOfSettingsSaysSo)
{
    SKIP_WITHOUT_REAL_NCCL(nccl);
    Installed installed;
    installed.add_default_doors();
    std::string settings = installed.write("nccl.conf", "NCCL_PLUGIN=lamprey\n");
    expect_real_redirected(
        run({"unique-id", nccl},
            for_real({{"NCCL_CONF_FILE", settings}, {"LD_LIBRARY_PATH", installed.path()}})));
}

TEST(RealNccl, IsLeftAloneIfNothingNamesTheLibrary)
{
    SKIP_WITHOUT_REAL_NCCL(nccl);
    Installed installed;
    installed.add_default_doors();
    expect_nothing(run({"unique-id", nccl}, for_real({{"LD_LIBRARY_PATH", installed.path()}})));
}

TEST(RealNccl, IsReachedThroughPreload)
{
    SKIP_WITHOUT_REAL_NCCL(nccl);
    Outcome outcome =
        run({"user", nccl, absolute(kUser)}, for_real({{"LD_PRELOAD", absolute(kLibrary)}}));
    EXPECT_EQ(outcome.value("null_communicator"), std::to_string(ncclInvalidArgument)) << outcome;
    expect_redirected(outcome);
}

TEST(RealNccl, IsAttachedBeforeMainIfTheProgramLinksIt)
{
    SKIP_WITHOUT_REAL_NCCL(nccl);
    expect_redirected(
        run({"loaded", nccl}, for_real({{"LD_PRELOAD", absolute(kLibrary) + " " + nccl}})));
}

// --- wrong calls: the same codes and texts as without us ----------------------------------------

// Call by call, so that a failure names it.
void expect_same_answers(const Outcome &without, const Outcome &with)
{
    const std::vector<std::string> alone = without.all("bad");
    const std::vector<std::string> answers = with.all("bad");
    EXPECT_EQ(without.status, 0) << without;
    EXPECT_EQ(with.status, 0) << with;
    ASSERT_EQ(alone.size(), answers.size()) << with;
    for (size_t i = 0; i < alone.size(); i++) {
        EXPECT_EQ(alone[i], answers[i]);
    }
    EXPECT_EQ(without.value("redirected"), "none");
    expect_redirected(with);
}

TEST(RealNccl, AnswersWrongCallsAsWithoutUs)
{
    SKIP_WITHOUT_REAL_NCCL(nccl);
    Installed installed;
    const Outcome without = run({"bad-calls", nccl}, for_real({}));
    EXPECT_GT(without.all("bad").size(), 50u) << without;
    expect_same_answers(
        without, run({"bad-calls", nccl}, for_real({{"NCCL_ENV_PLUGIN", installed.library()}})));
}

// --- the emulator's NCCL: communicators, and so all doors ---------------------------------------

const std::string kEmulator = "tests/emulator/libnccl.so.2";

// Folders are searched in this order, the emulator's driver first.
Environment for_emulator(const std::string &folder, Environment more)
{
    more["LD_LIBRARY_PATH"] = absolute("tests/emulator") + ":" + folder;
    return more;
}

void expect_communicators(const Outcome &outcome)
{
    EXPECT_EQ(outcome.value("before"), "none") << outcome;
    EXPECT_EQ(outcome.value("init"), "0") << outcome;
    EXPECT_EQ(outcome.all("destroy"), (std::vector<std::string>{"0", "0"})) << outcome;
}

TEST(Emulator, OpensEveryDoorByNameAndByPath)
{
    Installed installed;
    for (const char *kind : {"TUNER", "ENV", "PROFILER", "NET"}) {
        for (const std::string &name : {std::string("lamprey"), installed.library()}) {
            SCOPED_TRACE(std::string(kind) + "=" + name);
            Outcome outcome = run(
                {"communicators", absolute(kEmulator)},
                for_emulator(installed.path(), {{"NCCL_" + std::string(kind) + "_PLUGIN", name}}));
            expect_communicators(outcome);
            expect_redirected(outcome);
        }
    }
}

TEST(Emulator, OpensSeveralDoorsInOneProcess)
{
    Installed installed;
    Outcome outcome =
        run({"communicators", absolute(kEmulator)},
            for_emulator(installed.path(), {{"NCCL_TUNER_PLUGIN", "lamprey"},
                                            {"NCCL_ENV_PLUGIN", "lamprey"},
                                            {"NCCL_PROFILER_PLUGIN", installed.library()},
                                            {"NCCL_NET_PLUGIN", "lamprey"}}));
    expect_communicators(outcome);
    expect_redirected(outcome);
}

TEST(Emulator, OpensTheDefaultDoors)
{
    Installed installed;
    installed.add_default_doors();
    Outcome named = run({"communicators", absolute(kEmulator)},
                        for_emulator(installed.path(), {{"NCCL_PLUGIN", "lamprey"}}));
    expect_communicators(named);
    expect_redirected(named);
    Outcome unnamed =
        run({"communicators", absolute(kEmulator)}, for_emulator(installed.path(), {}));
    expect_communicators(unnamed);
    expect_nothing(unnamed);
}

TEST(Emulator, IsReachedThroughPreload)
{
    Outcome outcome = run({"user", absolute(kEmulator), absolute(kUser)},
                          for_emulator("", {{"LD_PRELOAD", absolute(kLibrary)}}));
    EXPECT_EQ(outcome.value("null_communicator"), std::to_string(ncclInvalidArgument)) << outcome;
    expect_redirected(outcome);
}

// With served communicators, and with NCCL's own check of pointers, which we leave to it.
TEST(Emulator, AnswersWrongCallsAsWithoutUs)
{
    Installed installed;
    installed.copy("topology/liblamprey-topology.so", "liblamprey-topology.so");
    Environment environment = for_emulator(
        installed.path(),
        {{"LAMPREY_TOPOLOGY", absolute("tests/fixtures/emulator-8.xml")}, {"LAMPREY_STATS", "1"}});
    for (const char *pointers : {"0", "1"}) {
        environment["NCCL_CHECK_POINTERS"] = pointers;
        environment.erase("NCCL_TUNER_PLUGIN");
        const Outcome without = run({"bad-calls", absolute(kEmulator), "gpus"}, environment);
        environment["NCCL_TUNER_PLUGIN"] = installed.library();
        const Outcome with = run({"bad-calls", absolute(kEmulator), "gpus"}, environment);
        EXPECT_GT(without.all("bad").size(), 150u) << without;
        expect_same_answers(without, with);
        const bool served = with.log.find(" served=0 ") == std::string::npos;
        EXPECT_EQ(served, *pointers == '0') << with;
    }
}

} // namespace
