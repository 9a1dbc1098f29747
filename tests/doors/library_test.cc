// SPDX-License-Identifier: Apache-2.0
// The files as they ship, and the lists that they are made from.
#include <gnu/libc-version.h>
#include <cstdio>
#include <set>
#include <sstream>
#include <string>
#include <type_traits>

#include <gtest/gtest.h>

#include "plugin/nccl_functions.h"
#include "tests/doors/elf_file.h"
#include "tests/doors/process.h"

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

// From 2.38 on the headers turn strtol and its kin into functions that are new there.
TEST(Library, NeedsNoNewerGlibcThan234)
{
    int host_major = 0;
    int host_minor = 0;
    sscanf(gnu_get_libc_version(), "%d.%d", &host_major, &host_minor);
    if (host_major * 1000 + host_minor >= 2038) {
        GTEST_SKIP() << "built on glibc " << gnu_get_libc_version() << ", for that and newer";
    }
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

} // namespace
