// SPDX-License-Identifier: Apache-2.0
#include "kernels/host.h"

#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include <stdlib.h>
#include <string.h>

#include "kernels/all_reduce.cuh"
#include "kernels/check.cuh"
#include "kernels/fused.cuh"
#include "kernels/host_kernel.h"

namespace lamprey {
bool stores_are_delayed = getenv("LAMPREY_EMULATOR_DELAYED_STORES") != nullptr;
thread_local store_buffer delayed_stores;
thread_local host_thread current_thread = {1, 0, 0, 1, nullptr, 1, nullptr, nullptr, nullptr};
} // namespace lamprey

namespace {

template <int ALGORITHM, int ELEMENT, int OPERATORS, int RANKS> void run_kernel(const void *params)
{
    lamprey::all_reduce<ALGORITHM, ELEMENT, OPERATORS, RANKS>(
        *static_cast<const typename lamprey::params_for<RANKS>::type *>(params));
}

template <int ALGORITHM, int ELEMENT, int OPERATORS, int RANKS> void run_fused(const void *params)
{
    lamprey::fused_all_reduce<ALGORITHM, ELEMENT, OPERATORS, RANKS>(
        *static_cast<const typename lamprey::fused_params_for<RANKS>::type *>(params));
}

void run_check(const void *params)
{
    lamprey::check(*static_cast<const lamprey_check_params *>(params));
}

const lamprey_host_kernel kernels[] = {
#define LAMPREY_ROW(name, algorithm, element, operators, ranks)                                    \
    {#name, sizeof(lamprey::params_for<ranks>::type),                                              \
     run_kernel<algorithm, element, operators, ranks>, false},
    LAMPREY_KERNELS(LAMPREY_ROW)
#undef LAMPREY_ROW
#define LAMPREY_ROW(name, algorithm, element, operators, ranks)                                    \
    {#name "_fused", sizeof(lamprey::fused_params_for<ranks>::type),                               \
     run_fused<algorithm, element, operators, ranks>, true},
        LAMPREY_ANY_KERNELS(LAMPREY_ROW)
#undef LAMPREY_ROW
            {LAMPREY_CHECK_KERNEL, sizeof(lamprey_check_params), run_check, false},
};

/* What the threads of a cluster share; one after the other, all clusters of a part of the grid. */
struct cluster {
    unsigned begin;
    unsigned end;
    const lamprey_host_kernel *kernel;
    const lamprey_host_launch *launch;
    const void *params;
    std::deque<lamprey::host_barrier> barriers; // of the CTAs
    lamprey::host_barrier barrier;              // of all
    std::vector<std::vector<uint64_t>> memory;
    std::vector<unsigned char *> shared;
    std::vector<std::unique_ptr<lamprey::host_warp[]>> warps; // of the CTAs

    cluster(unsigned begin_, unsigned end_, const lamprey_host_kernel *kernel_,
            const lamprey_host_launch *launch_, const void *params_)
        : begin(begin_), end(end_), kernel(kernel_), launch(launch_), params(params_),
          barrier(launch_->block * launch_->cluster)
    {
        for (unsigned cta = 0; cta < launch->cluster; cta++) {
            barriers.emplace_back(launch->block);
            warps.emplace_back(launch->whole ? new lamprey::host_warp[launch->block / 32]
                                             : nullptr);
            memory.emplace_back(launch->shared_bytes / sizeof(uint64_t) + 2, 0xa5a5a5a5a5a5a5a5u);
            void *start = memory.back().data();
            size_t room = memory.back().size() * sizeof(uint64_t);
            shared.push_back(static_cast<unsigned char *>(
                std::align(sizeof(lamprey::vector), launch->shared_bytes, start, room)));
        }
    }

    /* One thread of one CTA, in cluster after cluster. */
    void run_thread(unsigned cta, unsigned thread)
    {
        lamprey::host_barrier *const own = launch->block > 1 ? &barriers[cta] : nullptr;
        lamprey::host_barrier *const all = launch->block * launch->cluster > 1 ? &barrier : nullptr;
        for (unsigned first = begin; first < end; first += launch->cluster) {
            lamprey::current_thread = {launch->grid,  first + cta,   thread,
                                       launch->block, own,           launch->cluster,
                                       all,           shared.data(), warps[cta].get()};
            kernel->run(params);
            lamprey::delayed_stores.perform_all();
            if (all && launch->shared_bytes > 0) {
                all->wait(); // the next cluster has the same shared memory
            }
        }
    }
};

const lamprey_host_kernel *find(const lamprey_host_kernel *kernels, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(kernels[i].name, name) == 0) {
            return &kernels[i];
        }
    }
    return nullptr;
}

} // namespace

const lamprey_host_kernel *lamprey_host_kernel_find(const char *name)
{
    const lamprey_host_kernel *kernel = find(kernels, sizeof kernels / sizeof kernels[0], name);
    return kernel ? kernel : find(lamprey_host_row_kernels, lamprey_host_row_kernel_count, name);
}

size_t lamprey_host_kernel_param_size(const lamprey_host_kernel *kernel)
{
    return kernel->param_size;
}

void lamprey_host_kernel_run(const lamprey_host_kernel *kernel, const lamprey_host_launch *launch,
                             void *const *params)
{
    const unsigned part = kernel->ctas_at_once ? launch->cluster : launch->grid;
    std::deque<cluster> parts;
    for (unsigned begin = 0; begin < launch->grid; begin += part) {
        parts.emplace_back(begin, begin + part, kernel, launch, params[0]);
    }
    std::vector<std::thread> threads;
    for (unsigned p = 0; p < parts.size(); p++) {
        for (unsigned i = p == 0; i < launch->cluster * launch->block; i++) {
            threads.emplace_back(&cluster::run_thread, &parts[p], i / launch->block,
                                 i % launch->block);
        }
    }
    parts[0].run_thread(0, 0);
    for (std::thread &thread : threads) {
        thread.join();
    }
}
