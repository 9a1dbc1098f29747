// SPDX-License-Identifier: Apache-2.0
// Functions redirected by their first bytes.
#include "tests/hook_world.h"

namespace {

using namespace hook_test;

// Where there is a far jump, it is what is left when the room near by is taken.
class HookText : public Hook, public ::testing::WithParamInterface<bool> {
  protected:
    void SetUp() override
    {
        Hook::SetUp();
        const auto address = reinterpret_cast<uintptr_t>(dlsym(library_, "ncclAllReduce"));
        if (GetParam()) {
            ASSERT_EQ(lamprey_test_crowd(&crowded_, address, address, kReach), LAMPREY_OK);
        }
    }

    void TearDown() override
    {
        lamprey_test_uncrowd(&crowded_);
    }

    // Whether the function is redirected by the jump that is to be tested.
    bool IsByItsJump(Function function, Function original)
    {
        const auto from = reinterpret_cast<uintptr_t>(function);
        const auto to = reinterpret_cast<uintptr_t>(original);
        return ((from < to ? to - from : from - to) > kReach) == GetParam();
    }

    // Shapes without the room that the jump takes.
    bool HasNoRoom(const std::string &shape, int offset)
    {
#ifdef __x86_64__
        // A jump of five bytes before the end of a word has nothing that could precede it.
        return shape == "tail" && offset % 8 == 7;
#else
        (void)offset;
        return GetParam() &&
               (shape == "tail" || shape == "last" || shape == "call" || shape == "back");
#endif
    }

    lamprey_test_crowded crowded_ = {nullptr, 0};
};

#ifdef __x86_64__
INSTANTIATE_TEST_SUITE_P(Near, HookText, ::testing::Values(false));
#else
INSTANTIATE_TEST_SUITE_P(Near, HookText, ::testing::Values(false));
INSTANTIATE_TEST_SUITE_P(Far, HookText, ::testing::Values(true));
#endif

TEST_P(HookText, RedirectsEveryShapeAtEveryAlignment)
{
    const int dangerous = DangerousMappings();
    for (const char *shape : kShapes) {
        for (int offset : kOffsets) {
            const std::string name = std::string("fixture_") + shape + "_" + std::to_string(offset);
            SCOPED_TRACE(name);
            Function function = Find(name);
            ASSERT_EQ(reinterpret_cast<uintptr_t>(function) % 64, static_cast<uintptr_t>(offset));
            const auto before = BytesAt(reinterpret_cast<void *>(function));
            original_function = nullptr;
            Installed installed = Install(LAMPREY_HOOK_TEXT, {Target(name.c_str(), AddThousand)});
            if (HasNoRoom(shape, offset)) {
                EXPECT_EQ(installed.status, LAMPREY_ERROR_UNSUPPORTED);
                EXPECT_EQ(original_function, nullptr);
                EXPECT_EQ(BytesAt(reinterpret_cast<void *>(function)), before);
                continue;
            }
            ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
            EXPECT_NE(BytesAt(reinterpret_cast<void *>(function)), before);
            EXPECT_TRUE(IsByItsJump(function, original_function));
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
    EXPECT_EQ(DangerousMappings(), dangerous);
    EXPECT_EQ(warnings, 0) << last_warning;
}

// Calls function(7) with in in four of the registers that it must keep, and tells what they hold
// then and by how much the stack pointer has moved.
void CallWithRegisters(Function function, const long in[4], long out[4], long *result, long *stack)
{
#ifdef __x86_64__
    long moved;
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
                     "mov %%r14, %[moved]\n\t"
                     : "=a"(*result), [moved] "=&d"(moved)
                     : "0"(function), [in] "S"(in), [out] "D"(out)
                     : "rbx", "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory",
                       "cc");
    *stack = moved;
#else
    register long value __asm__("x0") = 7;
    register Function callee __asm__("x9") = function;
    register const long *from __asm__("x10") = in;
    register long *to __asm__("x11") = out;
    register long moved __asm__("x12");
    // The callee-saved registers and the frame's, by way of which the rest is found again.
    __asm__ volatile("stp x11, x29, [sp, #-16]!\n\t"
                     "ldp x19, x20, [x10]\n\t"
                     "ldr x29, [x10, #16]\n\t"
                     "ldr d8, [x10, #24]\n\t"
                     "mov x21, sp\n\t"
                     "blr x9\n\t"
                     "mov x12, sp\n\t"
                     "sub x12, x21, x12\n\t"
                     "mov sp, x21\n\t"
                     "mov x10, x29\n\t"
                     "ldp x11, x29, [sp], #16\n\t"
                     "stp x19, x20, [x11]\n\t"
                     "str x10, [x11, #16]\n\t"
                     "str d8, [x11, #24]\n\t"
                     : "+r"(value), "+r"(callee), "+r"(from), "+r"(to), "=r"(moved)
                     :
                     : "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x13", "x14", "x15", "x16",
                       "x17", "x18", "x19", "x20", "x21", "x30", "v0", "v1", "v2", "v3", "v4", "v5",
                       "v6", "v7", "v8", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23",
                       "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31", "memory", "cc");
    *result = value;
    *stack = moved;
#endif
}

// The function's callee-saved registers and stack must be as a caller left them when the
// replacement starts, though some of the function's pushes have run.
TEST_P(HookText, LeavesRegistersAndStackToTheReplacement)
{
    for (const char *shape : kShapes) {
        for (int offset : kOffsets) {
            const std::string name = std::string("fixture_") + shape + "_" + std::to_string(offset);
            SCOPED_TRACE(name);
            Function function = Find(name);
            Installed installed = Install(LAMPREY_HOOK_TEXT, {Target(name.c_str(), Shifted)});
            if (HasNoRoom(shape, offset)) {
                continue;
            }
            ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
            const long in[4] = {11, 22, 33, 44};
            long out[4];
            long result;
            long stack;
            CallWithRegisters(function, in, out, &result, &stack);
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
#ifdef __x86_64__
        {"fixture_refused_short_0", "ends before"},
        {"fixture_refused_call_0", "call"},
        {"fixture_refused_back_0", "branch into"},
        {"fixture_refused_counter_0", "without a long form"},
        {"fixture_refused_unknown_0", "unknown instruction"},
        {"fixture_refused_split_7", "one store"},
#else
        {"fixture_refused_short_0", "ends before +8"},
        {"fixture_refused_call_0", "call at +0"},
        {"fixture_refused_call_4", "call at +4"},
        {"fixture_refused_register_0", "call at +0"},
        {"fixture_refused_register_4", "call at +4"},
        {"fixture_refused_system_0", "system call at +0"},
        {"fixture_refused_system_4", "system call at +4"},
        {"fixture_refused_literal_0", "relative load"},
        {"fixture_refused_literal_4", "relative load"},
        {"fixture_refused_signed_0", "relative load"},
        {"fixture_refused_signed_4", "relative load"},
        {"fixture_refused_vector_0", "relative load"},
        {"fixture_refused_vector_4", "relative load"},
#endif
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

TEST_P(HookText, UndoesTheFirstTargetsWhenTheLastFails)
{
    Function originals[3] = {};
    const char *names[] = {"fixture_frame_0", "fixture_address_4", "fixture_refused_call_0"};
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
    EXPECT_EQ(Find("fixture_address_4")(1), 5001);
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

TEST_P(HookText, LeavesWhatSomeoneElsePatchedOnTop)
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
    EXPECT_TRUE(IsByItsJump(function, first));
    const auto patched = BytesAt(reinterpret_cast<void *>(function));
    target.original = reinterpret_cast<void **>(&second);
    Installed theirs = Install(LAMPREY_HOOK_TEXT, {target});
    ASSERT_EQ(theirs.status, LAMPREY_OK) << theirs.reason;
    EXPECT_TRUE(IsByItsJump(function, second));
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
    auto second = reinterpret_cast<Function>(dlsym(copy, "fixture_frame_4"));
    Function first = Find("fixture_frame_4");
    ASSERT_NE(first, second);
    Function original_second = nullptr;
    lamprey_hook_target target = {"fixture_frame_4", reinterpret_cast<void *>(second),
                                  reinterpret_cast<void *>(Shifted),
                                  reinterpret_cast<void **>(&original_second)};
    Installed two = Install(LAMPREY_HOOK_TEXT, {target});
    ASSERT_EQ(two.status, LAMPREY_OK) << two.reason;
    EXPECT_EQ(first(1), 101);
    EXPECT_EQ(second(1), 5001);
    Installed one = Install(LAMPREY_HOOK_TEXT, {Target("fixture_frame_4", AddThousand)});
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

TEST_P(HookText, PassesCallsFromInsideTheLibrary)
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

TEST_P(HookText, IsSafeForThreadsInsideTheFunctions)
{
    std::vector<lamprey_hook_target> targets;
    std::vector<Function> functions;
    std::vector<void *> originals(128);
    for (const char *shape : {"frame", "saved", "stack", "address", "branch", "marked", "vector"}) {
        for (int offset : kCrossingOffsets) {
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
    // Where callers are held, each round waits for the threads twice.
    const int usual = !IsEmulated() ? 1000 : GetParam() ? 15 : 100;
#endif
    const int rounds = rounds_text != nullptr ? atoi(rounds_text) : usual;
    for (int round = 0; round < rounds; round++) {
        Installed installed = Install(LAMPREY_HOOK_TEXT, targets);
        ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
        EXPECT_TRUE(IsByItsJump(functions.front(), reinterpret_cast<Function>(originals.front())));
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

} // namespace
