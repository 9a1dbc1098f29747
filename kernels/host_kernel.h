/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels for the host, as tables: host.cc has one, row_host.cc the other. */
#ifndef LAMPREY_KERNELS_HOST_KERNEL_H
#define LAMPREY_KERNELS_HOST_KERNEL_H

#include <stddef.h>

struct lamprey_host_kernel {
    const char *name;
    size_t param_size;
    void (*run)(const void *params);
    bool ctas_at_once; /* a CTA may wait for what a peer's kernel does after another CTA's part */
};

extern const lamprey_host_kernel lamprey_host_row_kernels[];
extern const size_t lamprey_host_row_kernel_count;

#endif
