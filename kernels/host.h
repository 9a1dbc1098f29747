/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels compiled for the host, for the emulator: the same sources over
 * kernels/primitives_host.h. */
#ifndef LAMPREY_KERNELS_HOST_H
#define LAMPREY_KERNELS_HOST_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct lamprey_host_kernel; /* one __global__ function */

/* By the name it has in the fatbin; NULL if there is none. */
const struct lamprey_host_kernel *lamprey_host_kernel_find(const char *name);

/* Bytes of its one parameter, a POD struct. */
size_t lamprey_host_kernel_param_size(const struct lamprey_host_kernel *kernel);

struct lamprey_host_launch {
    unsigned grid;    /* CTAs */
    unsigned block;   /* threads of a CTA */
    bool whole;       /* as many as a GPU would have, in warps of 32: each has one vector */
    unsigned cluster; /* CTAs of a cluster; divides the grid */
    size_t shared_bytes;
};

/* Runs a whole grid on the calling thread and returns when it is done: clusters one after the
 * other, in order (those of a fused launch at once); a cluster's threads at once, each on a thread
 * of its own with real barriers (a cluster of one thread: the calling one). params: as
 * cuLaunchKernelEx takes them. Waits inside yield the processor. */
void lamprey_host_kernel_run(const struct lamprey_host_kernel *kernel,
                             const struct lamprey_host_launch *launch, void *const *params);

#ifdef __cplusplus
}
#endif

#endif
