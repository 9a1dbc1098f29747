// SPDX-License-Identifier: Apache-2.0
// Where islands find room, and what happens where there is none or the system refuses.
#include "tests/hook_world.h"

namespace {

using namespace hook_test;

// Fills every gap within reach of address with memory that can't be used.
void FillNeighbourhood(uintptr_t address, uintptr_t reach)
{
    lamprey_test_crowded crowd;
    EXPECT_EQ(lamprey_test_crowd(&crowd, address, address, reach), LAMPREY_OK);
}

TEST_F(Hook, SaysThatNoPageIsNear)
{
    lamprey_hook_target target = Target("fixture_frame_0", Shifted);
    EXPECT_EQ(InChild([&] {
                  FillNeighbourhood(reinterpret_cast<uintptr_t>(target.function), kFarthest);
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
#ifdef __x86_64__
            const uint8_t code[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x47, 0x64, 0x5d, 0xc3};
#else // add x0, x0, #99; add x0, x0, #1; ret
            const uint32_t code[] = {0x91018c00, 0x91000400, 0xd65f03c0};
#endif
            void *place = reinterpret_cast<void *>(uintptr_t{1} << 45);
            void *page = mmap(place, 4096, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
            if (page != place) {
                return 1;
            }
            memcpy(page, code, sizeof(code));
            mprotect(page, 4096, PROT_READ | PROT_EXEC);
            FillNeighbourhood(reinterpret_cast<uintptr_t>(page), kFarthest);
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
                  FillNeighbourhood(address, kReach);
                  // One page, half as far off as it may be.
                  const uintptr_t hole = (address - kReach / 2) & ~uintptr_t{4095};
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

TEST_F(Hook, ReplacesPagesWhereForcedWritesAreRefused)
{
    Function function = Find("fixture_frame_4");
    const auto before = BytesAt(reinterpret_cast<void *>(function));
    const int dangerous = DangerousMappings();
    lamprey_hook_target target = Target("fixture_frame_4", AddThousand);
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
    if (IsEmulated()) {
        GTEST_SKIP() << "the emulator refuses no system call";
    }
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

#ifdef __x86_64__

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
                  // Less than a word is written only behind a jump that holds callers.
                  sock_filter code[] = {
                      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mremap, 3, 0),
                      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwrite64, 0, 3),
                      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
                      BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 8, 1, 0),
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

#endif // __x86_64__

} // namespace
