// SPDX-License-Identifier: Apache-2.0
// Jumps of two instructions, which aarch64 has for islands further off than one reaches.
#include "tests/hook_world.h"

#ifdef __aarch64__

#include <sys/auxv.h>

namespace {

using namespace hook_test;

// From the kernel's headers, which old toolchains lack.
constexpr int kProtBti = 0x10;
constexpr unsigned long kHwcap2Bti = 1UL << 17;

class HookFar : public Hook {
  protected:
    void SetUp() override
    {
        Hook::SetUp();
        const auto address = reinterpret_cast<uintptr_t>(Find("ncclAllReduce"));
        ASSERT_EQ(lamprey_test_crowd(&crowded_, address, address, kReach), LAMPREY_OK);
    }

    void TearDown() override
    {
        lamprey_test_uncrowd(&crowded_);
    }

    lamprey_test_crowded crowded_ = {nullptr, 0};
};

TEST_F(HookFar, RefusesWhatHasNoRoomAndSaysWhy)
{
    const struct {
        const char *function;
        const char *name; // as it is told: one that is no symbol leaves the size unknown
        const char *part; // of the reason
    } cases[] = {
        {"fixture_tail_0", "fixture_tail_0", "the function ends before +8"},
        {"fixture_tail_0", "unknown", "before the room for a jump does at +0"},
        {"fixture_last_0", "fixture_last_0", "the function ends before +12"},
        {"fixture_last_0", "unknown", "before the room for a jump does at +4"},
        {"fixture_call_0", "fixture_call_0", "call at +4"},
        {"fixture_back_0", "fixture_back_0", "branch into the bytes to be replaced at +12"},
        {"fixture_refused_literal_0", "fixture_refused_literal_0", "relative load at +0"},
    };
    void *original = nullptr;
    for (const auto &test : cases) {
        SCOPED_TRACE(test.function);
        void *function = reinterpret_cast<void *>(Find(test.function));
        const auto before = BytesAt(function);
        Installed installed =
            Install(LAMPREY_HOOK_TEXT,
                    {{test.name, function, reinterpret_cast<void *>(Shifted), &original}});
        EXPECT_EQ(installed.status, LAMPREY_ERROR_UNSUPPORTED);
        EXPECT_NE(std::string(installed.reason).find(test.part), std::string::npos)
            << installed.reason;
        EXPECT_EQ(BytesAt(function), before);
        EXPECT_EQ(original, nullptr);
    }
}

// A thread that runs into a site must find one of three pairs there: the function's own two
// instructions, ours, or a jump to itself before either's second.
TEST_F(HookFar, ChangesTheSecondInstructionWhileTheFirstHoldsCallers)
{
    constexpr uint32_t kHold = 0x14000000;
    const lamprey_hook_target target = Target("fixture_saved_0", AddThousand);
    const auto *site = static_cast<const std::atomic<uint64_t> *>(target.function);
    const uint64_t own = *site;
    std::atomic<bool> stop{false};
    std::vector<uint64_t> seen;
    std::thread watcher([&] {
        uint64_t last = 0;
        while (!stop) {
            const uint64_t now = *site;
            if (now != last && std::find(seen.begin(), seen.end(), now) == seen.end()) {
                seen.push_back(now);
            }
            last = now;
        }
    });
    std::vector<uint64_t> jumps;
    for (int round = 0; round < 50; round++) {
        Installed installed = Install(LAMPREY_HOOK_TEXT, {target});
        ASSERT_EQ(installed.status, LAMPREY_OK) << installed.reason;
        jumps.push_back(*site);
        EXPECT_EQ(Find("fixture_saved_0")(1), 1101);
        lamprey_hooks_remove(installed.hooks);
        EXPECT_EQ(*site, own);
    }
    stop = true;
    watcher.join();
    bool held = false;
    for (uint64_t now : seen) {
        const bool is_jump = std::find(jumps.begin(), jumps.end(), now) != jumps.end();
        held = held || static_cast<uint32_t>(now) == kHold;
        EXPECT_TRUE(now == own || is_jump || static_cast<uint32_t>(now) == kHold)
            << std::hex << now;
    }
    EXPECT_TRUE(held);
}

// Calls function(value) in pages where an indirect branch must come to a landing pad.
long CallGuarded(Function function, void *inside, long value)
{
    auto *page = reinterpret_cast<char *>(reinterpret_cast<uintptr_t>(inside) & ~uintptr_t{4095});
    if (mprotect(page, 2 * 4096, PROT_READ | PROT_EXEC | kProtBti) != 0) {
        return -1;
    }
    return function(value);
}

// Near and far: what the trampoline goes back to is no landing pad.
TEST_F(HookFar, ComesBackToGuardedPages)
{
    if ((getauxval(AT_HWCAP2) & kHwcap2Bti) == 0) {
        GTEST_SKIP() << "this processor checks no indirect branches";
    }
    EXPECT_EQ(InChild([&] {
                  CallGuarded(Find("fixture_frame_0"),
                              reinterpret_cast<void *>(Find("fixture_frame_0")), 1);
                  return 0;
              }),
              1000 + SIGILL);
    for (const bool far : {true, false}) {
        if (!far) {
            lamprey_test_uncrowd(&crowded_);
        }
        for (const char *shape : {"marked", "signed", "keyed", "guarded", "last"}) {
            const std::string name = std::string("fixture_") + shape + "_0";
            if (far && strcmp(shape, "last") == 0) {
                continue;
            }
            EXPECT_EQ(InChild([&] {
                          lamprey_hook_target target = Target(name.c_str(), AddThousand);
                          Installed installed = Install(LAMPREY_HOOK_TEXT, {target});
                          auto function = reinterpret_cast<Function>(target.function);
                          return installed.status == LAMPREY_OK &&
                                         CallGuarded(function, target.function, 1) == 1101 &&
                                         function(0) == 1100
                                     ? 0
                                     : 1;
                      }),
                      0)
                << name << far;
        }
    }
}

} // namespace

#endif // __aarch64__
