// SPDX-License-Identifier: Apache-2.0
// Programs that reach NCCL in other ways than by linking to it; see also programs/ and doors/.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

// NCCL in a file of another name, opened for itself, its functions looked up before any plugin is
// loaded.
struct Private {
    explicit Private(const std::string &path) : library(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL))
    {
        REQUIRE(library != nullptr);
        get_id = find<decltype(get_id)>("ncclGetUniqueId");
        init = find<decltype(init)>("ncclCommInitRank");
        all_reduce = find<decltype(all_reduce)>("ncclAllReduce");
        group_start = find<decltype(group_start)>("ncclGroupStart");
        group_end = find<decltype(group_end)>("ncclGroupEnd");
        destroy = find<decltype(destroy)>("ncclCommDestroy");
    }

    template <typename Function> Function find(const char *name)
    {
        auto function = (Function)dlsym(library, name);
        REQUIRE(function != nullptr);
        return function;
    }

    void *library;
    decltype(&ncclGetUniqueId) get_id;
    decltype(&ncclCommInitRank) init;
    decltype(&ncclAllReduce) all_reduce;
    decltype(&ncclGroupStart) group_start;
    decltype(&ncclGroupEnd) group_end;
    decltype(&ncclCommDestroy) destroy;
};

// The one that the program is linked with, and another one as in VLLM_NCCL_SO_PATH: groups of the
// one don't hold calls of the other back, and each gets its communicators' calls.
TEST_F(Serving, ServesTwoNcclsInOneProcess)
{
    copy("tests/emulator/libnccl.so.2", "libmine.so");
    const std::string path = directory_ + "/libmine.so";
    processes(2, [&](int rank) {
        Private other(path);
        Rank self(rank, 2);
        Rank theirs(rank, 2);
        ncclUniqueId *id = &shared->id;
        REQUIRE(rank != 0 || other.get_id(id) == ncclSuccess);
        meet(2);
        REQUIRE(other.init(&theirs.comm, 2, *id, rank) == ncclSuccess);
        meet(2);
        self.init();
        auto call = [&] {
            return other.all_reduce((void *)theirs.send, (void *)theirs.recv, 300, ncclFloat32,
                                    ncclSum, theirs.comm, (cudaStream_t)theirs.stream);
        };
        for (uint64_t i = 0; i < 5; i++) {
            self.fill(LAMPREY_REFERENCE_F32, 200, i);
            theirs.fill(LAMPREY_REFERENCE_F32, 300, i + 50);
            REQUIRE(ncclGroupStart() == ncclSuccess);
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 200) == ncclSuccess);
            REQUIRE(call() == ncclSuccess);
            theirs.check(LAMPREY_REFERENCE_F32, 300, i + 50, true);
            REQUIRE(ncclGroupEnd() == ncclSuccess);
            self.check(LAMPREY_REFERENCE_F32, 200, i, true);
            theirs.fill(LAMPREY_REFERENCE_F32, 300, i);
            REQUIRE(other.group_start() == ncclSuccess && call() == ncclSuccess);
            self.round(LAMPREY_REFERENCE_F32, 200, i + 50);
            REQUIRE(other.group_end() == ncclSuccess);
            theirs.check(LAMPREY_REFERENCE_F32, 300, i, true);
        }
        REQUIRE(stats_of(self.comm).served == 10);
        REQUIRE(stats_of(theirs.comm).served == 10);
        REQUIRE(other.destroy(theirs.comm) == ncclSuccess);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
    unlink(path.c_str());
}

// The user's own plugins keep their slots; the library comes by another door.
TEST_F(Serving, LeavesOtherSlotsToOtherPlugins)
{
    char here[4096];
    ASSERT_NE(getcwd(here, sizeof here), nullptr);
    const std::string probe = std::string(here) + "/tests/emulator/libprobe-all.so";
    const std::string mark = directory_ + "/probe.txt";
    for (const char *door : {"NCCL_TUNER_PLUGIN", "NCCL_ENV_PLUGIN", "NCCL_PROFILER_PLUGIN"}) {
        SCOPED_TRACE(door);
        memset(shared, 0, sizeof *shared);
        processes(2, [&](int rank) {
            for (const char *slot :
                 {"NCCL_TUNER_PLUGIN", "NCCL_ENV_PLUGIN", "NCCL_PROFILER_PLUGIN"}) {
                setenv(slot, strcmp(slot, door) == 0 ? plugin_.c_str() : probe.c_str(), 1);
            }
            setenv("PROBE_LOG", mark.c_str(), 1);
            mixed_rounds(rank, 2);
        });
        FILE *file = fopen(mark.c_str(), "r");
        ASSERT_NE(file, nullptr);
        std::string seen(1 << 16, '\0');
        seen.resize(fread(&seen[0], 1, seen.size(), file));
        fclose(file);
        unlink(mark.c_str());
        for (const char *kind : {"tuner", "env", "profiler"}) { // who is in its slot, was started
            const bool ours = strcasestr(door, kind) != nullptr;
            EXPECT_EQ(seen.find(std::string(kind) + " init") == std::string::npos, ours) << kind;
        }
    }
}

} // namespace
