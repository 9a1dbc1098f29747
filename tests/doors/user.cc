// SPDX-License-Identifier: Apache-2.0
// A library that uses NCCL through its symbols, as libtorch_cuda.so does: what it calls is decided
// by the loader, and a preloaded namesake comes first.
#include <dlfcn.h>

#include <cstdio>
#include <string>

#include "plugin/nccl_functions.h"
#include "tests/doors/recorded.h"

#define DECLARE(entry, parameters, arguments)                                                      \
    extern "C" ncclResult_t called_##entry parameters __asm__("nccl" #entry);
LAMPREY_NCCL_INTERCEPTED(DECLARE)
LAMPREY_NCCL_ORDERED(DECLARE)

namespace {

template <typename... Parameters, size_t... Positions>
bool arrives(const char *name, ncclResult_t (*function)(Parameters...), const std::string &last,
             std::index_sequence<Positions...>)
{
    const std::string sent = bytes_of(made_up<Parameters>(Positions)...);
    ncclResult_t result = function(made_up<Parameters>(Positions)...);
    if (result != ncclRemoteError) {
        printf("%s returned %d\n", name, result);
        return false;
    }
    if (last != sent) {
        printf("%s was called with other arguments\n", name);
        return false;
    }
    return true;
}

template <typename... Parameters>
bool arrives(const char *name, ncclResult_t (*function)(Parameters...), const std::string &last)
{
    return arrives(name, function, last, std::index_sequence_for<Parameters...>());
}

} // namespace

// Calls everything once; 0 if each call came to the fake NCCL as it was made, and once.
extern "C" int userCallAll(void *fake)
{
    auto last = reinterpret_cast<const std::string &(*)(const char *)>(dlsym(fake, "fakeLast"));
    auto count = reinterpret_cast<int (*)(const char *)>(dlsym(fake, "fakeCount"));
    int wrong = 0;
#define CALL(entry, parameters, arguments)                                                         \
    {                                                                                              \
        int before = count(#entry);                                                                \
        wrong += !arrives(#entry, called_##entry, last(#entry));                                   \
        if (count(#entry) != before + 1) {                                                         \
            printf("%s arrived %d times\n", #entry, count(#entry) - before);                       \
            wrong++;                                                                               \
        }                                                                                          \
    }
    LAMPREY_NCCL_INTERCEPTED(CALL)
    LAMPREY_NCCL_ORDERED(CALL)
    return wrong;
}

// An all-reduce on no communicator.
extern "C" ncclResult_t userCallWithoutCommunicator()
{
    return ncclAllReduce(nullptr, nullptr, 1, ncclFloat32, ncclSum, nullptr, nullptr);
}
