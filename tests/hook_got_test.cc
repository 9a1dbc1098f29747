// SPDX-License-Identifier: Apache-2.0
// Functions redirected by their callers' slots.
#include "tests/hook_world.h"

namespace {

using namespace hook_test;

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
}

} // namespace
