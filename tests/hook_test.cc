// SPDX-License-Identifier: Apache-2.0
#include "plugin/hook.h"

#include <dlfcn.h>
#include <elf.h>
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

namespace {

std::atomic<int> warnings{0};
std::string last_warning;

} // namespace

// NCCL's own: it forgets a job when a communicator is NULL.
extern "C" const char *__lsan_default_suppressions()
{
    return "leak:libnccl\nleak:ncclCallocDebug\n";
}

// Stands in for plugin/log.c.
extern "C" void lamprey_log(enum lamprey_log_level level, const char *, int, const char *format,
                            ...)
{
    if (level <= LAMPREY_LOG_WARN) {
        char text[512];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof(text), format, arguments);
        va_end(arguments);
        last_warning = text;
        ++warnings;
    }
}

namespace {

using Function = long (*)(long);

const char *const kShapes[] = {"frame",  "saved", "pushes", "stack",  "load",     "address",
                               "branch", "limit", "marked", "vector", "constant", "tail"};
const int kOffsets[] = {0, 1, 2, 3, 4, 5, 6, 7, 59, 60, 61, 62, 63};

std::string Path(const char *file)
{
    return std::string("tests/") + file;
}

std::string Copy(const std::string &from_path, const char *name)
{
    const char *folder = getenv("TEST_TMPDIR");
    std::string path = std::string(folder != nullptr ? folder : "/tmp") + "/" + name + "." +
                       std::to_string(getpid()) + ".so";
    std::ifstream from(from_path, std::ios::binary);
    std::ofstream to(path, std::ios::binary | std::ios::trunc);
    to << from.rdbuf();
    return path;
}

void *Open(const std::string &path)
{
    void *handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
    EXPECT_NE(handle, nullptr) << dlerror();
    return handle;
}

// Replacements: one adds 1000 to what the original gives, one does without it.
std::atomic<long> replaced_calls{0};
Function original_function;

long AddThousand(long value)
{
    ++replaced_calls;
    return __atomic_load_n(&original_function, __ATOMIC_ACQUIRE)(value) + 1000;
}

long Shifted(long value)
{
    ++replaced_calls;
    return value + 5000;
}

// The bytes around a function, to prove that a restoration is complete.
std::vector<unsigned char> BytesAt(void *address, size_t size = 64)
{
    auto *first = static_cast<unsigned char *>(address);
    return std::vector<unsigned char>(first, first + size);
}

struct Installed {
    enum lamprey_status status;
    lamprey_hooks *hooks = nullptr;
    char reason[512];
};

Installed Install(enum lamprey_hook_method method, const std::vector<lamprey_hook_target> &targets)
{
    Installed result;
    result.status = lamprey_hooks_install(method, targets.data(), targets.size(), &result.hooks,
                                          result.reason, sizeof(result.reason));
    return result;
}

// Writable and executable mappings: nobody may leave one behind.
int DangerousMappings()
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

size_t ExecutableBytes()
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
int InChild(const std::function<int()> &body)
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

#ifdef __x86_64__

TEST_F(Hook, RedirectsEveryShapeAtEveryAlignment)
{
    const int dangerous = DangerousMappings();
    int refused = 0;
    for (const char *shape : kShapes) {
        for (int offset : kOffsets) {
            const std::string name = std::string("fixture_") + shape + "_" + std::to_string(offset);
            SCOPED_TRACE(name);
            Function function = Find(name);
            ASSERT_EQ(reinterpret_cast<uintptr_t>(function) % 64, static_cast<uintptr_t>(offset));
            const auto before = BytesAt(reinterpret_cast<void *>(function));
            original_function = nullptr;
            Installed installed = Install(LAMPREY_HOOK_TEXT, {Target(name.c_str(), AddThousand)});
            if (installed.status == LAMPREY_ERROR_UNSUPPORTED) {
                // A jump of five bytes before the end of a word has nothing that could precede it.
                EXPECT_STREQ(shape, "tail") << installed.reason;
                EXPECT_EQ(offset % 8, 7) << installed.reason;
                EXPECT_EQ(original_function, nullptr);
                ++refused;
                continue;
            }
            ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
            EXPECT_NE(BytesAt(reinterpret_cast<void *>(function)), before);
            for (long value : {0L, 1L, 7L, 8L, -5L, 1L << 40}) {
                EXPECT_EQ(function(value), value + 1100);
                EXPECT_EQ(original_function(value), value + 100);
            }
            lamprey_hooks_remove(installed.hooks);
            EXPECT_EQ(BytesAt(reinterpret_cast<void *>(function)), before);
            EXPECT_EQ(function(3), 103);
            // A thread may still be in the trampoline.
            EXPECT_EQ(original_function(3), 103);
        }
    }
    EXPECT_EQ(refused, 2);
    EXPECT_EQ(DangerousMappings(), dangerous);
    EXPECT_EQ(warnings, 0) << last_warning;
}

// The function's callee-saved registers and stack must be as a caller left them when the
// replacement starts, though some of the function's pushes have run.
TEST_F(Hook, LeavesRegistersAndStackToTheReplacement)
{
    for (const char *shape : {"frame", "pushes", "stack", "address", "vector"}) {
        for (int offset : kOffsets) {
            const std::string name = std::string("fixture_") + shape + "_" + std::to_string(offset);
            SCOPED_TRACE(name);
            Function function = Find(name);
            Installed installed = Install(LAMPREY_HOOK_TEXT, {Target(name.c_str(), Shifted)});
            ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
            long in[4] = {11, 22, 33, 44};
            long out[4];
            long result;
            long stack;
            __asm__ volatile("push %%rbp\n\t"
                             "mov %%rsp, %%r13\n\t"
                             "and $-16, %%rsp\n\t"
                             "mov 0(%[in]), %%rbx\n\t"
                             "mov 8(%[in]), %%rbp\n\t"
                             "mov 16(%[in]), %%r12\n\t"
                             "mov 24(%[in]), %%r15\n\t"
                             "push %[out]\n\t"
                             "push %[out]\n\t"
                             "mov %%rsp, %%r14\n\t"
                             "mov $7, %%edi\n\t"
                             "call *%%rax\n\t"
                             "sub %%rsp, %%r14\n\t"
                             "pop %%rcx\n\t"
                             "pop %%rcx\n\t"
                             "mov %%rbx, 0(%%rcx)\n\t"
                             "mov %%rbp, 8(%%rcx)\n\t"
                             "mov %%r12, 16(%%rcx)\n\t"
                             "mov %%r15, 24(%%rcx)\n\t"
                             "mov %%r13, %%rsp\n\t"
                             "pop %%rbp\n\t"
                             "mov %%r14, %[stack]\n\t"
                             : "=a"(result), [stack] "=&d"(stack)
                             : "0"(function), [in] "S"(in), [out] "D"(out)
                             : "rbx", "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                               "memory", "cc");
            EXPECT_EQ(result, 5007);
            EXPECT_EQ(stack, 0);
            for (int i = 0; i < 4; i++) {
                EXPECT_EQ(out[i], in[i]) << i;
            }
            lamprey_hooks_remove(installed.hooks);
        }
    }
}

TEST_F(Hook, RefusesWhatItCannotDoRightAndSaysWhy)
{
    int nothing = 0;
    void *original = &nothing;
    const struct {
        const char *name;
        const char *part; // of the reason
    } cases[] = {
        {"fixture_refused_short_0", "ends before"},
        {"fixture_refused_call_0", "call"},
        {"fixture_refused_back_0", "branch into"},
        {"fixture_refused_counter_0", "without a long form"},
        {"fixture_refused_unknown_0", "unknown instruction"},
        {"fixture_refused_split_7", "one store"},
    };
    for (const auto &test : cases) {
        SCOPED_TRACE(test.name);
        void *function = reinterpret_cast<void *>(Find(test.name));
        const auto before = BytesAt(function);
        Installed installed =
            Install(LAMPREY_HOOK_TEXT,
                    {{test.name, function, reinterpret_cast<void *>(Shifted), &original}});
        EXPECT_EQ(installed.status, LAMPREY_ERROR_UNSUPPORTED);
        EXPECT_NE(std::string(installed.reason).find(test.part), std::string::npos)
            << installed.reason;
        EXPECT_NE(std::string(installed.reason).find(test.name), std::string::npos);
        EXPECT_EQ(BytesAt(function), before);
        EXPECT_EQ(original, &nothing);
        EXPECT_EQ(installed.hooks, nullptr);
    }
}

TEST_F(Hook, UndoesTheFirstTargetsWhenTheLastFails)
{
    Function originals[3] = {};
    const char *names[] = {"fixture_frame_0", "fixture_load_3", "fixture_refused_call_0"};
    std::vector<lamprey_hook_target> targets;
    std::vector<std::vector<unsigned char>> before;
    for (int i = 0; i < 3; i++) {
        targets.push_back(Target(names[i], Shifted));
        targets.back().original = reinterpret_cast<void **>(&originals[i]);
        before.push_back(BytesAt(targets.back().function));
    }
    Installed installed = Install(LAMPREY_HOOK_TEXT, targets);
    EXPECT_EQ(installed.status, LAMPREY_ERROR_UNSUPPORTED);
    for (int i = 0; i < 3; i++) {
        EXPECT_EQ(BytesAt(targets[i].function), before[i]) << names[i];
        EXPECT_EQ(originals[i], nullptr);
    }
    EXPECT_EQ(Find("fixture_frame_0")(1), 101);
    // The same without the culprit works.
    targets.pop_back();
    installed = Install(LAMPREY_HOOK_TEXT, targets);
    ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
    EXPECT_EQ(Find("fixture_load_3")(1), 5001);
    lamprey_hooks_remove(installed.hooks);
    EXPECT_EQ(BytesAt(targets[0].function), before[0]);
}

TEST_F(Hook, RefusesAddressesThatAreNotCode)
{
    int data = 0;
    void *original = nullptr;
    void *unmapped = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(unmapped, 4096);
    for (void *address : {static_cast<void *>(&data), unmapped, reinterpret_cast<void *>(1)}) {
        Installed installed =
            Install(LAMPREY_HOOK_TEXT,
                    {{"nothing", address, reinterpret_cast<void *>(Shifted), &original}});
        EXPECT_EQ(installed.status, LAMPREY_ERROR_UNSUPPORTED);
        EXPECT_NE(std::string(installed.reason).find("code"), std::string::npos);
    }
}

TEST_F(Hook, LeavesWhatSomeoneElsePatchedOnTop)
{
    const char *name = "fixture_saved_0";
    Function function = Find(name);
    const auto before = BytesAt(reinterpret_cast<void *>(function));
    Function first = nullptr;
    Function second = nullptr;
    lamprey_hook_target target = Target(name, Shifted);
    target.original = reinterpret_cast<void **>(&first);
    Installed ours = Install(LAMPREY_HOOK_TEXT, {target});
    ASSERT_EQ(ours.status, LAMPREY_OK) << ours.reason;
    const auto patched = BytesAt(reinterpret_cast<void *>(function));
    target.original = reinterpret_cast<void **>(&second);
    Installed theirs = Install(LAMPREY_HOOK_TEXT, {target});
    ASSERT_EQ(theirs.status, LAMPREY_OK) << theirs.reason;
    const auto on_top = BytesAt(reinterpret_cast<void *>(function));
    EXPECT_NE(on_top, patched);
    EXPECT_EQ(second(1), 5001); // their original is our redirection

    lamprey_hooks_remove(ours.hooks);
    EXPECT_EQ(warnings, 1);
    EXPECT_NE(last_warning.find(name), std::string::npos);
    EXPECT_EQ(BytesAt(reinterpret_cast<void *>(function)), on_top);
    EXPECT_EQ(function(1), 5001);
    EXPECT_EQ(first(1), 101);

    // They put back what they found: our jump, whose trampoline is still there.
    lamprey_hooks_remove(theirs.hooks);
    EXPECT_EQ(BytesAt(reinterpret_cast<void *>(function)), patched);
    EXPECT_EQ(function(1), 5001);
    lamprey_hook_memory memory;
    lamprey_hook_memory_open(&memory);
    EXPECT_EQ(
        lamprey_hook_memory_write(&memory, reinterpret_cast<void *>(function), before.data(), 8),
        LAMPREY_OK);
    lamprey_hook_memory_close(&memory);
    EXPECT_EQ(BytesAt(reinterpret_cast<void *>(function)), before);
}

TEST_F(Hook, KeepsTwoImagesApart)
{
    const std::string path = Copy(Path("libhook_fixture.so"), "two");
    void *copy = Open(path);
    ASSERT_NE(copy, nullptr);
    auto second = reinterpret_cast<Function>(dlsym(copy, "fixture_frame_6"));
    Function first = Find("fixture_frame_6");
    ASSERT_NE(first, second);
    Function original_second = nullptr;
    lamprey_hook_target target = {"fixture_frame_6", reinterpret_cast<void *>(second),
                                  reinterpret_cast<void *>(Shifted),
                                  reinterpret_cast<void **>(&original_second)};
    Installed two = Install(LAMPREY_HOOK_TEXT, {target});
    ASSERT_EQ(two.status, LAMPREY_OK) << two.reason;
    EXPECT_EQ(first(1), 101);
    EXPECT_EQ(second(1), 5001);
    Installed one = Install(LAMPREY_HOOK_TEXT, {Target("fixture_frame_6", AddThousand)});
    ASSERT_EQ(one.status, LAMPREY_OK) << one.reason;
    EXPECT_EQ(first(1), 1101);
    EXPECT_EQ(second(1), 5001);
    lamprey_hooks_remove(two.hooks);
    EXPECT_EQ(first(1), 1101);
    EXPECT_EQ(second(1), 101);
    lamprey_hooks_remove(one.hooks);
    EXPECT_EQ(first(1), 101);
    dlclose(copy);
    unlink(path.c_str());
}

// An object that was unloaded while redirected, and another one loaded in its place.
TEST_F(Hook, SurvivesUnloadingAndReuseOfTheAddress)
{
    const std::string path = Copy(Path("libhook_fixture.so"), "reuse");
    Function original = nullptr;
    lamprey_hook_target target = {"fixture_frame_0", nullptr, reinterpret_cast<void *>(Shifted),
                                  reinterpret_cast<void **>(&original)};
    void *handle = Open(path);
    ASSERT_NE(handle, nullptr);
    target.function = dlsym(handle, "fixture_frame_0");
    void *const first_address = target.function;
    const auto pristine = BytesAt(first_address);
    Installed first = Install(LAMPREY_HOOK_TEXT, {target});
    Installed gone = first;
    ASSERT_EQ(first.status, LAMPREY_OK) << first.reason;
    dlclose(handle);

    handle = Open(path);
    ASSERT_NE(handle, nullptr);
    target.function = dlsym(handle, "fixture_frame_0");
    EXPECT_EQ(BytesAt(target.function), pristine);
    Installed second = Install(LAMPREY_HOOK_TEXT, {target});
    ASSERT_EQ(second.status, LAMPREY_OK) << second.reason;
    auto function = reinterpret_cast<Function>(target.function);
    EXPECT_EQ(function(1), 5001);
    lamprey_hooks_remove(first.hooks); // may warn, must not touch the second
    EXPECT_EQ(function(1), 5001);
    lamprey_hooks_remove(second.hooks);
    EXPECT_EQ(function(1), 101);
    EXPECT_EQ(BytesAt(target.function), pristine);

    gone = Install(LAMPREY_HOOK_TEXT, {target});
    ASSERT_EQ(gone.status, LAMPREY_OK) << gone.reason;
    dlclose(handle);
    lamprey_hooks_remove(gone.hooks); // unmapped: nothing to restore, no fault
    unlink(path.c_str());
}

Function outer_original;
Function inner_original;

long OuterReplacement(long value)
{
    ++replaced_calls;
    return outer_original(value);
}

long InnerReplacement(long value)
{
    ++replaced_calls;
    return inner_original(value);
}

TEST_F(Hook, PassesCallsFromInsideTheLibrary)
{
    lamprey_hook_target outer = Target("fixture_outer", OuterReplacement);
    lamprey_hook_target inner = Target("ncclAllReduce", InnerReplacement);
    outer.original = reinterpret_cast<void **>(&outer_original);
    inner.original = reinterpret_cast<void **>(&inner_original);
    Installed installed = Install(LAMPREY_HOOK_TEXT, {outer, inner});
    ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
    EXPECT_EQ(Find("fixture_outer")(1), 1101);
    EXPECT_EQ(replaced_calls, 2);
    lamprey_hooks_remove(installed.hooks);
    EXPECT_EQ(Find("fixture_outer")(1), 1101);
    EXPECT_EQ(replaced_calls, 2);
}

long Quietly(long value)
{
    return value + 5000;
}

TEST_F(Hook, IsSafeForThreadsInsideTheFunctions)
{
    std::vector<lamprey_hook_target> targets;
    std::vector<Function> functions;
    std::vector<void *> originals(128);
    for (const char *shape : {"frame", "saved", "pushes", "stack", "address", "branch", "marked"}) {
        for (int offset : {6, 63}) {
            const std::string name = std::string("fixture_") + shape + "_" + std::to_string(offset);
            functions.push_back(Find(name));
            targets.push_back({"fixture", reinterpret_cast<void *>(functions.back()),
                               reinterpret_cast<void *>(Quietly), &originals[targets.size()]});
        }
    }
    std::atomic<bool> stop{false};
    std::atomic<long> wrong{0};
    std::atomic<long> plain{0};
    std::atomic<long> replaced{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; t++) {
        threads.emplace_back([&] {
            // Nothing but the functions in the inner loop, so that the change meets threads there.
            while (!stop) {
                for (Function function : functions) {
                    long own_plain = 0;
                    long own_replaced = 0;
                    for (long value = 0; value < 200; value++) {
                        const long result = function(value);
                        own_plain += result == value + 100;
                        own_replaced += result == value + 5000;
                    }
                    plain += own_plain;
                    replaced += own_replaced;
                    wrong += 200 - own_plain - own_replaced;
                }
            }
        });
    }
    const char *rounds_text = getenv("LAMPREY_TEST_ROUNDS");
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    const int usual = 100;
#else
    const int usual = 1000;
#endif
    const int rounds = rounds_text != nullptr ? atoi(rounds_text) : usual;
    for (int round = 0; round < rounds; round++) {
        Installed installed = Install(LAMPREY_HOOK_TEXT, targets);
        ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
        std::this_thread::yield();
        lamprey_hooks_remove(installed.hooks);
    }
    stop = true;
    for (std::thread &thread : threads) {
        thread.join();
    }
    EXPECT_EQ(wrong, 0);
    EXPECT_GT(plain, 0);
    EXPECT_GT(replaced, 0);
    EXPECT_EQ(warnings, 0) << last_warning;
}

// Fills every gap within reach of address with memory that can't be used.
void FillNeighbourhood(uintptr_t address)
{
    const uintptr_t reach = (uintptr_t{1} << 31) + (uintptr_t{1} << 20);
    // Asked for more than the user's half, ThreadSanitizer maps at 0 instead.
    const uintptr_t top = (UINTPTR_MAX >> 17) & ~uintptr_t{4095};
    lamprey_hook_maps maps;
    if (lamprey_hook_maps_read(&maps) != LAMPREY_OK) {
        return;
    }
    for (size_t i = 0; i <= maps.count; i++) {
        uintptr_t start = i == 0 ? 65536 : maps.mappings[i - 1].end;
        uintptr_t end = i == maps.count ? top : maps.mappings[i].start;
        start = std::max(start, (address - reach) & ~uintptr_t{4095});
        end = std::min({end, address + reach, top});
        if (end > start) {
            mmap(reinterpret_cast<void *>(start), (end - start) & ~uintptr_t{4095}, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
        }
    }
    lamprey_hook_maps_free(&maps);
}

TEST_F(Hook, SaysThatNoPageIsNear)
{
    lamprey_hook_target target = Target("fixture_frame_0", Shifted);
    EXPECT_EQ(InChild([&] {
                  FillNeighbourhood(reinterpret_cast<uintptr_t>(target.function));
                  const auto before = BytesAt(target.function);
                  Installed installed = Install(LAMPREY_HOOK_TEXT, {target});
                  if (installed.status != LAMPREY_ERROR_MEMORY) {
                      return 1;
                  }
                  if (strstr(installed.reason, "no free page") == nullptr ||
                      strstr(installed.reason, "fixture_frame_0") == nullptr) {
                      return 2;
                  }
                  return BytesAt(target.function) == before ? 0 : 3;
              }),
              0);
}

// The first target has an island by the time that the second, far off, finds no room for one. Its
// name is nobody's symbol, so its size is not known either.
TEST_F(Hook, TakesIslandsBackWhenALaterTargetHasNoRoom)
{
#ifdef __SANITIZE_THREAD__
    GTEST_SKIP() << "ThreadSanitizer allows no mapping so far off";
#endif
    Function originals[2] = {};
    lamprey_hook_target near = Target("fixture_frame_0", Shifted);
    near.original = reinterpret_cast<void **>(&originals[0]);
    const auto before = BytesAt(near.function);
    EXPECT_EQ(
        InChild([&] {
            const uint8_t code[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x47, 0x64, 0x5d, 0xc3};
            void *place = reinterpret_cast<void *>(uintptr_t{1} << 45);
            void *page = mmap(place, 4096, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
            if (page != place) {
                return 1;
            }
            memcpy(page, code, sizeof(code));
            mprotect(page, 4096, PROT_READ | PROT_EXEC);
            FillNeighbourhood(reinterpret_cast<uintptr_t>(page));
            lamprey_hook_target far = near;
            far.function = page;
            far.name = "far";
            far.original = reinterpret_cast<void **>(&originals[1]);
            const size_t executable = ExecutableBytes();
            Installed installed = Install(LAMPREY_HOOK_TEXT, {near, far});
            if (installed.status != LAMPREY_ERROR_MEMORY) {
                return 2;
            }
            if (ExecutableBytes() != executable) {
                return 3;
            }
            if (originals[0] != nullptr || originals[1] != nullptr) {
                return 4;
            }
            if (BytesAt(near.function) != before) {
                return 5;
            }
            // With room it works.
            munmap(reinterpret_cast<void *>((uintptr_t{1} << 45) + 8192), 4096);
            installed = Install(LAMPREY_HOOK_TEXT, {near, far});
            if (installed.status != LAMPREY_OK) {
                return 6;
            }
            return reinterpret_cast<Function>(page)(1) == 5001 && originals[1](1) == 101 ? 0 : 7;
        }),
        0);
}

// In a process with hundreds of libraries the only room is a few pages here and there.
TEST_F(Hook, FindsTheOnlyFreePage)
{
    lamprey_hook_target target = Target("fixture_frame_0", Shifted);
    const auto address = reinterpret_cast<uintptr_t>(target.function);
    EXPECT_EQ(InChild([&] {
                  FillNeighbourhood(address);
                  // One page, a gigabyte off.
                  const uintptr_t hole = (address - (uintptr_t{1} << 30)) & ~uintptr_t{4095};
                  lamprey_hook_maps maps;
                  if (lamprey_hook_maps_read(&maps) != LAMPREY_OK) {
                      return 1;
                  }
                  const lamprey_hook_mapping *there = lamprey_hook_maps_find(&maps, hole);
                  if (there == nullptr || there->protection != PROT_NONE) {
                      return 2;
                  }
                  lamprey_hook_maps_free(&maps);
                  munmap(reinterpret_cast<void *>(hole), 4096);
                  Installed installed = Install(LAMPREY_HOOK_TEXT, {target});
                  if (installed.status != LAMPREY_OK) {
                      return 3;
                  }
                  if (reinterpret_cast<uintptr_t>(original_function) / 4096 != hole / 4096) {
                      return 4;
                  }
                  return Find("fixture_frame_0")(1) == 5001 && original_function(1) == 101 ? 0 : 5;
              }),
              0);
}

// The kernel answers EPERM whenever a file is opened for reading and writing, as one without
// forced writes to /proc/self/mem would.
bool RefuseForcedWrites()
{
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

TEST_F(Hook, ReplacesPagesWhereForcedWritesAreRefused)
{
    Function function = Find("fixture_frame_6");
    const auto before = BytesAt(reinterpret_cast<void *>(function));
    const int dangerous = DangerousMappings();
    lamprey_hook_target target = Target("fixture_frame_6", AddThousand);
    EXPECT_EQ(InChild([&] {
                  if (!RefuseForcedWrites()) {
                      return 1;
                  }
                  std::atomic<bool> stop{false};
                  std::atomic<bool> wrong{false};
                  std::thread caller([&] {
                      while (!stop) {
                          const long result = function(1);
                          wrong = wrong || (result != 101 && result != 1101);
                      }
                  });
                  int result = 0;
                  for (int round = 0; round < 200 && result == 0; round++) {
                      Installed installed = Install(LAMPREY_HOOK_TEXT, {target});
                      if (installed.status != LAMPREY_OK) {
                          result = 2;
                          fprintf(stderr, "%s\n", installed.reason);
                          break;
                      }
                      if (function(1) != 1101 || DangerousMappings() != dangerous) {
                          result = 3;
                      }
                      lamprey_hooks_remove(installed.hooks);
                      if (BytesAt(reinterpret_cast<void *>(function)) != before) {
                          result = 4;
                      }
                  }
                  stop = true;
                  caller.join();
                  return wrong ? 5 : result;
              }),
              0);
}

// Everything executable is refused: no page may be left over, and the reason names the call.
TEST_F(Hook, SaysThatTheSystemRefusesExecutableMemory)
{
    lamprey_hook_target target = Target("fixture_frame_0", Shifted);
    EXPECT_EQ(InChild([&] {
                  sock_filter code[] = {
                      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 3),
                      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
                      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 0, 1),
                      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 13 /* EACCES */),
                      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
                  };
                  sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
                  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
                      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
                      return 1;
                  }
                  Installed installed = Install(LAMPREY_HOOK_TEXT, {target});
                  if (installed.status != LAMPREY_ERROR_UNSUPPORTED) {
                      return 2;
                  }
                  return strstr(installed.reason, "mmap") != nullptr ? 0 : 3;
              }),
              0);
}

// The write that fails comes when both functions already hold their callers.
TEST_F(Hook, LetsCallersGoWhenAWriteFails)
{
    Function originals[2] = {};
    lamprey_hook_target targets[2] = {Target("fixture_frame_0", Shifted),
                                      Target("fixture_saved_60", Shifted)};
    targets[0].original = reinterpret_cast<void **>(&originals[0]);
    targets[1].original = reinterpret_cast<void **>(&originals[1]);
    const auto before = BytesAt(targets[1].function);
    EXPECT_EQ(InChild([&] {
                  // Single bytes are written only behind a jump that holds callers.
                  sock_filter code[] = {
                      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mremap, 3, 0),
                      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwrite64, 0, 3),
                      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
                      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 1),
                      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1 /* EPERM */),
                      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
                  };
                  sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
                  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
                      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
                      return 1;
                  }
                  Installed installed = Install(LAMPREY_HOOK_TEXT, {targets[0], targets[1]});
                  if (installed.status != LAMPREY_ERROR_SYSTEM) {
                      return 2;
                  }
                  if (strstr(installed.reason, "fixture_frame_0") == nullptr ||
                      strstr(installed.reason, "mremap") == nullptr) {
                      return 3;
                  }
                  if (BytesAt(targets[1].function) != before) {
                      return 4;
                  }
                  return Find("fixture_frame_0")(1) == 101 && Find("fixture_saved_60")(1) == 101
                             ? 0
                             : 5;
              }),
              0);
}

// A child with a thread in a function, which this process stops between the first two instructions
// of the site; then the child's main thread redirects the function.
class HookStopped : public Hook {
  protected:
    struct Shared {
        std::atomic<int> thread{0};
        std::atomic<bool> go{false};
        std::atomic<bool> stop{false};
        std::atomic<int> status{-1};
        std::atomic<int> wrong{0};
    };

    void SetUp() override
    {
        Hook::SetUp();
        Start();
    }

    void TearDown() override
    {
        Stop();
    }

    void Start()
    {
        function_ = Find("fixture_saved_0");
        void *memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        ASSERT_NE(memory, MAP_FAILED);
        shared_ = new (memory) Shared;
        child_ = fork();
        if (child_ == 0) {
            alarm(60);
            RunChild();
        }
        Await([&] { return shared_->thread != 0; });
        thread_ = shared_->thread;
        if (ptrace(PTRACE_SEIZE, thread_, nullptr, nullptr) != 0) {
            GTEST_SKIP() << "ptrace: " << strerror(errno);
        }
        ASSERT_EQ(ptrace(PTRACE_INTERRUPT, thread_, nullptr, nullptr), 0);
        const auto inside = reinterpret_cast<uintptr_t>(function_) + 2; // behind push %r15
        for (int step = 0; step < 1000000; step++) {
            int status = 0;
            ASSERT_EQ(waitpid(thread_, &status, __WALL), thread_);
            ASSERT_TRUE(WIFSTOPPED(status));
            user_regs_struct registers;
            ASSERT_EQ(ptrace(PTRACE_GETREGS, thread_, nullptr, &registers), 0);
            if (registers.rip == inside) {
                return;
            }
            ASSERT_EQ(ptrace(PTRACE_SINGLESTEP, thread_, nullptr, nullptr), 0);
        }
        FAIL() << "the thread never came by";
    }

    void Stop()
    {
        shared_->stop = true;
        ptrace(PTRACE_DETACH, thread_, nullptr, nullptr);
        int status = 0;
        kill(child_, SIGKILL);
        waitpid(child_, &status, 0);
        munmap(shared_, sizeof(Shared));
    }

    [[noreturn]] void RunChild()
    {
        std::thread caller([&] {
            shared_->thread = static_cast<int>(syscall(SYS_gettid));
            for (long value = 0; !shared_->stop; value++) {
                const long result = function_(value);
                shared_->wrong += result != value + 100 && result != value + 5000;
            }
        });
        while (!shared_->go) {
            usleep(1000);
        }
        shared_->status = Install(LAMPREY_HOOK_TEXT, {Target("fixture_saved_0", Quietly)}).status;
        caller.join();
        _exit(0);
    }

    template <typename Condition> bool Await(Condition condition, int tenths = 300)
    {
        for (int i = 0; i < tenths * 100 && !condition(); i++) {
            usleep(1000);
        }
        return condition();
    }

    // What the child has at the function's entry.
    uint64_t Entry()
    {
        return static_cast<uint64_t>(
            ptrace(PTRACE_PEEKTEXT, thread_, reinterpret_cast<void *>(function_), nullptr));
    }

    Function function_ = nullptr;
    Shared *shared_ = nullptr;
    pid_t child_ = 0;
    pid_t thread_ = 0;
};

TEST_F(HookStopped, WaitsForAThreadBetweenTwoInstructions)
{
    uint64_t before = 0;
    uint64_t held = 0;
    int status_held = 0;
    // The wait ends after 2 s. Where this process didn't get to look in the first of them, or the
    // child didn't get on in the second, the machine is too busy: once more.
    for (int attempt = 0; attempt < 10; attempt++) {
        if (attempt > 0) {
            Stop();
            Start();
            if (HasFatalFailure() || IsSkipped()) {
                return;
            }
        }
        const auto start = std::chrono::steady_clock::now();
        before = Entry();
        shared_->go = true;
        EXPECT_TRUE(Await([&] { return Entry() != before || shared_->status != -1; }));
        usleep(100000);
        status_held = shared_->status;
        held = Entry();
        EXPECT_EQ(ptrace(PTRACE_DETACH, thread_, nullptr, nullptr), 0);
        const bool in_time = std::chrono::steady_clock::now() - start < std::chrono::seconds(1);
        EXPECT_TRUE(Await([&] { return shared_->status != -1; }));
        if (HasFailure() || (in_time && shared_->status != LAMPREY_ERROR_TIMEOUT)) {
            break;
        }
    }
    // Callers are held, and the instruction at which the thread stands is as it was.
    EXPECT_EQ(status_held, -1);
    EXPECT_EQ(held, (before & ~uint64_t{0xffff}) | 0xfeeb);
    EXPECT_EQ(shared_->status, LAMPREY_OK);
    shared_->stop = true;
    int status = -1;
    EXPECT_EQ(waitpid(child_, &status, 0), child_);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(shared_->wrong, 0);
}

TEST_F(HookStopped, GivesUpOnAThreadThatStays)
{
    const uint64_t before = Entry();
    shared_->go = true;
    EXPECT_TRUE(Await([&] { return shared_->status != -1; }));
    EXPECT_EQ(shared_->status, LAMPREY_ERROR_TIMEOUT);
    EXPECT_EQ(Entry(), before);
    ASSERT_EQ(ptrace(PTRACE_DETACH, thread_, nullptr, nullptr), 0);
    shared_->stop = true;
    int status = -1;
    EXPECT_EQ(waitpid(child_, &status, 0), child_);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(shared_->wrong, 0);
}

#endif // __x86_64__

TEST_F(Hook, RefusesMalformedTargets)
{
    void *original = nullptr;
    lamprey_hook_target good = Target("ncclAllReduce", Shifted);
    lamprey_hook_target bad[4] = {good, good, good, good};
    bad[0].name = nullptr;
    bad[1].function = nullptr;
    bad[2].replacement = nullptr;
    bad[3].original = nullptr;
    for (enum lamprey_hook_method method : {LAMPREY_HOOK_TEXT, LAMPREY_HOOK_GOT}) {
        for (const lamprey_hook_target &target : bad) {
            Installed installed = Install(method, {target});
            EXPECT_EQ(installed.status, LAMPREY_ERROR_INVALID);
            EXPECT_STRNE(installed.reason, "");
        }
        lamprey_hook_target twin = good;
        twin.name = "pncclAllReduce";
        twin.original = &original;
        EXPECT_EQ(Install(method, {good, twin}).status, LAMPREY_ERROR_INVALID);
        EXPECT_EQ(Install(method, {}).status, LAMPREY_ERROR_INVALID);
    }
    lamprey_hooks_remove(nullptr);
    lamprey_hooks_refresh(nullptr);
    EXPECT_EQ(Find("ncclAllReduce")(1), 101);
}

TEST_F(Hook, KeepsTheReasonInItsBounds)
{
    lamprey_hook_target target = Target("ncclAllReduce", Shifted);
    lamprey_hooks *hooks = nullptr;
    char reason[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    target.function = nullptr;
    EXPECT_EQ(lamprey_hooks_install(LAMPREY_HOOK_TEXT, &target, 1, &hooks, reason, 4),
              LAMPREY_ERROR_INVALID);
    EXPECT_EQ(reason[3], '\0');
    EXPECT_EQ(reason[4], 1);
}

// What the loader made read-only in the object that holds address.
struct Relro {
    uintptr_t inside;
    uintptr_t start = 0;
    uintptr_t end = 0;
};

Relro FindRelro(void *address)
{
    Relro relro{reinterpret_cast<uintptr_t>(address)};
    dl_iterate_phdr(
        [](dl_phdr_info *info, size_t, void *context) {
            auto *found = static_cast<Relro *>(context);
            bool contains = false;
            for (int i = 0; i < info->dlpi_phnum; i++) {
                const ElfW(Phdr) &header = info->dlpi_phdr[i];
                const uintptr_t start = info->dlpi_addr + header.p_vaddr;
                contains = contains || (header.p_type == PT_LOAD && found->inside >= start &&
                                        found->inside - start < header.p_memsz);
            }
            for (int i = 0; contains && i < info->dlpi_phnum; i++) {
                const ElfW(Phdr) &header = info->dlpi_phdr[i];
                if (header.p_type == PT_GNU_RELRO) {
                    found->start = info->dlpi_addr + header.p_vaddr;
                    found->end = (found->start + header.p_memsz) & ~uintptr_t{4095};
                }
            }
            return contains ? 1 : 0;
        },
        &relro);
    return relro;
}

// The GOT method, on objects that reach the fixture lazily bound, bound at load and read-only, and
// through pointers in data.
class HookGot : public Hook {
  protected:
    void SetUp() override
    {
        Hook::SetUp();
        target_ = Target("ncclAllReduce", AddThousand);
    }

    static Function In(void *library, const char *name)
    {
        return reinterpret_cast<Function>(dlsym(library, name));
    }

    lamprey_hook_target target_;
};

TEST_F(HookGot, RedirectsEveryKindOfSlot)
{
    const std::string lazy_path = Copy(Path("libhook_caller_lazy.so"), "lazy");
    void *lazy = Open(lazy_path);
    void *now = Open(Path("libhook_caller_now.so"));
    ASSERT_TRUE(lazy != nullptr && now != nullptr);
    const int dangerous = DangerousMappings();
    EXPECT_EQ(Find("fixture_outer")(1), 1101); // binds the image's own slot
    // Nothing has called through the lazy one yet.
    Installed installed = Install(LAMPREY_HOOK_GOT, {target_});
    ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
    EXPECT_EQ(original_function, Find("ncclAllReduce"));
    for (void *library : {lazy, now}) {
        for (const char *name : {"caller_call", "caller_call_table", "caller_call_constant"}) {
            EXPECT_EQ(In(library, name)(1), 1101) << name;
        }
    }
    // The image's own calls and dlsym's users are not caught, as the header says.
    EXPECT_EQ(Find("fixture_outer")(1), 1101);
    EXPECT_EQ(Find("ncclAllReduce")(1), 101);
    EXPECT_EQ(replaced_calls, 6);
    lamprey_hooks_remove(installed.hooks);
    for (void *library : {lazy, now}) {
        for (const char *name : {"caller_call", "caller_call_table", "caller_call_constant"}) {
            EXPECT_EQ(In(library, name)(1), 101) << name;
        }
    }
    EXPECT_EQ(replaced_calls, 6);
    EXPECT_EQ(DangerousMappings(), dangerous);
    dlclose(lazy);
    unlink(lazy_path.c_str());
}

TEST_F(HookGot, RestoresReadOnlyProtection)
{
    void *now = Open(Path("libhook_caller_now.so"));
    ASSERT_NE(now, nullptr);
    Installed installed = Install(LAMPREY_HOOK_GOT, {target_});
    ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
    // The slot that the call goes through holds the replacement and is not writable.
    const Relro relro = FindRelro(dlsym(now, "caller_table"));
    ASSERT_LT(relro.start, relro.end);
    lamprey_hook_maps maps;
    ASSERT_EQ(lamprey_hook_maps_read(&maps), LAMPREY_OK);
    int read_only_slots = 0;
    for (uintptr_t at = relro.start; at < relro.end; at += 8) {
        const lamprey_hook_mapping *mapping = lamprey_hook_maps_find(&maps, at);
        ASSERT_NE(mapping, nullptr);
        EXPECT_EQ(mapping->protection, PROT_READ);
        read_only_slots += *reinterpret_cast<void **>(at) == target_.replacement;
    }
    lamprey_hook_maps_free(&maps);
    EXPECT_GE(read_only_slots, 2); // GLOB_DAT, and the constant table in .data.rel.ro
    lamprey_hooks_remove(installed.hooks);
}

TEST_F(HookGot, RefreshFindsWhatWasLoadedSince)
{
    Installed installed = Install(LAMPREY_HOOK_GOT, {target_});
    ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
    const std::string path = Copy(Path("libhook_caller_now.so"), "late");
    void *late = Open(path);
    ASSERT_NE(late, nullptr);
    EXPECT_EQ(In(late, "caller_call")(1), 101);
    lamprey_hooks_refresh(installed.hooks);
    EXPECT_EQ(In(late, "caller_call")(1), 1101);
    // Again, and after the object has been replaced by another at perhaps the same place.
    lamprey_hooks_refresh(installed.hooks);
    EXPECT_EQ(In(late, "caller_call")(1), 1101);
    dlclose(late);
    late = Open(path);
    ASSERT_NE(late, nullptr);
    lamprey_hooks_refresh(installed.hooks);
    EXPECT_EQ(In(late, "caller_call")(1), 1101);
    lamprey_hooks_remove(installed.hooks);
    EXPECT_EQ(In(late, "caller_call")(1), 101);
    dlclose(late);
    unlink(path.c_str());
}

TEST_F(HookGot, RemovesAfterTheCallerIsGone)
{
    const std::string path = Copy(Path("libhook_caller_now.so"), "gone");
    void *caller = Open(path);
    ASSERT_NE(caller, nullptr);
    Installed installed = Install(LAMPREY_HOOK_GOT, {target_});
    ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
    EXPECT_EQ(In(caller, "caller_call")(1), 1101);
    dlclose(caller);
    lamprey_hooks_remove(installed.hooks);
    unlink(path.c_str());
}

TEST_F(HookGot, LeavesCallersOfANamesakeAlone)
{
    const std::string fixture = Copy(Path("libhook_fixture.so"), "namesake");
    void *other = Open(fixture);
    const std::string lazy_path = Copy(Path("libhook_caller_lazy.so"), "namesake_lazy");
    void *now = Open(Path("libhook_caller_now.so"));
    void *lazy = Open(lazy_path);
    ASSERT_TRUE(other != nullptr && now != nullptr && lazy != nullptr);
    // The callers are bound, or will be, to the first fixture; the target is the second one's
    // function.
    target_.function = dlsym(other, "ncclAllReduce");
    ASSERT_NE(target_.function, reinterpret_cast<void *>(Find("ncclAllReduce")));
    Installed installed = Install(LAMPREY_HOOK_GOT, {target_});
    ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
    EXPECT_EQ(In(now, "caller_call")(1), 101);
    EXPECT_EQ(In(lazy, "caller_call")(1), 101);
    EXPECT_EQ(replaced_calls, 0);
    lamprey_hooks_remove(installed.hooks);
    dlclose(other);
    dlclose(lazy);
    unlink(fixture.c_str());
    unlink(lazy_path.c_str());
}

TEST_F(HookGot, WorksWhereForcedWritesAreRefused)
{
#ifdef __x86_64__
    void *now = Open(Path("libhook_caller_now.so"));
    ASSERT_NE(now, nullptr);
    EXPECT_EQ(InChild([&] {
                  if (!RefuseForcedWrites()) {
                      return 1;
                  }
                  Installed installed = Install(LAMPREY_HOOK_GOT, {target_});
                  if (installed.status != LAMPREY_OK) {
                      return 2;
                  }
                  if (In(now, "caller_call")(1) != 1101) {
                      return 3;
                  }
                  const Relro relro = FindRelro(dlsym(now, "caller_table"));
                  lamprey_hook_maps maps;
                  if (relro.start >= relro.end || lamprey_hook_maps_read(&maps) != LAMPREY_OK) {
                      return 5;
                  }
                  const lamprey_hook_mapping *mapping = lamprey_hook_maps_find(&maps, relro.start);
                  if (mapping == nullptr || mapping->protection != PROT_READ) {
                      return 6;
                  }
                  lamprey_hook_maps_free(&maps);
                  lamprey_hooks_remove(installed.hooks);
                  return In(now, "caller_call")(1) == 101 ? 0 : 4;
              }),
              0);
#endif
}

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
            if (access(candidate.c_str(), R_OK) == 0) {
                path_ = candidate;
                break;
            }
        }
        if (path_.empty()) {
            GTEST_SKIP() << "no libnccl.so.2 in LAMPREY_TEST_NCCL, CUDA_HOME or /usr/local/cuda";
        }
        library_ = Open(path_);
        ASSERT_NE(library_, nullptr);
        ASSERT_EQ(lamprey_image_of(dlsym(library_, "ncclAllReduce"), &image_), LAMPREY_OK);
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
