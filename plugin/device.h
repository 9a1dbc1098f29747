/* SPDX-License-Identifier: Apache-2.0 */
/* A GPU of this process: its primary context, what it is, and our kernels loaded for it. */
#ifndef LAMPREY_PLUGIN_DEVICE_H
#define LAMPREY_PLUGIN_DEVICE_H

#include <pthread.h>
#include <stdint.h>

#include "kernels/instances.h"
#include "kernels/row_instances.h"
#include "plugin/driver.h"

struct lamprey_device {
    const struct lamprey_driver *driver;
    CUdevice device;
    int ordinal;
    CUcontext context;
    unsigned long long context_id;
    /* a reset context keeps its handle and gets another id */ /* primary, retained for the life
                                                                  of the process */
    int capability;                                            /* e.g. 90 */
    int multiprocessors;
    uint64_t pci_id; /* topology.h: lamprey_pci_id */
    uint8_t uuid[16];
    pthread_mutex_t loading; /* of kernels, which may wait for all that runs on this GPU */
    uint32_t resident_ctas;  /* CTAs of our largest kernel that fit the empty GPU; 0 until the
                                kernels are loaded */
    CUfunction kernels[LAMPREY_KERNEL_COUNT]; /* kernels/instances.h */
    CUfunction fused[LAMPREY_KERNEL_COUNT];   /* their twins; NULL where there is none */
    CUfunction check;                         /* kernels/check.h */
    uint32_t row_ctas;    /* CTAs of our largest kernel for rows that fit, in clusters of ... */
    uint32_t row_cluster; /* ... so many */
    CUfunction row_kernels[LAMPREY_ROW_KERNEL_COUNT]; /* kernels/row_instances.h */
};

/* The GPU with this CUDA ordinal. Stays for the life of the process, but a reset GPU has
 * another one. Thread-safe. */
enum lamprey_status lamprey_device_get(int ordinal, struct lamprey_device **device);

/* Has the program reset the GPU since? Then all that was made in its context is gone, handles too.
 */
bool lamprey_device_lost(const struct lamprey_device *device);

/* Has this process opened any GPU? */
bool lamprey_device_any(void);

/* Loads every kernel for the device, so that no lazy load can happen while a peer spins.
 * Thread-safe, idempotent. reason (terminated) says what failed. */
enum lamprey_status lamprey_device_load_kernels(struct lamprey_device *device, char *reason,
                                                size_t reason_size);

/* Makes the device's context current unless it is. *pushed: pass to lamprey_device_leave. */
enum lamprey_status lamprey_device_enter(const struct lamprey_device *device, bool *pushed);
void lamprey_device_leave(const struct lamprey_device *device, bool pushed);

/* In the device's context, where calls may be made that a capture under way would forbid. */
struct lamprey_visit {
    const struct lamprey_device *device;
    bool pushed;
    CUstreamCaptureMode mode;
};
enum lamprey_status lamprey_visit_begin(const struct lamprey_device *device,
                                        struct lamprey_visit *visit);
void lamprey_visit_end(struct lamprey_visit *visit);

#endif
