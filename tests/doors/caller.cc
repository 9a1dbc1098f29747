// SPDX-License-Identifier: Apache-2.0
// One process of doors_test: loads a NCCL, lets a door open, and prints what came of it.
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include <nccl.h>

#include "plugin/nccl_functions.h"
#include "tests/doors/bad_calls.h"

namespace {

// The jump may stand behind the first instructions, where it can be written by one aligned store.
constexpr size_t kEntryBytes = 16;

#define NAME(entry, parameters, arguments) "nccl" #entry,
const char *const kFunctions[] = {LAMPREY_NCCL_INTERCEPTED(NAME) LAMPREY_NCCL_ORDERED(NAME)};
#undef NAME

[[noreturn]] void die(const char *what, const char *detail)
{
    printf("error: %s: %s\n", what, detail != nullptr ? detail : "");
    exit(2);
}

void *open_library(const char *path, int flags)
{
    void *handle = dlopen(path, RTLD_NOW | flags);
    if (handle == nullptr) {
        die("dlopen", dlerror());
    }
    return handle;
}

template <typename Function> Function find(void *handle, const char *name)
{
    auto function = reinterpret_cast<Function>(dlsym(handle, name));
    if (function == nullptr) {
        die("dlsym", dlerror());
    }
    return function;
}

// The bytes that the file has where address is mapped from.
std::string bytes_in_file(void *address, size_t size)
{
    Dl_info info;
    link_map *map = nullptr;
    if (dladdr1(address, &info, reinterpret_cast<void **>(&map), RTLD_DL_LINKMAP) == 0) {
        die("dladdr", "no object");
    }
    uintptr_t value = reinterpret_cast<uintptr_t>(address) - map->l_addr;
    std::ifstream file(info.dli_fname, std::ios::binary);
    ElfW(Ehdr) header;
    file.read(reinterpret_cast<char *>(&header), sizeof(header));
    for (int i = 0; i < header.e_phnum; i++) {
        ElfW(Phdr) segment;
        file.seekg(header.e_phoff + i * sizeof(segment));
        file.read(reinterpret_cast<char *>(&segment), sizeof(segment));
        if (segment.p_type == PT_LOAD && value >= segment.p_vaddr &&
            value - segment.p_vaddr < segment.p_filesz) {
            std::string bytes(size, '\0');
            file.seekg(segment.p_offset + value - segment.p_vaddr);
            file.read(&bytes[0], size);
            return bytes;
        }
    }
    die("no segment", info.dli_fname);
}

// Whether the functions that nccl has differ in their first bytes from the file's: all, none, or
// the names of those that don't.
void print_redirected(const char *label, void *nccl)
{
    int redirected = 0;
    int present = 0;
    std::string untouched;
    for (const char *name : kFunctions) {
        void *function = dlsym(nccl, name);
        if (function == nullptr) {
            continue;
        }
        present++;
        if (memcmp(function, bytes_in_file(function, kEntryBytes).data(), kEntryBytes) != 0) {
            redirected++;
        } else {
            untouched += std::string(" ") + name;
        }
    }
    printf("%s=%s\n", label,
           redirected == 0         ? "none"
           : redirected == present ? "all"
                                   : ("all but" + untouched).c_str());
}

int visit(dl_phdr_info *info, size_t, void *context)
{
    static_cast<std::vector<std::string> *>(context)->push_back(info->dlpi_name);
    return 0;
}

// Copies of the library in this process, and whether its own interface works.
void print_library()
{
    std::vector<std::string> names;
    dl_iterate_phdr(visit, &names);
    int copies = 0;
    int stats = -1;
    for (const std::string &name : names) {
        void *handle = name.empty() ? nullptr : dlopen(name.c_str(), RTLD_NOLOAD | RTLD_NOW);
        void *function = handle != nullptr ? dlsym(handle, "lampreyGetStats") : nullptr;
        Dl_info info;
        if (function != nullptr && dladdr(function, &info) != 0 && name == info.dli_fname) {
            copies++;
            stats = reinterpret_cast<int (*)(void *, void *)>(function)(nullptr, nullptr);
        }
    }
    printf("copies=%d\n", copies);
    if (copies > 0) {
        printf("stats_of_nothing=%d\n", stats);
    }
}

void print_null_communicator(void *nccl)
{
    auto all_reduce = find<decltype(&ncclAllReduce)>(nccl, "ncclAllReduce");
    printf("null_communicator=%d\n",
           all_reduce(nullptr, nullptr, 1, ncclFloat32, ncclSum, nullptr, nullptr));
}

// loaded NCCL: nothing is called.
void loaded(char **arguments)
{
    void *nccl = open_library(arguments[0], 0);
    print_redirected("redirected", nccl);
    print_library();
}

// opened NCCL OBJECT: opened and closed, as NCCL does with a file that has no table in it.
void opened(char **arguments)
{
    void *nccl = open_library(arguments[0], 0);
    print_redirected("before", nccl);
    dlclose(open_library(arguments[1], 0));
    print_redirected("redirected", nccl);
    print_null_communicator(nccl);
    print_library();
}

// unique-id NCCL: the first call of many programs, and all that works without a GPU.
void unique_id(char **arguments)
{
    void *nccl = open_library(arguments[0], 0);
    ncclUniqueId id;
    print_redirected("before", nccl);
    printf("unique_id=%d\n", find<decltype(&ncclGetUniqueId)>(nccl, "ncclGetUniqueId")(&id));
    print_redirected("redirected", nccl);
    print_null_communicator(nccl);
    print_library();
}

// door FAKE KIND VERSION PLUGIN [times]
void door(char **arguments)
{
    void *nccl = open_library(arguments[0], 0);
    auto open_door =
        find<int (*)(const char *, int, const char *, char *, size_t)>(nccl, "fakeOpenDoor");
    char report[4096];
    int times = arguments[4] != nullptr ? atoi(arguments[4]) : 1;
    for (int i = 0; i < times; i++) {
        int result =
            open_door(arguments[1], atoi(arguments[2]), arguments[3], report, sizeof(report));
        printf("result=%d\nreport=%s\n", result, report);
    }
    printf("logged=%d\n", find<int (*)()>(nccl, "fakeLogged")());
    print_redirected("redirected", nccl);
    print_library();
}

// user NCCL USER: calls through symbols.
void user(char **arguments)
{
    void *nccl = open_library(arguments[0], RTLD_GLOBAL);
    void *user = open_library(arguments[1], 0);
    print_redirected("before", nccl);
    printf("null_communicator=%d\n",
           find<ncclResult_t (*)()>(user, "userCallWithoutCommunicator")());
    print_redirected("redirected", nccl);
    if (dlsym(nccl, "fakeCount") != nullptr) {
        printf("wrong=%d\n", find<int (*)(void *)>(user, "userCallAll")(nccl));
    }
    print_library();
}

// after LIBRARY FAKE KIND VERSION PLUGIN: a copy of the library is here already when NCCL opens its
// plugin.
void after(char **arguments)
{
    open_library(arguments[0], 0);
    door(arguments + 1);
}

// linked LIBRARY NCCL USER: the library is among the program's own, as by -llamprey.
void linked(char **arguments)
{
    open_library(arguments[0], RTLD_GLOBAL);
    user(arguments + 1);
}

// alone USER: NCCL's names are there, NCCL isn't.
void alone(char **arguments)
{
    void *user = open_library(arguments[0], 0);
    printf("null_communicator=%d\n",
           find<ncclResult_t (*)()>(user, "userCallWithoutCommunicator")());
}

// two FIRST SECOND: a NCCL's calls of its own functions come back to it.
void two(char **arguments)
{
    for (int i = 0; i < 2; i++) {
        open_library(arguments[i], i == 0 ? RTLD_GLOBAL : RTLD_LOCAL);
    }
    for (int i = 0; i < 2; i++) {
        void *nccl = open_library(arguments[i], RTLD_NOLOAD);
        auto count = find<int (*)(const char *)>(nccl, "fakeCount");
        find<ncclResult_t (*)()>(nccl, "fakeCallOwnBroadcast")();
        printf("broadcasts_%d=%d\n", i, count("Broadcast"));
    }
}

// communicators NCCL: two ranks in this process, made and destroyed.
void communicators(char **arguments)
{
    void *nccl = open_library(arguments[0], 0);
    ncclComm_t comms[2] = {nullptr, nullptr};
    print_redirected("before", nccl);
    printf("init=%d\n",
           find<decltype(&ncclCommInitAll)>(nccl, "ncclCommInitAll")(comms, 2, nullptr));
    print_redirected("redirected", nccl);
    for (ncclComm_t comm : comms) {
        printf("destroy=%d\n", find<decltype(&ncclCommDestroy)>(nccl, "ncclCommDestroy")(comm));
    }
    print_library();
}

// bad-calls NCCL [gpus]
void call_badly(char **arguments)
{
    void *nccl = open_library(arguments[0], 0);
    bad_calls(nccl, arguments[1] != nullptr);
    print_redirected("redirected", nccl);
    print_library();
}

// first-copy OBJECT...: what each copy of first_copy.c says of itself.
void first_copy(char **arguments)
{
    for (; *arguments != nullptr; arguments++) {
        void *handle = open_library(*arguments, 0);
        printf("first=%d\n", find<int (*)()>(handle, "firstCopy")());
    }
}

const struct {
    const char *name;
    int arguments;
    void (*run)(char **arguments);
} kCommands[] = {
    {"loaded", 1, loaded},
    {"opened", 2, opened},
    {"unique-id", 1, unique_id},
    {"door", 4, door},
    {"user", 2, user},
    {"after", 5, after},
    {"linked", 3, linked},
    {"alone", 1, alone},
    {"two", 2, two},
    {"communicators", 1, communicators},
    {"bad-calls", 1, call_badly},
    {"first-copy", 1, first_copy},
};

} // namespace

int main(int argc, char **argv)
{
    for (const auto &command : kCommands) {
        if (argc >= 2 && strcmp(argv[1], command.name) == 0 && argc - 2 >= command.arguments) {
            command.run(argv + 2);
            return 0;
        }
    }
    fprintf(stderr, "usage: caller COMMAND ARGUMENT...\n");
    return 64;
}
