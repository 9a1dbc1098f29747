/* SPDX-License-Identifier: Apache-2.0 */
/* Device memory by the driver's virtual memory calls: made, exported and mapped without touching
 * the legacy stream. */
#ifndef LAMPREY_PLUGIN_MEMORY_H
#define LAMPREY_PLUGIN_MEMORY_H

#include "plugin/device.h"

#define LAMPREY_MEMORY_GRANULARITY (2ull << 20) /* to which drivers round memory up */

/* Who else can map an allocation, and by what. Asked for singly: where fabric handles aren't
 * permitted, memory that could have both kinds can't be made at all. */
enum lamprey_sharing {
    LAMPREY_BY_DESCRIPTOR, /* processes of this host */
    LAMPREY_BY_FABRIC,     /* all hosts of the NVLink domain with the same IMEX channel */
};

struct lamprey_memory {
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address; /* 0: not mapped */
    size_t bytes;        /* a multiple of the granularity */
    enum lamprey_sharing sharing;
};

/* Names memory in another process, in the way that its sharing says. */
union lamprey_memory_name {
    int descriptor;           /* whoever holds it closes it */
    CUmemFabricHandle fabric; /* plain bytes; good for as long as the memory lives */
};

/* Physical memory on the device, mapped for it. Freed with lamprey_memory_destroy. Needs no
 * current context. LAMPREY_ERROR_PERMISSION: there is no IMEX channel. */
enum lamprey_status lamprey_memory_create(const struct lamprey_device *device, size_t bytes,
                                          enum lamprey_sharing sharing,
                                          struct lamprey_memory *memory);

/* The memory must not be private. */
enum lamprey_status lamprey_memory_export(const struct lamprey_device *device,
                                          const struct lamprey_memory *memory,
                                          union lamprey_memory_name *name);

/* Maps another process's memory for device; the name stays the caller's. */
enum lamprey_status lamprey_memory_import(const struct lamprey_device *device,
                                          enum lamprey_sharing sharing,
                                          const union lamprey_memory_name *name, size_t bytes,
                                          struct lamprey_memory *memory);

/* Maps memory of this process a second time, for device, at an address of its own, so that its
 * owner's unmapping can't fault our kernels. */
enum lamprey_status lamprey_memory_alias(const struct lamprey_device *device,
                                         const struct lamprey_memory *original,
                                         struct lamprey_memory *memory);

/* Unmaps and releases; zeroed memory is fine. */
void lamprey_memory_destroy(const struct lamprey_device *device, struct lamprey_memory *memory);

#endif
