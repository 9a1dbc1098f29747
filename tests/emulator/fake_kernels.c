/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels for the emulator's own tests, behind kernels/host.h. */
#include "tests/emulator/fake_kernels.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "kernels/host.h"

struct lamprey_host_kernel {
    const char *name;
    size_t bytes;
    void (*run)(unsigned grid, unsigned block, const void *parameters);
};

/* counter += value, once a CTA */
static void add(unsigned grid, unsigned block, const void *parameters)
{
    const struct fake_add *p = parameters;
    (void)block;
    for (unsigned i = 0; i < grid; i++) {
        atomic_fetch_add((_Atomic uint32_t *)p->counter, p->value);
    }
}

/* Raises its own flag and waits for the other: ends only if both run at the same time. */
static void meet(unsigned grid, unsigned block, const void *parameters)
{
    const struct fake_meet *p = parameters;
    (void)grid;
    (void)block;
    atomic_fetch_add((_Atomic uint32_t *)p->mine, 1);
    uint32_t round = atomic_load((_Atomic uint32_t *)p->mine);
    while (atomic_load((_Atomic uint32_t *)p->theirs) < round) {
        sched_yield();
    }
}

static void report_block(unsigned grid, unsigned block, const void *parameters)
{
    const struct fake_add *p = parameters;
    atomic_store((_Atomic uint32_t *)p->counter, grid << 16 | block);
}

static const struct lamprey_host_kernel kernels[] = {
    {"fake_add", sizeof(struct fake_add), add},
    {"fake_meet", sizeof(struct fake_meet), meet},
    {"fake_report_block", sizeof(struct fake_add), report_block},
};

const struct lamprey_host_kernel *lamprey_host_kernel_find(const char *name)
{
    for (size_t i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++) {
        if (strcmp(kernels[i].name, name) == 0) {
            return &kernels[i];
        }
    }
    return NULL;
}

size_t lamprey_host_kernel_param_size(const struct lamprey_host_kernel *kernel)
{
    return kernel->bytes;
}

void lamprey_host_kernel_run(const struct lamprey_host_kernel *kernel,
                             const struct lamprey_host_launch *launch, void *const *params)
{
    kernel->run(launch->grid, launch->block, params[0]);
}
