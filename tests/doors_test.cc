// SPDX-License-Identifier: Apache-2.0
// The doors of the library as it ships, in front of a fake NCCL that opens them as each release
// does; see doors/ for the real one. One process a trial, since a door can be opened once.
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nccl.h>

#include "tests/doors/process.h"

namespace {

// --- plugin tables, called as each release calls them -------------------------------------------

struct Door {
    const char *kind;
    int version;
};

std::ostream &operator<<(std::ostream &stream, const Door &door)
{
    return stream << door.kind << door.version;
}

class Doors : public testing::TestWithParam<Door> {};

std::vector<Door> all_doors()
{
    std::vector<Door> doors;
    for (int version = 1; version <= 6; version++) {
        doors.push_back({"Tuner", version});
        doors.push_back({"Profiler", version});
    }
    for (int version = 1; version <= 2; version++) {
        doors.push_back({"Env", version});
    }
    for (int version = 5; version <= 12; version++) {
        doors.push_back({"Net", version});
        doors.push_back({"CollNet", version});
    }
    return doors;
}

TEST_P(Doors, AttachesAndChangesNothingElse)
{
    Outcome outcome = run({"door", absolute(kFake), GetParam().kind,
                           std::to_string(GetParam().version), absolute(kLibrary)},
                          {});
    EXPECT_EQ(outcome.value("result"), "0") << outcome;
    EXPECT_EQ(outcome.value("report"), "lamprey: ") << outcome;
    expect_redirected(outcome);
}

TEST_P(Doors, MayBeOpenedAgain)
{
    Outcome outcome = run({"door", absolute(kFake), GetParam().kind,
                           std::to_string(GetParam().version), absolute(kLibrary), "3"},
                          {});
    EXPECT_EQ(outcome.all("report"), std::vector<std::string>(3, "lamprey: ")) << outcome;
    expect_redirected(outcome);
}

INSTANTIATE_TEST_SUITE_P(All, Doors, testing::ValuesIn(all_doors()),
                         testing::PrintToStringParamName());

// --- NCCL's logger ------------------------------------------------------------------------------

bool logs_on_its_own(const Outcome &outcome)
{
    return outcome.log.find("Lamprey INFO") != std::string::npos;
}

TEST(Logger, IsUsedWhereNcclGivesOne)
{
    for (const auto &[kind, version] : std::vector<Door>{
             {"Tuner", 1}, {"Tuner", 5}, {"Env", 2}, {"Profiler", 4}, {"Net", 6}, {"Net", 11}}) {
        Outcome outcome =
            run({"door", absolute(kFake), kind, std::to_string(version), absolute(kLibrary)},
                {{"NCCL_DEBUG", "INFO"}});
        EXPECT_NE(outcome.value("logged"), "0") << kind << version << outcome;
        EXPECT_FALSE(logs_on_its_own(outcome)) << kind << version << outcome;
    }
}

TEST(Logger, IsLeftAloneInAFork)
{
    for (const auto &[kind, version] :
         std::vector<Door>{{"Tuner", 5}, {"Env", 2}, {"Profiler", 4}, {"Net", 11}}) {
        Outcome outcome = run({"door", absolute("tests/doors/libnccl-fork.so"), kind,
                               std::to_string(version), absolute(kLibrary)},
                              {{"NCCL_DEBUG", "INFO"}});
        EXPECT_EQ(outcome.value("logged"), "0") << kind << version << outcome;
        EXPECT_TRUE(logs_on_its_own(outcome)) << kind << version << outcome;
        expect_redirected(outcome);
    }
}

TEST(Logger, IsLeftAloneInAPreview)
{
    Outcome outcome = run({"door", absolute(kFake), "Env", "2", absolute(kLibrary)},
                          {{"NCCL_DEBUG", "INFO"}, {"FAKE_NCCL_SUFFIX", "x1"}});
    EXPECT_EQ(outcome.value("logged"), "0") << outcome;
    EXPECT_TRUE(logs_on_its_own(outcome)) << outcome;
}

// --- chaining -----------------------------------------------------------------------------------

std::string fake_plugin(int version)
{
    return absolute("tests/doors/libfake-plugin-v" + std::to_string(version) + ".so");
}

// What NCCL sees of a chained tuner of some version behind ours of another.
std::string expected_tuner_report(int door, int plugin)
{
    bool serves = door == 1 ? plugin == 1 : plugin >= 2 && plugin <= door;
    if (!serves) {
        return "lamprey: ";
    }
    std::string channels = std::to_string(10 + plugin);
    if (door <= 2) {
        return "lamprey: choice=1,2," + channels + " ";
    }
    std::string cost = plugin == 2 ? "0.000000" : std::to_string(plugin) + ".000000";
    return "lamprey: cost[1][2]=" + cost + " channels=" + channels + " " +
           (door == 6 && plugin == 6 ? "chunk=12346 " : "");
}

TEST(Chain, PassesATunersOpinionOnOrGoesOnWithout)
{
    for (int door = 1; door <= 6; door++) {
        for (int plugin = 1; plugin <= 6; plugin++) {
            Outcome outcome = run(
                {"door", absolute(kFake), "Tuner", std::to_string(door), absolute(kLibrary), "2"},
                {{"LAMPREY_TUNER_PLUGIN", fake_plugin(plugin)}});
            std::string expected = expected_tuner_report(door, plugin);
            EXPECT_EQ(outcome.value("report"), expected)
                << "v" << plugin << " behind v" << door << "\n"
                << outcome;
            size_t warning = outcome.log.find("LAMPREY_TUNER_PLUGIN");
            EXPECT_EQ(warning != std::string::npos, expected == "lamprey: ") << outcome;
            if (warning != std::string::npos) {
                EXPECT_EQ(outcome.log.find("WARN", warning), std::string::npos)
                    << "one warning, not two: " << outcome;
            }
        }
    }
}

TEST(Chain, FindsAPluginByTheNamesThatNcclTries)
{
    Installed installed;
    installed.copy(fake_plugin(6), "libnccl-tuner-mine.so");
    installed.copy(fake_plugin(6), "libnccl-env-mine.so");
    for (const char *name : {"mine", "libnccl-tuner-mine.so"}) {
        Outcome outcome =
            run({"door", absolute(kFake), "Tuner", "6", absolute(kLibrary)},
                {{"LAMPREY_TUNER_PLUGIN", name}, {"LD_LIBRARY_PATH", installed.path()}});
        EXPECT_EQ(outcome.value("report"), expected_tuner_report(6, 6)) << name << outcome;
    }
    Outcome outcome = run({"door", absolute(kFake), "Env", "2", absolute(kLibrary)},
                          {{"LAMPREY_ENV_PLUGIN", "mine"}, {"LD_LIBRARY_PATH", installed.path()}});
    EXPECT_EQ(outcome.value("report"), "lamprey: FAKE_UNSET=from the plugin ") << outcome;
}

TEST(Chain, PassesEnvironmentQuestionsOn)
{
    // door, plugin (6 has env v2 alone, 1 has v1 alone), whether it is asked
    const struct {
        int door;
        int plugin;
        bool asked;
    } cases[] = {{1, 1, true}, {2, 1, true}, {2, 6, true}, {1, 6, false}};
    for (const auto &c : cases) {
        Outcome outcome =
            run({"door", absolute(kFake), "Env", std::to_string(c.door), absolute(kLibrary), "2"},
                {{"LAMPREY_ENV_PLUGIN", fake_plugin(c.plugin)}});
        EXPECT_EQ(outcome.value("report"),
                  c.asked ? "lamprey: FAKE_UNSET=from the plugin " : "lamprey: ")
            << outcome;
        EXPECT_EQ(outcome.log.find("LAMPREY_ENV_PLUGIN") != std::string::npos, !c.asked) << outcome;
    }
}

TEST(Chain, WarnsOnceOfAPluginThatIsNotThere)
{
    Outcome outcome = run({"door", absolute(kFake), "Tuner", "5", absolute(kLibrary), "3"},
                          {{"LAMPREY_TUNER_PLUGIN", "nosuch"}});
    EXPECT_EQ(outcome.value("report"), "lamprey: ");
    size_t first = outcome.log.find("LAMPREY_TUNER_PLUGIN=nosuch");
    ASSERT_NE(first, std::string::npos) << outcome;
    EXPECT_NE(outcome.log.find("libnccl-tuner-nosuch.so"), std::string::npos) << outcome;
    EXPECT_EQ(outcome.log.find("LAMPREY_TUNER_PLUGIN=nosuch", first + 1), std::string::npos)
        << outcome;
    expect_redirected(outcome);
}

TEST(Chain, RefusesItself)
{
    for (const char *kind : {"Tuner", "Env"}) {
        std::string setting =
            strcmp(kind, "Tuner") == 0 ? "LAMPREY_TUNER_PLUGIN" : "LAMPREY_ENV_PLUGIN";
        Outcome outcome = run({"door", absolute(kFake), kind, "2", absolute(kLibrary)},
                              {{setting, absolute(kLibrary)}});
        EXPECT_EQ(outcome.value("report"), "lamprey: ") << outcome;
        EXPECT_NE(outcome.log.find(setting), std::string::npos) << outcome;
    }
}

TEST(Chain, TakesNoneAsNone)
{
    Outcome outcome = run({"door", absolute(kFake), "Tuner", "5", absolute(kLibrary)},
                          {{"LAMPREY_TUNER_PLUGIN", "none"}});
    EXPECT_EQ(outcome.value("report"), "lamprey: ");
    EXPECT_EQ(outcome.log.find("LAMPREY_TUNER_PLUGIN"), std::string::npos) << outcome;
}

// --- LD_PRELOAD ---------------------------------------------------------------------------------

TEST(Preload, ForwardsEveryCallUnchangedAndOnce)
{
    Outcome outcome =
        run({"user", absolute(kFake), absolute(kUser)}, {{"LD_PRELOAD", absolute(kLibrary)}});
    EXPECT_EQ(outcome.value("before"), "none") << "NCCL comes after the library here";
    EXPECT_EQ(outcome.value("wrong"), "0") << outcome;
    expect_redirected(outcome);
}

TEST(Preload, AttachesBeforeMainWhereNcclIsMappedAlready)
{
    Outcome outcome = run({"loaded", absolute(kFake)},
                          {{"LD_PRELOAD", absolute(kLibrary) + " " + absolute(kFake)}});
    expect_redirected(outcome);
}

TEST(Preload, IsInvalidUsageWhereThereIsNoNccl)
{
    Outcome outcome = run({"alone", absolute(kUser)}, {{"LD_PRELOAD", absolute(kLibrary)}});
    EXPECT_EQ(outcome.status, 0) << outcome;
    EXPECT_EQ(outcome.value("null_communicator"), std::to_string(ncclInvalidUsage)) << outcome;
    EXPECT_EQ(outcome.log, "");
}

TEST(Preload, LeavesTwoNcclsToThemselves)
{
    Installed installed;
    std::string second = installed.copy(kFake, "libother.so");
    Outcome outcome = run({"two", absolute(kFake), second}, {{"LD_PRELOAD", absolute(kLibrary)}});
    EXPECT_EQ(outcome.status, 0) << outcome;
    EXPECT_EQ(outcome.value("broadcasts_0"), "1") << outcome;
    EXPECT_EQ(outcome.value("broadcasts_1"), "1") << outcome;
}

TEST(Preload, LeavesProgramsWithoutNcclAlone)
{
    Outcome outcome = run({}, {{"LD_PRELOAD", absolute(kLibrary)}});
    EXPECT_EQ(outcome.status, 64) << outcome;
    EXPECT_EQ(outcome.log, "usage: caller COMMAND ARGUMENT...\n");
}

// Launchers start many of these.
TEST(Preload, OpensNothingInProgramsWithoutNccl)
{
    Outcome outcome = run({}, {{"LD_PRELOAD", absolute(kLibrary)}, {"LD_DEBUG", "files"}});
    EXPECT_NE(outcome.log.find("liblamprey.so"), std::string::npos) << outcome;
    for (const char *other : {"libcuda", "libnccl", "liblamprey-topology", "hwloc", "nvidia"}) {
        EXPECT_EQ(outcome.log.find(other), std::string::npos) << other << outcome;
    }
}

TEST(FirstCopy, TellsTheFirstFromTheOthers)
{
    Installed installed;
    std::string one = installed.copy("tests/doors/libcopy.so", "one.so");
    std::string two = installed.copy("tests/doors/libcopy.so", "two.so");
    std::string three = installed.copy("tests/doors/libcopy.so", "three.so");
    Outcome outcome = run({"first-copy", one, two, three, one, two}, {});
    EXPECT_EQ(outcome.all("first"), (std::vector<std::string>{"1", "0", "0", "1", "0"})) << outcome;
}

TEST(FirstCopy, SecondLibraryStaysPassive)
{
    Installed installed;
    Outcome outcome = run({"door", absolute(kFake), "Tuner", "5", installed.library()},
                          {{"LD_PRELOAD", absolute(kLibrary) + " " + absolute(kFake)}});
    EXPECT_EQ(outcome.value("report"), "lamprey: ") << outcome;
    EXPECT_EQ(outcome.value("redirected"), "all") << outcome;
    EXPECT_EQ(outcome.value("copies"), "2") << outcome;
    Outcome calls = run({"user", absolute(kFake), absolute(kUser)},
                        {{"LD_PRELOAD", absolute(kLibrary) + " " + installed.library()}});
    EXPECT_EQ(calls.value("wrong"), "0") << calls;
}

TEST(FirstCopy, SecondLibraryHandsItsDoorToTheFirst)
{
    Installed installed;
    Outcome outcome =
        run({"after", absolute(kLibrary), absolute(kFake), "Tuner", "5", installed.library()}, {});
    EXPECT_EQ(outcome.value("redirected"), "all") << outcome;
    EXPECT_EQ(outcome.value("copies"), "2") << outcome;
}

TEST(FirstCopy, LinkingTheLibraryIsNotAskingForIt)
{
    Outcome outcome = run({"linked", absolute(kLibrary), absolute(kFake), absolute(kUser)}, {});
    EXPECT_EQ(outcome.value("before"), "none") << outcome;
    EXPECT_EQ(outcome.value("redirected"), "none") << outcome;
    EXPECT_EQ(outcome.value("wrong"), "0") << outcome;
}

// --- default-named doors ------------------------------------------------------------------------

TEST(DefaultDoor, OpensTheLibraryIfNcclPluginNamesIt)
{
    Installed installed;
    installed.add_default_doors();
    const struct {
        std::string list;
        bool named;
    } cases[] = {
        {"lamprey", true},
        {" other ,\tlamprey ,third", true},
        {"lamprey,", true},
        {"liblamprey.so", true},
        {installed.library(), true},
        {"other," + installed.library(), true},
        {"", false},
        {",", false},
        {"Lamprey", false},
        {"LAMPREY", false},
        {"lamprey2", false},
        {"lampre", false},
        {"a lamprey", false},
        {"xliblamprey.so", false},
    };
    for (const char *door : {"libnccl-env.so", "libnccl-tuner.so"}) {
        std::string path = installed.path() + "/" + door;
        for (const auto &c : cases) {
            // No table in it: NCCL finds none and closes it.
            Outcome outcome =
                run({"door", absolute(kFake), "Env", "1", path}, {{"NCCL_PLUGIN", c.list}});
            EXPECT_EQ(outcome.value("result"), "1") << outcome;
            SCOPED_TRACE("NCCL_PLUGIN='" + c.list + "'");
            if (c.named) {
                expect_redirected(outcome);
            } else {
                expect_nothing(outcome);
            }
        }
        expect_nothing(run({"door", absolute(kFake), "Env", "1", path}, {}));
    }
}

TEST(DefaultDoor, SaysSoOnceIfTheLibraryIsMissing)
{
    Installed installed;
    installed.add_default_doors();
    installed.remove("liblamprey.so");
    Outcome outcome =
        run({"door", absolute(kFake), "Env", "1", installed.path() + "/libnccl-env.so"},
            {{"NCCL_PLUGIN", "lamprey"}});
    EXPECT_EQ(outcome.value("redirected"), "none");
    EXPECT_EQ(outcome.log.rfind("lamprey: NCCL_PLUGIN asks for Lamprey", 0), 0u) << outcome;
    EXPECT_EQ(outcome.log.find('\n'), outcome.log.size() - 1) << outcome;
}

} // namespace
