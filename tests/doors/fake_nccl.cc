// SPDX-License-Identifier: Apache-2.0
// A NCCL that does nothing but write down its calls and open plugins as releases do. It is built as
// libnccl.so.2; the library under test can't tell it from the real one by its symbols.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "plugin/nccl_functions.h"
#include "plugin/nccl_plugin_abi.h"
#include "tests/doors/recorded.h"

namespace {

struct Calls {
    int count = 0;
    std::string last;
};

std::map<std::string, Calls> &calls()
{
    static std::map<std::string, Calls> all;
    return all;
}

// noinline and by name: each public function keeps a body of its own that is long enough.
template <typename... Arguments>
__attribute__((noinline)) ncclResult_t record(const char *name, const Arguments &...arguments)
{
    Calls &entry = calls()[name];
    entry.count++;
    entry.last = bytes_of(arguments...);
    return ncclRemoteError;
}

int logged;

void logger(int, unsigned long, const char *, int, const char *, ...)
{
    logged++;
}

} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT ncclResult_t ncclGetVersion(int *version)
{
    const char *text = getenv("FAKE_NCCL_VERSION");
    *version = text != nullptr ? atoi(text) : 22809;
    return ncclSuccess;
}

// nccl.h declares these already, some with other parameter types of the same size.
#define UNPACK(...) __VA_ARGS__
#define FAKE(entry, parameters, arguments)                                                         \
    EXPORT ncclResult_t fake_##entry parameters __asm__("nccl" #entry);                            \
    ncclResult_t fake_##entry parameters                                                           \
    {                                                                                              \
        return record_call(#entry, UNPACK arguments);                                              \
    }
#define record_call(name, ...) record(name __VA_OPT__(, ) __VA_ARGS__)

LAMPREY_NCCL_INTERCEPTED(FAKE)
LAMPREY_NCCL_ORDERED(FAKE)

EXPORT ncclResult_t ncclCommCount(const ncclComm_t, int *)
{
    return ncclInvalidArgument;
}
EXPORT ncclResult_t ncclCommUserRank(const ncclComm_t, int *)
{
    return ncclInvalidArgument;
}
EXPORT ncclResult_t ncclCommCuDevice(const ncclComm_t, int *)
{
    return ncclInvalidArgument;
}

EXPORT int fakeCount(const char *name)
{
    return calls()[name].count;
}

EXPORT const std::string &fakeLast(const char *name)
{
    return calls()[name].last;
}

EXPORT int fakeLogged()
{
    return logged;
}

#ifdef FORK
// What tells a fork, whose logger may be another.
EXPORT ncclResult_t ncclCommDump()
{
    return ncclSuccess;
}
#endif

// NCCL reaches some of its own public functions through the PLT, where a preloaded namesake stands
// in between.
EXPORT ncclResult_t fakeCallOwnBroadcast()
{
    return ncclBroadcast(nullptr, nullptr, 1, ncclInt8, 0, nullptr, nullptr);
}

namespace {

// What a release does with a table; "" or what was wrong. Calls are made from here, so that the
// return address lies in this image.
template <typename Table> std::string try_tuner_with_costs(Table *table, int version)
{
    float costs[7][3];
    for (int i = 0; i < 21; i++) {
        costs[i / 3][i % 3] = i % 5 == 1 ? -1.0F : 1.5F * static_cast<float>(i);
    }
    float before[7][3];
    memcpy(before, costs, sizeof(costs));
    int channels = 0;
    void *context = nullptr;
    lamprey_abi_nvl_domains domains = {1, 2, 2};
    lamprey_abi_tuner_constants constants;
    memset(&constants, 0x3c, sizeof(constants));
    lamprey_abi_tuner_constants constants_before = constants;
    ncclResult_t result;
    if constexpr (std::is_same_v<Table, lamprey_abi_tuner_v6> ||
                  std::is_same_v<Table, lamprey_abi_tuner_v5>) {
        result = table->init(&context, 7, 2, 1, logger, &domains, &constants);
    } else {
        result = table->init(2, 1, logger, &context);
    }
    if (result != ncclSuccess) {
        return "init " + std::to_string(result);
    }
    if constexpr (std::is_same_v<Table, lamprey_abi_tuner_v3>) {
        result = table->get_coll_info(context, 4, 4096, 1, reinterpret_cast<float **>(costs), 7, 3,
                                      &channels);
    } else {
        result = table->get_coll_info(context, 4, 4096, 1, reinterpret_cast<float **>(costs), 7, 3,
                                      1, &channels);
    }
    if (result != ncclSuccess) {
        return "getCollInfo " + std::to_string(result);
    }
    std::string report;
    for (int i = 0; i < 21; i++) {
        if (costs[i / 3][i % 3] != before[i / 3][i % 3]) {
            report += "cost[" + std::to_string(i / 3) + "][" + std::to_string(i % 3) +
                      "]=" + std::to_string(costs[i / 3][i % 3]) + " ";
        }
    }
    if (channels != 0) {
        report += "channels=" + std::to_string(channels) + " ";
    }
    if (memcmp(&constants, &constants_before, sizeof(constants)) != 0) {
        report += "constants ";
    }
    if constexpr (std::is_same_v<Table, lamprey_abi_tuner_v6>) {
        size_t chunk = 12345;
        if (table->get_chunk_size != nullptr) {
            result = table->get_chunk_size(context, 4, 4096, 1, 2, 3, &chunk);
            report += "chunk=" + std::to_string(chunk) + " ";
        }
    }
    if constexpr (std::is_same_v<Table, lamprey_abi_tuner_v6> ||
                  std::is_same_v<Table, lamprey_abi_tuner_v5>) {
        result = table->finalize(context);
    } else {
        result = table->destroy(context);
    }
    if (result != ncclSuccess) {
        report += "end " + std::to_string(result);
    }
    (void)version;
    return report;
}

std::string try_tuner_with_choice(const lamprey_abi_tuner_v2 *v2, const lamprey_abi_tuner_v1 *v1)
{
    int algorithm = -1;
    int protocol = -1;
    int channels = 0;
    void *context = nullptr;
    ncclResult_t result = v2 != nullptr ? v2->init(2, 1, logger, &context) : v1->init(2, 1, logger);
    if (result != ncclSuccess) {
        return "init " + std::to_string(result);
    }
    result = v2 != nullptr
                 ? v2->get_coll_info(context, 4, 4096, 0, 1, 1, &algorithm, &protocol, &channels)
                 : v1->get_coll_info(4, 4096, 0, 1, 1, &algorithm, &protocol, &channels);
    std::string report = result == ncclSuccess ? "" : "getCollInfo " + std::to_string(result);
    if (algorithm != -1 || protocol != -1 || channels != 0) {
        report += "choice=" + std::to_string(algorithm) + "," + std::to_string(protocol) + "," +
                  std::to_string(channels) + " ";
    }
    result = v2 != nullptr ? v2->destroy(context) : v1->destroy();
    return result == ncclSuccess ? report : report + "end " + std::to_string(result);
}

std::string try_tuner(void *table, int version)
{
    switch (version) {
    case 6:
        return try_tuner_with_costs(static_cast<lamprey_abi_tuner_v6 *>(table), version);
    case 5:
        return try_tuner_with_costs(static_cast<lamprey_abi_tuner_v5 *>(table), version);
    case 4:
        return try_tuner_with_costs(static_cast<lamprey_abi_tuner_v4 *>(table), version);
    case 3:
        return try_tuner_with_costs(static_cast<lamprey_abi_tuner_v3 *>(table), version);
    case 2:
        return try_tuner_with_choice(static_cast<lamprey_abi_tuner_v2 *>(table), nullptr);
    default:
        return try_tuner_with_choice(nullptr, static_cast<lamprey_abi_tuner_v1 *>(table));
    }
}

std::string try_env(void *table, int version)
{
    auto *v2 = static_cast<lamprey_abi_env_v2 *>(table);
    auto *v1 = static_cast<lamprey_abi_env_v1 *>(table);
    const char *given = getenv("FAKE_NCCL_SUFFIX");
    const char *suffix = given != nullptr ? given : "";
    ncclResult_t result =
        version == 2 ? v2->init(2, 30, 7, suffix, logger) : v1->init(2, 28, 9, suffix);
    if (result != ncclSuccess) {
        return "init " + std::to_string(result);
    }
    auto get_env = version == 2 ? v2->get_env : v1->get_env;
    std::string report;
    setenv("FAKE_SET", "some value", 1);
    unsetenv("FAKE_UNSET");
    for (const char *name : {"FAKE_SET", "FAKE_UNSET"}) {
        const char *value = get_env(name);
        const char *plain = getenv(name);
        if (value != plain) {
            report += std::string(name) + "=" + (value != nullptr ? value : "(null)") + " ";
        }
    }
    result = version == 2 ? v2->finalize() : v1->finalize();
    return result == ncclSuccess ? report : report + "end " + std::to_string(result);
}

std::string try_profiler(void *table, int version)
{
    void *context = reinterpret_cast<void *>(0x1);
    int mask = 0xfff;
    ncclResult_t result;
    if (version >= 5) {
        auto *v6 = static_cast<lamprey_abi_profiler_v6 *>(table);
        result = v6->init(&context, 7, &mask, "name", 1, 2, 0, logger);
    } else if (version == 4) {
        auto *v4 = static_cast<lamprey_abi_profiler_v4 *>(table);
        result = v4->init(&context, &mask, "name", 7, 1, 2, 0, logger);
    } else {
        result = static_cast<lamprey_abi_profiler_v3 *>(table)->init(&context, &mask);
    }
    if (result != ncclSuccess) {
        return "init " + std::to_string(result);
    }
    std::string report;
    if (mask != 0) {
        report += "mask=" + std::to_string(mask) + " ";
    }
    if (context != nullptr) {
        report += "context ";
    }
    return report;
}

std::string try_network(void *table, int version, bool collective)
{
    auto *v12 = static_cast<lamprey_abi_net_v12 *>(table);
    auto *c12 = static_cast<lamprey_abi_collnet_v12 *>(table);
    auto *v10 = static_cast<lamprey_abi_net_v10 *>(table);
    auto *v9 = static_cast<lamprey_abi_net_v9 *>(table);
    void *context = nullptr;
    int traffic_class = -1;
    ncclResult_t result;
    if (version >= 11) {
        result = collective ? c12->init(&context, 7, logger)
                            : v12->init(&context, 7, &traffic_class, logger, nullptr);
    } else if (version == 10 && !collective) {
        result = v10->init(logger, nullptr);
    } else {
        result = v9->init(logger);
    }
    if (result != ncclSuccess) {
        return "init " + std::to_string(result);
    }
    int count = -1;
    result = v9->devices(&count); // the same place in all versions
    std::string report;
    if (result != ncclSuccess || count != 0) {
        report += "devices=" + std::to_string(count) + " ";
    }
    // 2.28 on: a network without a device is finalised at once.
    if (version >= 11) {
        result = collective ? c12->finalize(context) : v12->finalize(context);
        if (result != ncclSuccess) {
            report += "end " + std::to_string(result);
        }
    }
    return report;
}

} // namespace

// Opens a plugin, uses one table of it and closes it again. 0 and what the plugin changed in
// report.
EXPORT int fakeOpenDoor(const char *kind, int version, const char *path, char *report, size_t size)
{
    std::string prefix =
        "nccl" + std::string(kind) + (strcmp(kind, "Profiler") == 0 ? "_v" : "Plugin_v");
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        snprintf(report, size, "%s", dlerror());
        return 1;
    }
    void *table = dlsym(handle, (prefix + std::to_string(version)).c_str());
    if (table == nullptr) {
        snprintf(report, size, "%s", dlerror());
        dlclose(handle);
        return 1;
    }
    std::string text = *static_cast<const char **>(table);
    text += ": ";
    if (strcmp(kind, "Tuner") == 0) {
        text += try_tuner(table, version);
    } else if (strcmp(kind, "Env") == 0) {
        text += try_env(table, version);
    } else if (strcmp(kind, "Profiler") == 0) {
        text += try_profiler(table, version);
    } else {
        text += try_network(table, version, strcmp(kind, "CollNet") == 0);
    }
    dlclose(handle);
    snprintf(report, size, "%s", text.c_str());
    return 0;
}
