// SPDX-License-Identifier: Apache-2.0
// A user's own tuner and env plugin, to stand behind Lamprey's. VERSION says which tables it has.
#include <cstdlib>
#include <cstring>

#include "plugin/nccl_plugin_abi.h"

#define EXPORT extern "C" __attribute__((visibility("default"), used))

namespace {

int alive;

void *begin()
{
    alive++;
    return &alive;
}

// Costs as the plugin leaves them show who was asked, and that the context came back.
ncclResult_t choose(void *context, float **costs, int protocols, int *channels, int version)
{
    if (context != &alive || alive <= 0) {
        return ncclInternalError;
    }
    reinterpret_cast<float *>(costs)[1 * protocols + 2] = static_cast<float>(version);
    *channels = 10 + version;
    return ncclSuccess;
}

ncclResult_t end(void *context)
{
    alive--;
    return context == &alive ? ncclSuccess : ncclInternalError;
}

[[maybe_unused]] ncclResult_t init_late(void **context, uint64_t comm_id, size_t nranks,
                                        size_t nnodes, lamprey_nccl_logger logger,
                                        lamprey_abi_nvl_domains *domains,
                                        lamprey_abi_tuner_constants *constants)
{
    if (comm_id != 7 || nranks != 2 || nnodes != 1 || logger == nullptr ||
        domains->max_ranks != 2 || constants == nullptr) {
        return ncclInvalidArgument;
    }
    *context = begin();
    return ncclSuccess;
}

[[maybe_unused]] ncclResult_t init_early(size_t nranks, size_t nnodes, lamprey_nccl_logger logger,
                                         void **context)
{
    if (nranks != 2 || nnodes != 1 || logger == nullptr) {
        return ncclInvalidArgument;
    }
    *context = begin();
    return ncclSuccess;
}

template <int version>
ncclResult_t choose_registered(void *context, int function, size_t bytes, int pipe_ops,
                               float **costs, int algorithms, int protocols, int registered,
                               int *channels)
{
    if (function != 4 || bytes != 4096 || pipe_ops != 1 || algorithms != 7 || registered != 1) {
        return ncclInvalidArgument;
    }
    return choose(context, costs, protocols, channels, version);
}

[[maybe_unused]] ncclResult_t choose_v3(void *context, int function, size_t bytes, int pipe_ops,
                                        float **costs, int algorithms, int protocols, int *channels)
{
    if (function != 4 || bytes != 4096 || pipe_ops != 1 || algorithms != 7) {
        return ncclInvalidArgument;
    }
    return choose(context, costs, protocols, channels, 3);
}

[[maybe_unused]] ncclResult_t choose_v2(void *context, int function, size_t bytes, int collnet,
                                        int nvls, int pipe_ops, int *algorithm, int *protocol,
                                        int *channels)
{
    if (context != &alive || function != 4 || bytes != 4096 || pipe_ops != 1 || collnet > 1 ||
        nvls != 1) {
        return ncclInvalidArgument;
    }
    *algorithm = 1;
    *protocol = 2;
    *channels = 12;
    return ncclSuccess;
}

[[maybe_unused]] ncclResult_t init_v1(size_t nranks, size_t, lamprey_nccl_logger)
{
    return nranks == 2 && begin() != nullptr ? ncclSuccess : ncclInvalidArgument;
}

[[maybe_unused]] ncclResult_t choose_v1(int, size_t, int, int, int, int *algorithm, int *protocol,
                                        int *channels)
{
    *algorithm = 1;
    *protocol = 2;
    *channels = 11;
    return ncclSuccess;
}

[[maybe_unused]] ncclResult_t end_v1()
{
    return end(&alive);
}

[[maybe_unused]] ncclResult_t chunk(void *context, int, size_t, int algorithm, int protocol,
                                    int channels, size_t *size)
{
    *size += context == &alive && algorithm == 1 && protocol == 2 && channels == 3 ? 1 : 100;
    return ncclSuccess;
}

[[maybe_unused]] ncclResult_t env_init(uint8_t major, uint8_t, uint8_t, const char *)
{
    return major == 2 && begin() != nullptr ? ncclSuccess : ncclInvalidArgument;
}

[[maybe_unused]] ncclResult_t env_init_v2(uint8_t major, uint8_t, uint8_t, const char *,
                                          lamprey_nccl_logger logger)
{
    return major == 2 && logger != nullptr && begin() != nullptr ? ncclSuccess
                                                                 : ncclInvalidArgument;
}

[[maybe_unused]] ncclResult_t env_end()
{
    return end(&alive);
}

[[maybe_unused]] const char *env_get(const char *name)
{
    return strcmp(name, "FAKE_UNSET") == 0 ? "from the plugin" : getenv(name);
}

} // namespace

#if VERSION == 6
EXPORT const lamprey_abi_tuner_v6 ncclTunerPlugin_v6 = {"fake", init_late, choose_registered<6>,
                                                        end, chunk};
EXPORT const lamprey_abi_env_v2 ncclEnvPlugin_v2 = {"fake", env_init_v2, env_end, env_get};
#elif VERSION == 5
EXPORT const lamprey_abi_tuner_v5 ncclTunerPlugin_v5 = {"fake", init_late, choose_registered<5>,
                                                        end};
#elif VERSION == 4
EXPORT const lamprey_abi_tuner_v4 ncclTunerPlugin_v4 = {"fake", init_early, choose_registered<4>,
                                                        end};
#elif VERSION == 3
EXPORT const lamprey_abi_tuner_v3 ncclTunerPlugin_v3 = {"fake", init_early, choose_v3, end};
#elif VERSION == 2
EXPORT const lamprey_abi_tuner_v2 ncclTunerPlugin_v2 = {"fake", init_early, choose_v2, end};
#else
EXPORT const lamprey_abi_tuner_v1 ncclTunerPlugin_v1 = {"fake", init_v1, choose_v1, end_v1};
EXPORT const lamprey_abi_env_v1 ncclEnvPlugin_v1 = {"fake", env_init, env_end, env_get};
#endif
