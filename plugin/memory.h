/* SPDX-License-Identifier: Apache-2.0 */
/* Device memory by the driver's virtual memory calls: made, exported and mapped without touching
 * the legacy stream. */
#ifndef LAMPREY_PLUGIN_MEMORY_H
#define LAMPREY_PLUGIN_MEMORY_H

#include "plugin/device.h"

struct lamprey_memory {
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address; /* 0: not mapped */
    size_t bytes;        /* a multiple of the granularity */
};

/* Physical memory on the device, mapped for it. shareable: can be exported as a descriptor.
 * Freed with lamprey_memory_destroy. Needs no current context. */
enum lamprey_status lamprey_memory_create(const struct lamprey_device *device, size_t bytes,
                                          bool shareable, struct lamprey_memory *memory);

/* A descriptor that names the memory; the caller closes it. */
enum lamprey_status lamprey_memory_export(const struct lamprey_device *device,
                                          const struct lamprey_memory *memory, int *descriptor);

/* Maps another process's memory for device; the descriptor stays the caller's. */
enum lamprey_status lamprey_memory_import(const struct lamprey_device *device, int descriptor,
                                          size_t bytes, struct lamprey_memory *memory);

/* Maps memory of this process a second time, for device, at an address of its own, so that its
 * owner's unmapping can't fault our kernels. */
enum lamprey_status lamprey_memory_alias(const struct lamprey_device *device,
                                         const struct lamprey_memory *original,
                                         struct lamprey_memory *memory);

/* Unmaps and releases; zeroed memory is fine. */
void lamprey_memory_destroy(const struct lamprey_device *device, struct lamprey_memory *memory);

#endif
