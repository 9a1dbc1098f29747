// SPDX-License-Identifier: Apache-2.0
// Random NCCL programs with the plugin, every result checked bit for bit. A seed makes a program; a
// failing one is printed and reproduces with LAMPREY_TEST_SEED. LAMPREY_TEST_SECONDS makes it run
// longer; tests/soak does both.
//
// What NCCL requires to be equal on all ranks comes from the seed; what it leaves to each rank
// (streams, capturing or not, a group around a single call, the order of communicators in a group)
// comes from the seed and the rank.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <chrono>
#include <string>
#include <thread>

#include "tests/soak_rank.h"

// The loader frees the thread-local memory of threads that have ended, under a lock of its own.
extern "C" const char *__tsan_default_suppressions()
{
    return "race:_dl_deallocate_tls\nrace:ld-linux-x86-64.so.2\n";
}

namespace {

using namespace soak;

constexpr int kDeadlineSeconds = 120; // of a seed
constexpr int kDefaultSeconds = 40;
#if defined(__SANITIZE_THREAD__)
constexpr int kPhases = 4; // each takes ten times as long
#else
constexpr int kPhases = 12;
#endif

bool emulated()
{
    return dlsym(RTLD_DEFAULT, "lampreyEmulatorCounts") != nullptr;
}

void configure(uint64_t seed)
{
    const Settings settings = settings_of(seed);
    setenv("LAMPREY_MAX_BYTES", std::to_string(settings.max_bytes).c_str(), 1);
    setenv("LAMPREY_ALGORITHM", settings.algorithm, 1);
    setenv("LAMPREY_MAX_CTAS", std::to_string(settings.max_ctas).c_str(), 1);
}

[[noreturn]] void run_rank(World &world, int rank)
{
    alarm(kDeadlineSeconds);
    Rank(world, rank).run();
    _exit(0);
}

[[noreturn]] void run_threads(World &world)
{
    alarm(kDeadlineSeconds);
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < world.nranks; rank++) {
        ranks.emplace_back([&world, rank] { Rank(world, rank).run(); });
    }
    for (std::thread &rank : ranks) {
        rank.join();
    }
    _exit(0);
}

// Two ranks on a machine's only GPU, as tests/programs/program.h has it.
bool shares_gpu()
{
    const char *value = getenv("PROGRAM_SHARE_GPU");
    return value && strcmp(value, "1") == 0;
}

// In processes of their own, so that a seed starts from nothing and a hang can be ended.
void run_seed(World &world)
{
    SCOPED_TRACE("seed " + std::to_string(world.seed) + ", " + std::to_string(world.nranks) +
                 (world.as_processes ? " processes" : " threads"));
    const int count = world.as_processes ? world.nranks : 1;
    std::vector<pid_t> children;
    fflush(nullptr);
    for (int rank = 0; rank < count; rank++) {
        const pid_t child = fork();
        if (child == 0) {
            current_seed = world.seed;
            configure(world.seed);
            if (shares_gpu()) { // NCCL refuses two ranks on a GPU of one host
                setenv("NCCL_HOSTID", ("rank-" + std::to_string(rank)).c_str(), 1);
            }
            world.as_processes ? run_rank(world, rank) : run_threads(world);
        }
        children.push_back(child);
    }
    bool failed = false;
    for (int left = count; left > 0; left--) {
        int status = -1;
        const pid_t child = waitpid(-1, &status, 0);
        const bool hangs = WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM;
        EXPECT_TRUE(failed || status == 0) << "process " << child << " ended with status " << status
                                           << (hangs ? ": it hangs" : "");
        for (pid_t other : children) {
            if (status != 0 && !failed) { // the others wait for it
                kill(other, SIGKILL);
            }
        }
        failed = failed || status != 0;
    }
    ASSERT_FALSE(failed);
}

// What a child sees; this process must not touch the driver, or its children couldn't.
int gpus()
{
    const pid_t child = fork();
    if (child == 0) {
        int count = 0;
        _exit(cuInit(0) == CUDA_SUCCESS && cuDeviceGetCount(&count) == CUDA_SUCCESS ? count : 0);
    }
    int status = 0;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

void prepare_environment()
{
    char here[4096];
    ASSERT_NE(getcwd(here, sizeof here), nullptr);
    const char *scratch = getenv("TEST_TMPDIR");
    const std::string installed = std::string(here) + "/../lib/liblamprey.so"; // in a bundle
    if (access(installed.c_str(), R_OK) == 0) {
        setenv("NCCL_TUNER_PLUGIN", installed.c_str(), 1);
    } else { // together in a folder, as they are installed
        std::string folder = std::string(scratch ? scratch : "/tmp") + "/lamprey-soak-XXXXXX";
        ASSERT_NE(mkdtemp(&folder[0]), nullptr);
        const std::string copy =
            "cp -Lf plugin/liblamprey.so topology/liblamprey-topology.so " + folder;
        ASSERT_EQ(system(copy.c_str()), 0);
        setenv("NCCL_TUNER_PLUGIN", (folder + "/liblamprey.so").c_str(), 1);
    }
    if (emulated()) {
        setenv("LAMPREY_TOPOLOGY", (std::string(here) + "/tests/fixtures/emulator-8.xml").c_str(),
               1);
        setenv("LAMPREY_EMULATOR_GPUS", "8", 1);
    }
}

World *shared_world()
{
    void *memory =
        mmap(nullptr, sizeof(World), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? nullptr : new (memory) World();
}

struct Totals {
    uint64_t seeds, served, calls, changes[5];
};

void run_one(World *world, uint64_t seed, int nranks, bool as_processes, Totals &totals)
{
    *world = World();
    world->nranks = nranks;
    world->as_processes = as_processes;
    world->seed = seed;
    world->phases = kPhases;
    run_seed(*world);
    totals.seeds++;
    totals.served += world->served;
    totals.calls += world->calls;
    for (int i = 0; i < 5; i++) {
        totals.changes[i] += world->changes[i];
    }
}

TEST(Soak, RandomProgramsGiveTheRightBits)
{
    ASSERT_NO_FATAL_FAILURE(prepare_environment());
    const int found = gpus();
    const bool shared = found == 1 && shares_gpu();
    const int most = shared ? 2 : found;
    if (most < 2) {
        GTEST_SKIP() << "skipped: needs two GPUs, found " << most;
    }
    World *world = shared_world();
    ASSERT_NE(world, nullptr);
    const char *seed_text = getenv("LAMPREY_TEST_SEED");
    const char *seconds_text = getenv("LAMPREY_TEST_SECONDS");
    const int seconds = seconds_text ? atoi(seconds_text) : kDefaultSeconds;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    const int worlds[] = {2, 4, 3, 2, 6};
    uint64_t seed = seed_text ? strtoull(seed_text, nullptr, 10) : 1;
    Totals totals = {};
    do {
        const int nranks = std::min(worlds[seed % 5], most);
        for (bool as_processes : {false, true}) {
            if (shared ? as_processes
                       : (seed_text && !seconds_text) || as_processes == (seed / 5 % 2 == 1)) {
                ASSERT_NO_FATAL_FAILURE(run_one(world, seed, nranks, as_processes, totals));
            }
        }
        seed++;
    } while ((!seed_text || seconds_text) && std::chrono::steady_clock::now() < end);
    printf("soak: %llu programs up to seed %llu: %llu calls by all ranks, %llu of Lamprey's; "
           "communicators remade %llu times, all of them %llu times, aborted %llu, revoked %llu\n",
           (unsigned long long)totals.seeds, (unsigned long long)seed - 1,
           (unsigned long long)totals.calls, (unsigned long long)totals.served,
           (unsigned long long)totals.changes[1], (unsigned long long)totals.changes[2],
           (unsigned long long)totals.changes[3], (unsigned long long)totals.changes[4]);
}

} // namespace
