// SPDX-License-Identifier: Apache-2.0
// The doors of the library as it ships: each test lets one process load a NCCL and looks at what
// came of it. Processes, since a door can be opened once.
#include <elf.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "plugin/nccl_functions.h"
#include "tests/doors/elf_file.h"

namespace {

// nccl.h must agree with our lists in number, size and kind of every parameter.
template <typename T>
using Plain =
    std::conditional_t<std::is_enum_v<T>, int, std::conditional_t<std::is_pointer_v<T>, void *, T>>;
template <typename Function> struct Signature;
template <typename... Parameters> struct Signature<ncclResult_t (*)(Parameters...)> {
    using type = void (*)(Plain<Parameters>...);
};
template <typename A, typename B>
constexpr bool kSame = std::is_same_v<typename Signature<A>::type, typename Signature<B>::type>;

#define LISTED(entry, parameters, ...) using Listed##entry = ncclResult_t(*) parameters;
LAMPREY_NCCL_INTERCEPTED(LISTED)
LAMPREY_NCCL_ORDERED(LISTED)
LAMPREY_NCCL_CALLED(LISTED)
#define AGREES(entry) static_assert(kSame<Listed##entry, decltype(&nccl##entry)>, #entry);
AGREES(AllReduce)
AGREES(GroupStart)
AGREES(GroupEnd)
AGREES(CommInitRank)
AGREES(CommInitAll)
AGREES(CommInitRankConfig)
AGREES(CommSplit)
AGREES(CommFinalize)
AGREES(CommDestroy)
AGREES(CommAbort)
AGREES(CommGetAsyncError)
AGREES(Reduce)
AGREES(Bcast)
AGREES(Broadcast)
AGREES(ReduceScatter)
AGREES(AllGather)
AGREES(Send)
AGREES(Recv)
AGREES(GetVersion)
AGREES(CommCount)
AGREES(CommUserRank)
AGREES(CommCuDevice)
#if NCCL_VERSION_CODE >= 22200
AGREES(GroupSimulateEnd)
#endif
#if NCCL_VERSION_CODE >= 22304
AGREES(CommInitRankScalable)
#endif
#if NCCL_VERSION_CODE >= 22700
AGREES(CommShrink)
#endif
#if NCCL_VERSION_CODE >= 22800
AGREES(AlltoAll)
AGREES(Gather)
AGREES(Scatter)
#endif
#if NCCL_VERSION_CODE >= 22807
AGREES(CommRevoke)
#endif
#if NCCL_VERSION_CODE >= 22900
AGREES(CommGrow)
AGREES(PutSignal)
AGREES(Signal)
AGREES(WaitSignal)
#endif
#if NCCL_VERSION_CODE >= 22907
AGREES(CommSuspend)
AGREES(CommResume)
#endif
#if NCCL_VERSION_CODE >= 23100
AGREES(AllReduceConfig)
AGREES(BroadcastConfig)
AGREES(ReduceConfig)
AGREES(AllGatherConfig)
AGREES(ReduceScatterConfig)
AGREES(AlltoAllConfig)
AGREES(GatherConfig)
AGREES(ScatterConfig)
#endif

std::string absolute(const std::string &path)
{
    char *resolved = realpath(path.c_str(), nullptr);
    std::string result = resolved != nullptr ? resolved : "";
    free(resolved);
    return result;
}

const std::string kLibrary = "plugin/liblamprey.so";
const std::string kCaller = "tests/doors/caller";
const std::string kFake = "tests/doors/libnccl.so.2";
const std::string kUser = "tests/doors/libuser.so";

using Environment = std::map<std::string, std::string>;

struct Outcome {
    int status = -1; // of the process, or -1 if it was killed by a signal or the deadline
    std::string log; // standard error
    std::multimap<std::string, std::string> values; // name=value lines of standard output
    std::string value(const std::string &name) const
    {
        auto found = values.find(name);
        return found != values.end() ? found->second : "(none)";
    }
};

std::ostream &operator<<(std::ostream &stream, const Outcome &outcome)
{
    stream << "status " << outcome.status << "\n";
    for (const auto &[name, value] : outcome.values) {
        stream << name << "=" << value << "\n";
    }
    return stream << outcome.log;
}

// Runs caller with nothing in its environment but what is given.
Outcome run(const std::vector<std::string> &arguments, const Environment &environment)
{
    constexpr auto kDeadline = std::chrono::seconds(60);
    std::vector<std::string> strings = {absolute(kCaller)};
    strings.insert(strings.end(), arguments.begin(), arguments.end());
    std::vector<char *> argv;
    for (std::string &string : strings) {
        argv.push_back(&string[0]);
    }
    argv.push_back(nullptr);
    std::vector<std::string> settings;
    for (const auto &[name, value] : environment) {
        settings.push_back(name + "=" + value);
    }
    std::vector<char *> envp;
    for (std::string &setting : settings) {
        envp.push_back(&setting[0]);
    }
    envp.push_back(nullptr);

    int pipes[2][2];
    if (pipe(pipes[0]) != 0 || pipe(pipes[1]) != 0) {
        ADD_FAILURE() << "pipe: " << strerror(errno);
        return {};
    }
    pid_t child = fork();
    if (child == 0) {
        dup2(pipes[0][1], STDOUT_FILENO);
        dup2(pipes[1][1], STDERR_FILENO);
        execve(argv[0], argv.data(), envp.data());
        _exit(127);
    }
    std::string texts[2];
    pollfd polls[2];
    for (int i = 0; i < 2; i++) {
        close(pipes[i][1]);
        polls[i] = {pipes[i][0], POLLIN, 0};
    }
    auto end = std::chrono::steady_clock::now() + kDeadline;
    bool late = false;
    while ((polls[0].fd >= 0 || polls[1].fd >= 0) && !late) {
        late = std::chrono::steady_clock::now() >= end;
        if (poll(polls, 2, 200) <= 0) {
            continue;
        }
        for (int i = 0; i < 2; i++) {
            char buffer[4096];
            ssize_t got = polls[i].revents != 0 ? read(polls[i].fd, buffer, sizeof(buffer)) : -1;
            if (got > 0) {
                texts[i].append(buffer, static_cast<size_t>(got));
            } else if (polls[i].revents != 0) {
                polls[i].fd = -1;
            }
        }
    }
    if (late) {
        kill(child, SIGKILL);
    }
    int status = 0;
    waitpid(child, &status, 0);
    close(pipes[0][0]);
    close(pipes[1][0]);

    Outcome outcome;
    outcome.status = WIFEXITED(status) && !late ? WEXITSTATUS(status) : -1;
    outcome.log = texts[1];
    std::istringstream lines(texts[0]);
    for (std::string line; std::getline(lines, line);) {
        size_t equals = line.find('=');
        outcome.values.emplace(line.substr(0, equals),
                               equals != std::string::npos ? line.substr(equals + 1) : "");
    }
    return outcome;
}

std::string read_file(const std::string &path)
{
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// A folder with the library under the names that it is installed by.
class Installed {
  public:
    Installed()
    {
        char pattern[] = "/tmp/lamprey-doors-XXXXXX";
        path_ = mkdtemp(pattern);
        copy(kLibrary, "liblamprey.so");
        for (const char *kind : {"tuner", "env", "profiler", "net"}) {
            std::string name = path_ + "/libnccl-" + kind + "-lamprey.so";
            EXPECT_EQ(symlink("liblamprey.so", name.c_str()), 0);
            names_.push_back(name);
        }
    }
    Installed(const Installed &) = delete;
    Installed &operator=(const Installed &) = delete;
    ~Installed()
    {
        for (const std::string &name : names_) {
            unlink(name.c_str());
        }
        rmdir(path_.c_str());
    }
    std::string copy(const std::string &from, const std::string &name)
    {
        std::string to = path_ + "/" + name;
        std::ofstream(to, std::ios::binary) << read_file(from);
        names_.push_back(to);
        return to;
    }
    void remove(const std::string &name)
    {
        unlink((path_ + "/" + name).c_str());
    }
    void add_default_doors()
    {
        copy("plugin/libnccl-env.so", "libnccl-env.so");
        copy("plugin/libnccl-tuner.so", "libnccl-tuner.so");
    }
    const std::string &path() const
    {
        return path_;
    }
    std::string library() const
    {
        return path_ + "/liblamprey.so";
    }

  private:
    std::string path_;
    std::vector<std::string> names_;
};

std::string real_nccl()
{
    std::vector<std::string> candidates;
    const char *chosen = getenv("LAMPREY_TEST_NCCL");
    if (chosen != nullptr) {
        candidates.push_back(chosen);
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
        GTEST_SKIP() << "no libnccl.so.2 in LAMPREY_TEST_NCCL, CUDA_HOME or /usr/local/cuda";      \
    }

// The first call of many programs needs a network interface to listen on, nothing more.
Environment for_real(Environment more)
{
    more.emplace("NCCL_SOCKET_IFNAME", "lo");
    return more;
}

void expect_redirected(const Outcome &outcome)
{
    EXPECT_EQ(outcome.status, 0) << outcome;
    EXPECT_EQ(outcome.value("redirected"), "all") << outcome;
    EXPECT_EQ(outcome.value("copies"), "1") << outcome;
    EXPECT_EQ(outcome.value("stats_of_nothing"), std::to_string(ncclInvalidArgument)) << outcome;
}

void expect_nothing(const Outcome &outcome)
{
    EXPECT_EQ(outcome.status, 0) << outcome;
    EXPECT_EQ(outcome.value("redirected"), "none") << outcome;
    EXPECT_EQ(outcome.value("copies"), "0") << outcome;
    EXPECT_EQ(outcome.log, "");
}

// --- the file -----------------------------------------------------------------------------------

std::set<std::string> listed_exports()
{
    std::set<std::string> names;
    std::istringstream lines(read_file("plugin/exports.lds"));
    bool global = false;
    for (std::string line; std::getline(lines, line);) {
        if (line == "global:" || line == "local:") {
            global = line == "global:";
        }
        size_t start = line.find_first_not_of(' ');
        if (global && start != std::string::npos && line.back() == ';') {
            names.insert(line.substr(start, line.size() - start - 1));
        }
    }
    return names;
}

TEST(Library, ExportsWhatTheListSaysAndNothingElse)
{
    ElfFile file(kLibrary);
    std::set<std::string> listed = listed_exports();
    EXPECT_GT(listed.size(), 60u);
    EXPECT_EQ(file.exports(), listed);
}

TEST(Library, ExportsEveryInterceptedName)
{
    std::set<std::string> listed = listed_exports();
#define IS_LISTED(entry, parameters, arguments)                                                    \
    EXPECT_EQ(listed.count("nccl" #entry), 1u) << #entry;
    LAMPREY_NCCL_INTERCEPTED(IS_LISTED)
    LAMPREY_NCCL_ORDERED(IS_LISTED)
}

TEST(Library, NeedsLibcAlone)
{
    std::set<std::string> needed = ElfFile(kLibrary).needed();
    EXPECT_EQ(needed.erase("libc.so.6"), 1u);
    // The loader itself, for thread-local storage: there is no process without it.
    for (const std::string &name : needed) {
        EXPECT_EQ(name.rfind("ld-linux-", 0), 0u) << name;
    }
}

TEST(Library, NeedsNoNewerGlibcThan234)
{
    for (const std::string &version : ElfFile(kLibrary).needed_versions()) {
        int major = 0;
        int minor = 0;
        if (sscanf(version.c_str(), "GLIBC_%d.%d", &major, &minor) == 2) {
            EXPECT_LE(major * 1000 + minor, 2034) << version;
        } else {
            ADD_FAILURE() << "unexpected version " << version;
        }
    }
}

TEST(Library, StaysMappedAndIsFullyBoundAtLoad)
{
    ElfFile file(kLibrary);
    EXPECT_TRUE(file.dynamic(DT_FLAGS_1) & DF_1_NODELETE);
    EXPECT_TRUE(file.dynamic(DT_FLAGS_1) & DF_1_NOW);
}

TEST(Library, HasNoTextRelocations)
{
    ElfFile file(kLibrary);
    EXPECT_FALSE(file.has_dynamic(DT_TEXTREL));
    EXPECT_FALSE(file.dynamic(DT_FLAGS) & DF_TEXTREL);
}

TEST(DefaultDoor, HasNoPluginInIt)
{
    for (const char *name : {"plugin/libnccl-env.so", "plugin/libnccl-tuner.so"}) {
        ElfFile file(name);
        EXPECT_EQ(file.exports(), std::set<std::string>{}) << name;
        EXPECT_EQ(file.needed(), std::set<std::string>{"libc.so.6"}) << name;
        EXPECT_FALSE(file.dynamic(DT_FLAGS_1) & DF_1_NODELETE) << name;
    }
}

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
    EXPECT_EQ(outcome.values.count("report"), 3u);
    for (auto [first, last] = outcome.values.equal_range("report"); first != last; ++first) {
        EXPECT_EQ(first->second, "lamprey: ") << outcome;
    }
    expect_redirected(outcome);
}

INSTANTIATE_TEST_SUITE_P(All, Doors, testing::ValuesIn(all_doors()),
                         testing::PrintToStringParamName());

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

TEST(FirstCopy, TellsTheFirstFromTheOthers)
{
    Installed installed;
    std::string one = installed.copy("tests/doors/libcopy.so", "one.so");
    std::string two = installed.copy("tests/doors/libcopy.so", "two.so");
    std::string three = installed.copy("tests/doors/libcopy.so", "three.so");
    Outcome outcome = run({"first-copy", one, two, three, one, two}, {});
    std::vector<std::string> answers;
    for (auto [first, last] = outcome.values.equal_range("first"); first != last; ++first) {
        answers.push_back(first->second);
    }
    EXPECT_EQ(answers, (std::vector<std::string>{"1", "0", "0", "1", "0"})) << outcome;
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

// --- the real NCCL ------------------------------------------------------------------------------

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
    std::string settings = installed.copy("/dev/null", "nccl.conf");
    std::ofstream(settings) << "NCCL_PLUGIN=lamprey\n";
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
    EXPECT_EQ(outcome.values.count("destroy"), 2u) << outcome;
    for (auto [first, last] = outcome.values.equal_range("destroy"); first != last; ++first) {
        EXPECT_EQ(first->second, "0") << outcome;
    }
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

} // namespace
