// SPDX-License-Identifier: Apache-2.0
// Threads that stand between the instructions that are to be replaced.
#include "tests/hook_world.h"

namespace {

using namespace hook_test;

#ifdef __x86_64__

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

} // namespace
