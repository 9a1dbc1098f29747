/* SPDX-License-Identifier: Apache-2.0 */
/* The GPUs that CUDA shows to this process, and copies between them. */
#ifndef LAMPREY_TOOLS_DOCTOR_GPU_H
#define LAMPREY_TOOLS_DOCTOR_GPU_H

#include <cuda.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* X(member, symbol). cuda.h gives the symbols their versions. */
#define DOCTOR_DRIVER_FUNCTIONS(X)                                                                 \
    X(Init, cuInit)                                                                                \
    X(DriverGetVersion, cuDriverGetVersion)                                                        \
    X(GetErrorName, cuGetErrorName)                                                                \
    X(DeviceGetCount, cuDeviceGetCount)                                                            \
    X(DeviceGet, cuDeviceGet)                                                                      \
    X(DeviceGetName, cuDeviceGetName)                                                              \
    X(DeviceGetAttribute, cuDeviceGetAttribute)                                                    \
    X(DeviceGetPCIBusId, cuDeviceGetPCIBusId)                                                      \
    X(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain)                                            \
    X(DevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease)                                          \
    X(CtxSetCurrent, cuCtxSetCurrent)                                                              \
    X(MemGetAllocationGranularity, cuMemGetAllocationGranularity)                                  \
    X(MemCreate, cuMemCreate)                                                                      \
    X(MemRelease, cuMemRelease)                                                                    \
    X(MemAddressReserve, cuMemAddressReserve)                                                      \
    X(MemAddressFree, cuMemAddressFree)                                                            \
    X(MemMap, cuMemMap)                                                                            \
    X(MemUnmap, cuMemUnmap)                                                                        \
    X(MemSetAccess, cuMemSetAccess)                                                                \
    X(MemcpyHtoD, cuMemcpyHtoD)                                                                    \
    X(MemcpyDtoH, cuMemcpyDtoH)                                                                    \
    X(MemcpyDtoD, cuMemcpyDtoD)

struct doctor_driver {
#define DOCTOR_DRIVER_MEMBER(member, symbol) __typeof__(symbol) *member;
    DOCTOR_DRIVER_FUNCTIONS(DOCTOR_DRIVER_MEMBER)
#undef DOCTOR_DRIVER_MEMBER
    int version; /* e.g. 13000 */
};

enum { DOCTOR_MAX_GPUS = 32 };

struct doctor_gpu {
    CUdevice device;
    char name[96];
    char pci_text[32];
    uint64_t pci_id; /* topology.h: lamprey_pci_id */
    char sm[16];     /* "9.0" */
};

/* Opens libcuda.so.1 and starts it. False with a reason. */
bool doctor_driver_load(struct doctor_driver *driver, char *reason, size_t size);

/* False with a reason; *count may be 0. More than DOCTOR_MAX_GPUS are left out. */
bool doctor_gpus_list(const struct doctor_driver *driver, struct doctor_gpu *gpus, size_t *count,
                      char *reason, size_t size);

/* Copies from one GPU's memory into another's and back to the host, by the mappings that Lamprey
 * uses: true if all of it arrives. False with a reason. */
bool doctor_copy(const struct doctor_driver *driver, CUdevice from, CUdevice to, char *reason,
                 size_t size);

#ifdef __cplusplus
}
#endif

#endif
