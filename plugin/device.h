/* SPDX-License-Identifier: Apache-2.0 */
/* A GPU of this process: its primary context, what it is, and our kernels loaded for it. */
#ifndef LAMPREY_PLUGIN_DEVICE_H
#define LAMPREY_PLUGIN_DEVICE_H

#include <stdint.h>

#include <nccl.h>

#include "plugin/driver.h"

enum lamprey_element {
    LAMPREY_ELEMENT_F16,
    LAMPREY_ELEMENT_BF16,
    LAMPREY_ELEMENT_F32,
    LAMPREY_ELEMENTS,
};

enum { LAMPREY_VARIANTS = 4 }; /* kernels for 2, 4, 8 and any number of ranks */

struct lamprey_device {
    const struct lamprey_driver *driver;
    CUdevice device;
    int ordinal;
    CUcontext context; /* primary, retained for the life of the process */
    int capability;    /* e.g. 90 */
    int multiprocessors;
    uint64_t pci_id; /* topology.h: lamprey_pci_id */
    uint8_t uuid[16];
    uint32_t resident_ctas; /* CTAs of our largest kernel that fit the empty GPU; 0 until the
                               kernels are loaded */
    CUfunction kernels[LAMPREY_ELEMENTS][LAMPREY_VARIANTS];
};

/* The GPU with this CUDA ordinal. Stays for the life of the process. Thread-safe. */
enum lamprey_status lamprey_device_get(int ordinal, struct lamprey_device **device);

/* Has this process opened any GPU? */
bool lamprey_device_any(void);

/* Loads every kernel for the device, so that no lazy load can happen while a peer spins.
 * Thread-safe, idempotent. reason (terminated) says what failed. */
enum lamprey_status lamprey_device_load_kernels(struct lamprey_device *device, char *reason,
                                                size_t reason_size);

/* Makes the device's context current unless it is. *pushed: pass to lamprey_device_leave. */
enum lamprey_status lamprey_device_enter(const struct lamprey_device *device, bool *pushed);
void lamprey_device_leave(const struct lamprey_device *device, bool pushed);

/* The served element types; -1 for any other. */
int lamprey_element_of(ncclDataType_t type);
uint32_t lamprey_element_bytes(enum lamprey_element element);

static inline int lamprey_variant_of(int nranks)
{
    return nranks == 2 ? 0 : nranks == 4 ? 1 : nranks == 8 ? 2 : 3;
}

#endif
