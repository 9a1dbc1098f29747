// SPDX-License-Identifier: Apache-2.0
#include "kernels/host.h"

#include <thread>
#include <vector>

#include <stdlib.h>
#include <string.h>

#include "kernels/all_reduce.cuh"
#include "kernels/check.cuh"

namespace lamprey {
bool stores_are_delayed = getenv("LAMPREY_EMULATOR_DELAYED_STORES") != nullptr;
thread_local store_buffer delayed_stores;
thread_local host_thread current_thread = {1, 0, 0, 1, nullptr};
} // namespace lamprey

struct lamprey_host_kernel {
    const char *name;
    size_t param_size;
    void (*run)(const void *params);
};

namespace {

template <int ALGORITHM, int ELEMENT, int OPERATORS, int RANKS> void run_kernel(const void *params)
{
    lamprey::all_reduce<ALGORITHM, ELEMENT, OPERATORS, RANKS>(
        *static_cast<const typename lamprey::params_for<RANKS>::type *>(params));
}

void run_check(const void *params)
{
    lamprey::check(*static_cast<const lamprey_check_params *>(params));
}

const lamprey_host_kernel kernels[] = {
#define LAMPREY_ROW(name, algorithm, element, operators, ranks)                                    \
    {#name, sizeof(lamprey::params_for<ranks>::type),                                              \
     run_kernel<algorithm, element, operators, ranks>},
    LAMPREY_KERNELS(LAMPREY_ROW)
#undef LAMPREY_ROW
        {LAMPREY_CHECK_KERNEL, sizeof(lamprey_check_params), run_check},
};

void run_thread(const lamprey_host_kernel *kernel, unsigned grid, unsigned thread, unsigned block,
                pthread_barrier_t *barrier, const void *params)
{
    for (unsigned cta = 0; cta < grid; cta++) {
        lamprey::current_thread = {grid, cta, thread, block, barrier};
        kernel->run(params);
        lamprey::delayed_stores.perform_all();
    }
}

} // namespace

const lamprey_host_kernel *lamprey_host_kernel_find(const char *name)
{
    for (const lamprey_host_kernel &kernel : kernels) {
        if (strcmp(kernel.name, name) == 0) {
            return &kernel;
        }
    }
    return nullptr;
}

size_t lamprey_host_kernel_param_size(const lamprey_host_kernel *kernel)
{
    return kernel->param_size;
}

void lamprey_host_kernel_run(const lamprey_host_kernel *kernel, unsigned grid, unsigned block,
                             void *const *params)
{
    if (block <= 1) {
        run_thread(kernel, grid, 0, 1, nullptr, params[0]);
        return;
    }
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, nullptr, block);
    std::vector<std::thread> threads;
    for (unsigned thread = 1; thread < block; thread++) {
        threads.emplace_back(run_thread, kernel, grid, thread, block, &barrier, params[0]);
    }
    run_thread(kernel, grid, 0, block, &barrier, params[0]);
    for (std::thread &thread : threads) {
        thread.join();
    }
    pthread_barrier_destroy(&barrier);
}
