// SPDX-License-Identifier: Apache-2.0
// The real NCCL, redirected.
#include "tests/hook_world.h"

namespace {

using namespace hook_test;

// The real library, mapped but not used: none of these calls needs a GPU.
class HookNccl : public ::testing::Test {
  protected:
    void SetUp() override
    {
        const char *home = getenv("CUDA_HOME");
        std::vector<std::string> candidates;
        if (getenv("LAMPREY_TEST_NCCL") != nullptr) {
            candidates.push_back(getenv("LAMPREY_TEST_NCCL"));
        }
        for (const std::string &root :
             {std::string(home != nullptr ? home : ""), std::string("/usr/local/cuda")}) {
            candidates.push_back(root + "/lib/libnccl.so.2");
            candidates.push_back(root + "/lib64/libnccl.so.2");
        }
        for (const std::string &candidate : candidates) {
            if (IsForThisProcessor(candidate)) {
                path_ = candidate;
                break;
            }
        }
        if (path_.empty()) {
            GTEST_SKIP() << "no libnccl.so.2 for this processor in LAMPREY_TEST_NCCL, CUDA_HOME or "
                            "/usr/local/cuda";
        }
        library_ = Open(path_);
        ASSERT_NE(library_, nullptr);
        ASSERT_EQ(lamprey_image_of(dlsym(library_, "ncclAllReduce"), &image_), LAMPREY_OK);
    }

    static bool IsForThisProcessor(const std::string &path)
    {
        Elf64_Ehdr own{};
        Elf64_Ehdr other{};
        std::ifstream("/proc/self/exe", std::ios::binary)
            .read(reinterpret_cast<char *>(&own), sizeof(own));
        std::ifstream(path, std::ios::binary).read(reinterpret_cast<char *>(&other), sizeof(other));
        return other.e_machine == own.e_machine;
    }

    // What the file has where an address of the image is, by its program headers.
    std::vector<unsigned char> FileBytes(void *address, size_t size)
    {
        std::ifstream file(path_, std::ios::binary);
        Elf64_Ehdr header;
        file.read(reinterpret_cast<char *>(&header), sizeof(header));
        std::vector<Elf64_Phdr> segments(header.e_phnum);
        file.seekg(static_cast<std::streamoff>(header.e_phoff));
        file.read(reinterpret_cast<char *>(segments.data()),
                  static_cast<std::streamsize>(segments.size() * sizeof(Elf64_Phdr)));
        const uintptr_t value = reinterpret_cast<uintptr_t>(address) - image_.base;
        std::vector<unsigned char> bytes(size);
        for (const Elf64_Phdr &segment : segments) {
            if (segment.p_type == PT_LOAD && value >= segment.p_vaddr &&
                value + size <= segment.p_vaddr + segment.p_filesz) {
                file.seekg(static_cast<std::streamoff>(segment.p_offset + value - segment.p_vaddr));
                file.read(reinterpret_cast<char *>(bytes.data()),
                          static_cast<std::streamsize>(size));
                return bytes;
            }
        }
        ADD_FAILURE() << "no segment has " << address;
        return bytes;
    }

    std::string path_;
    void *library_ = nullptr;
    lamprey_image image_;
};

#define LAMPREY_TEST_NAME(name, ...) "nccl" #name,
const char *const kRedirected[] = {LAMPREY_NCCL_INTERCEPTED(LAMPREY_TEST_NAME)
                                       LAMPREY_NCCL_ORDERED(LAMPREY_TEST_NAME)};

// Called for every redirected function: as none of them is really called, none must come here.
long Unexpected()
{
    ++replaced_calls;
    return 0;
}

TEST_F(HookNccl, RedirectsAndRestoresEveryFunction)
{
    std::vector<lamprey_hook_target> targets;
    std::vector<void *> originals(64);
    for (const char *name : kRedirected) {
        void *function = lamprey_image_function(&image_, name);
        EXPECT_EQ(function, dlsym(library_, name)) << name;
        if (function != nullptr) {
            targets.push_back(
                {name, function, reinterpret_cast<void *>(Unexpected), &originals[targets.size()]});
        }
    }
    ASSERT_GE(targets.size(), 20u);
    const int dangerous = DangerousMappings();
    Installed installed = Install(LAMPREY_HOOK_TEXT, targets);
    ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
    for (const lamprey_hook_target &target : targets) {
        EXPECT_NE(BytesAt(target.function, 32), FileBytes(target.function, 32)) << target.name;
        EXPECT_NE(*target.original, nullptr);
    }
    EXPECT_EQ(DangerousMappings(), dangerous);
    // Each is redirected: a call without arguments must reach the replacement.
    replaced_calls = 0;
    for (const lamprey_hook_target &target : targets) {
        reinterpret_cast<long (*)()>(target.function)();
    }
    EXPECT_EQ(replaced_calls, static_cast<long>(targets.size()));
    lamprey_hooks_remove(installed.hooks);
    for (const lamprey_hook_target &target : targets) {
        EXPECT_EQ(BytesAt(target.function, 32), FileBytes(target.function, 32)) << target.name;
    }
}

// Functions that answer without a GPU, through their trampolines.
TEST_F(HookNccl, TrampolinesDoWhatTheFunctionsDo)
{
    const struct {
        const char *name;
        ncclResult_t expected;
    } without_communicator[] = {
        {"ncclCommDestroy", ncclSuccess},
        {"ncclCommFinalize", ncclSuccess},
        {"ncclCommAbort", ncclSuccess},
        {"ncclCommGetAsyncError", ncclInvalidArgument},
        {"ncclCommCount", ncclInvalidArgument},
        {"ncclCommUserRank", ncclInvalidArgument},
        {"ncclCommCuDevice", ncclInvalidArgument},
    };
    using Call = ncclResult_t (*)(void *, void *);
    for (const auto &test : without_communicator) {
        SCOPED_TRACE(test.name);
        void *function = lamprey_image_function(&image_, test.name);
        void *original = nullptr;
        ASSERT_NE(function, nullptr);
        const ncclResult_t direct = reinterpret_cast<Call>(function)(nullptr, nullptr);
        Installed installed =
            Install(LAMPREY_HOOK_TEXT,
                    {{test.name, function, reinterpret_cast<void *>(Unexpected), &original}});
        ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
        EXPECT_EQ(reinterpret_cast<Call>(original)(nullptr, nullptr), direct);
        lamprey_hooks_remove(installed.hooks);
        EXPECT_EQ(BytesAt(function, 32), FileBytes(function, 32));
        EXPECT_EQ(direct, test.expected);
    }
}

ncclResult_t (*version_original)(int *);
const char *(*error_original)(ncclResult_t);

ncclResult_t VersionReplacement(int *version)
{
    const ncclResult_t result = version_original(version);
    *version += 1;
    return result;
}

const char *ErrorReplacement(ncclResult_t result)
{
    return result == ncclSuccess ? "replaced" : error_original(result);
}

TEST_F(HookNccl, CallersSeeTheReplacement)
{
    auto version = reinterpret_cast<ncclResult_t (*)(int *)>(dlsym(library_, "ncclGetVersion"));
    auto error =
        reinterpret_cast<const char *(*)(ncclResult_t)>(dlsym(library_, "ncclGetErrorString"));
    int plain = 0;
    ASSERT_EQ(version(&plain), ncclSuccess);
    const std::string invalid = error(ncclInvalidArgument);
    Installed installed =
        Install(LAMPREY_HOOK_TEXT, {{"ncclGetVersion", reinterpret_cast<void *>(version),
                                     reinterpret_cast<void *>(VersionReplacement),
                                     reinterpret_cast<void **>(&version_original)},
                                    {"ncclGetErrorString", reinterpret_cast<void *>(error),
                                     reinterpret_cast<void *>(ErrorReplacement),
                                     reinterpret_cast<void **>(&error_original)}});
    ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
    int seen = 0;
    EXPECT_EQ(version(&seen), ncclSuccess);
    EXPECT_EQ(seen, plain + 1);
    // pncclGetVersion is the same function.
    auto twin = reinterpret_cast<ncclResult_t (*)(int *)>(dlsym(library_, "pncclGetVersion"));
    ASSERT_NE(twin, nullptr);
    EXPECT_EQ(twin(&seen), ncclSuccess);
    EXPECT_EQ(seen, plain + 1);
    EXPECT_EQ(version_original(nullptr), ncclInvalidArgument); // its early branch, relocated
    EXPECT_STREQ(error(ncclSuccess), "replaced");
    EXPECT_EQ(error(ncclInvalidArgument), invalid);
    EXPECT_NE(std::string(error(static_cast<ncclResult_t>(99))), "");
    lamprey_hooks_remove(installed.hooks);
    EXPECT_EQ(version(&seen), ncclSuccess);
    EXPECT_EQ(seen, plain);
    EXPECT_STRNE(error(ncclSuccess), "replaced");
}

} // namespace
