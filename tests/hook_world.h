// SPDX-License-Identifier: Apache-2.0
// What the tests of redirection share: libraries to redirect, replacements, what was logged.
#ifndef LAMPREY_TESTS_HOOK_WORLD_H
#define LAMPREY_TESTS_HOOK_WORLD_H

#include "plugin/hook.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <link.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <nccl.h>
#include <sys/mman.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "plugin/hook_memory.h"
#include "plugin/image.h"
#include "plugin/log.h"
#include "plugin/nccl_functions.h"
#include "tests/crowd.h"

namespace hook_test {

extern std::atomic<int> warnings;
extern std::string last_warning;

using Function = long (*)(long);

#ifdef __x86_64__
inline const char *const kShapes[] = {"frame",  "saved", "pushes", "stack",  "load",     "address",
                                      "branch", "limit", "marked", "vector", "constant", "tail"};
inline const int kOffsets[] = {0, 1, 2, 3, 4, 5, 6, 7, 59, 60, 61, 62, 63};
inline const int kCrossingOffsets[] = {6, 63}; // of a word, of a cache line
inline constexpr uintptr_t kFarthest = LAMPREY_TEST_JUMP_REACH;
#else
inline const char *const kShapes[] = {
    "frame", "saved",   "stack",    "address", "branch",   "call", "marked",  "signed",
    "keyed", "vector",  "constant", "tail",    "last",     "zero", "word",    "bit",
    "bits",  "guarded", "page",     "nearby",  "register", "pair", "scratch", "back"};
inline const int kOffsets[] = {0, 4, 8, 12, 32, 56, 60};
inline const int kCrossingOffsets[] = {4, 60};
inline constexpr uintptr_t kFarthest = uintptr_t{1} << 32;
#endif
inline constexpr uintptr_t kReach = LAMPREY_TEST_JUMP_REACH;

inline std::string Path(const char *file)
{
    return std::string("tests/") + file;
}

inline std::string Copy(const std::string &from_path, const char *name)
{
    const char *folder = getenv("TEST_TMPDIR");
    std::string path = std::string(folder != nullptr ? folder : "/tmp") + "/" + name + "." +
                       std::to_string(getpid()) + ".so";
    std::ifstream from(from_path, std::ios::binary);
    std::ofstream to(path, std::ios::binary | std::ios::trunc);
    to << from.rdbuf();
    return path;
}

inline void *Open(const std::string &path)
{
    void *handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
    EXPECT_NE(handle, nullptr) << dlerror();
    return handle;
}

// Replacements: one adds 1000 to what the original gives, one does without it.
inline std::atomic<long> replaced_calls{0};
inline Function original_function;

inline long AddThousand(long value)
{
    ++replaced_calls;
    return __atomic_load_n(&original_function, __ATOMIC_ACQUIRE)(value) + 1000;
}

inline long Shifted(long value)
{
    ++replaced_calls;
    return value + 5000;
}

inline long Quietly(long value)
{
    return value + 5000;
}

// The bytes around a function, to prove that a restoration is complete.
inline std::vector<unsigned char> BytesAt(void *address, size_t size = 64)
{
    auto *first = static_cast<unsigned char *>(address);
    return std::vector<unsigned char>(first, first + size);
}

struct Installed {
    enum lamprey_status status;
    lamprey_hooks *hooks = nullptr;
    char reason[512];
};

inline Installed Install(enum lamprey_hook_method method,
                         const std::vector<lamprey_hook_target> &targets)
{
    Installed result;
    result.status = lamprey_hooks_install(method, targets.data(), targets.size(), &result.hooks,
                                          result.reason, sizeof(result.reason));
    return result;
}

// Writable and executable mappings: nobody may leave one behind.
inline int DangerousMappings()
{
    lamprey_hook_maps maps;
    int count = 0;
    EXPECT_EQ(lamprey_hook_maps_read(&maps), LAMPREY_OK);
    for (size_t i = 0; i < maps.count; i++) {
        const int both = PROT_WRITE | PROT_EXEC;
        count += (maps.mappings[i].protection & both) == both;
    }
    lamprey_hook_maps_free(&maps);
    return count;
}

inline size_t ExecutableBytes()
{
    lamprey_hook_maps maps;
    size_t bytes = 0;
    EXPECT_EQ(lamprey_hook_maps_read(&maps), LAMPREY_OK);
    for (size_t i = 0; i < maps.count; i++) {
        const lamprey_hook_mapping &mapping = maps.mappings[i];
        bytes += (mapping.protection & PROT_EXEC) != 0 ? mapping.end - mapping.start : 0;
    }
    lamprey_hook_maps_free(&maps);
    return bytes;
}

// Runs body in a child, since it spoils the process; body returns 0 for success.
inline int InChild(const std::function<int()> &body)
{
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        _exit(body());
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

// Programs for another processor run in an emulator, which installs no filters of system calls;
// forced writes are refused there by no_forced_writes.c.
inline bool IsEmulated()
{
    return getenv("LAMPREY_TEST_RUNNER") != nullptr;
}

// The kernel answers EPERM whenever a file is opened for reading and writing, as one without
// forced writes to /proc/self/mem would.
inline bool RefuseForcedWrites()
{
    if (IsEmulated()) {
        return open("/proc/self/mem", O_RDWR | O_CLOEXEC) < 0 && errno == EPERM;
    }
    sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 2 /* O_RDWR */, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1 /* EPERM */),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

class Hook : public ::testing::Test {
  protected:
    void SetUp() override
    {
        library_ = Open(Path("libhook_fixture.so"));
        ASSERT_NE(library_, nullptr);
        warnings = 0;
        replaced_calls = 0;
    }

    Function Find(const std::string &name)
    {
        auto function = reinterpret_cast<Function>(dlsym(library_, name.c_str()));
        EXPECT_NE(function, nullptr) << name;
        return function;
    }

    lamprey_hook_target Target(const char *name, Function replacement)
    {
        return {name, reinterpret_cast<void *>(Find(name)), reinterpret_cast<void *>(replacement),
                reinterpret_cast<void **>(&original_function)};
    }

    void *library_ = nullptr;
};

} // namespace hook_test

#endif
