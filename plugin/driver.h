/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA driver API through one table of entry points, filled from libcuda.so.1 at run time;
 * nothing links libcuda. */
#ifndef LAMPREY_PLUGIN_DRIVER_H
#define LAMPREY_PLUGIN_DRIVER_H

#include <cuda.h>
#include <cudaTypedefs.h>
#include <stdbool.h>

#include "plugin/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* X(member, symbol, version of the ABI wanted (cudaTypedefs.h), need): need 1: to join a
 * communicator's exchange, if only to say no; 2: to serve; 0: used where it is there. */
#define LAMPREY_DRIVER_FUNCTIONS(X)                                                                \
    X(GetErrorName, cuGetErrorName, 6000, 1)                                                       \
    X(DeviceGet, cuDeviceGet, 2000, 1)                                                             \
    X(DeviceGetAttribute, cuDeviceGetAttribute, 2000, 1)                                           \
    X(DeviceGetUuid, cuDeviceGetUuid, 11040, 2)                                                    \
    X(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, 7000, 1)                                   \
    X(CtxGetCurrent, cuCtxGetCurrent, 4000, 1)                                                     \
    X(CtxGetId, cuCtxGetId, 12000, 2)                                                              \
    X(CtxPushCurrent, cuCtxPushCurrent, 4000, 1)                                                   \
    X(CtxPopCurrent, cuCtxPopCurrent, 4000, 1)                                                     \
    X(ThreadExchangeStreamCaptureMode, cuThreadExchangeStreamCaptureMode, 10010, 1)                \
    X(LibraryLoadData, cuLibraryLoadData, 12000, 2)                                                \
    X(LibraryGetKernel, cuLibraryGetKernel, 12000, 2)                                              \
    X(KernelGetFunction, cuKernelGetFunction, 12000, 2)                                            \
    X(FuncLoad, cuFuncLoad, 12040, 0)                                                              \
    X(OccupancyMaxActiveBlocksPerMultiprocessor, cuOccupancyMaxActiveBlocksPerMultiprocessor,      \
      6050, 2)                                                                                     \
    X(OccupancyMaxActiveClusters, cuOccupancyMaxActiveClusters, 11070, 0)                          \
    X(FuncSetAttribute, cuFuncSetAttribute, 9000, 2)                                               \
    X(LaunchKernelEx, cuLaunchKernelEx, 11060, 2)                                                  \
    X(LaunchHostFunc, cuLaunchHostFunc, 10000, 2)                                                  \
    X(MemAddressReserve, cuMemAddressReserve, 10020, 1)                                            \
    X(MemAddressFree, cuMemAddressFree, 10020, 1)                                                  \
    X(MemCreate, cuMemCreate, 10020, 1)                                                            \
    X(MemRelease, cuMemRelease, 10020, 1)                                                          \
    X(MemMap, cuMemMap, 10020, 1)                                                                  \
    X(MemUnmap, cuMemUnmap, 10020, 1)                                                              \
    X(MemSetAccess, cuMemSetAccess, 10020, 1)                                                      \
    X(MemGetAllocationGranularity, cuMemGetAllocationGranularity, 10020, 1)                        \
    X(MemRetainAllocationHandle, cuMemRetainAllocationHandle, 11000, 2)                            \
    X(MemExportToShareableHandle, cuMemExportToShareableHandle, 10020, 1)                          \
    X(MemImportFromShareableHandle, cuMemImportFromShareableHandle, 10020, 1)                      \
    X(MemHostAlloc, cuMemHostAlloc, 2020, 1)                                                       \
    X(MemHostGetDevicePointer, cuMemHostGetDevicePointer, 3020, 1)                                 \
    X(MemsetD8Async, cuMemsetD8Async, 3020, 1)                                                     \
    X(MemcpyHtoDAsync, cuMemcpyHtoDAsync, 3020, 1)                                                 \
    X(MemcpyDtoHAsync, cuMemcpyDtoHAsync, 3020, 1)                                                 \
    X(StreamCreate, cuStreamCreate, 2000, 1)                                                       \
    X(StreamDestroy, cuStreamDestroy, 4000, 1)                                                     \
    X(StreamQuery, cuStreamQuery, 2000, 1)                                                         \
    X(StreamWaitEvent, cuStreamWaitEvent, 3020, 1)                                                 \
    X(StreamGetId, cuStreamGetId, 12000, 0)                                                        \
    X(StreamGetDevice, cuStreamGetDevice, 12080, 0)                                                \
    X(StreamGetCaptureInfo, cuStreamGetCaptureInfo, 12030, 2)                                      \
    X(StreamUpdateCaptureDependencies, cuStreamUpdateCaptureDependencies, 12030, 2)                \
    X(GraphAddEventRecordNode, cuGraphAddEventRecordNode, 11010, 2)                                \
    X(GraphAddDependencies, cuGraphAddDependencies, 12030, 2)                                      \
    X(GraphRemoveDependencies, cuGraphRemoveDependencies, 12030, 2)                                \
    X(UserObjectCreate, cuUserObjectCreate, 11030, 2)                                              \
    X(UserObjectRelease, cuUserObjectRelease, 11030, 2)                                            \
    X(GraphRetainUserObject, cuGraphRetainUserObject, 11030, 2)                                    \
    X(EventCreate, cuEventCreate, 2000, 1)                                                         \
    X(EventDestroy, cuEventDestroy, 4000, 1)                                                       \
    X(EventRecord, cuEventRecord, 2000, 1)                                                         \
    X(EventQuery, cuEventQuery, 2000, 1)

struct lamprey_driver {
#define LAMPREY_DRIVER_MEMBER(member, symbol, version, need) PFN_##symbol##_v##version member;
    LAMPREY_DRIVER_FUNCTIONS(LAMPREY_DRIVER_MEMBER)
#undef LAMPREY_DRIVER_MEMBER
    int version; /* cuDriverGetVersion, e.g. 13000 */
};

/* The table, loaded at the first call; NULL when there is no driver that can join an exchange.
 * Thread-safe. */
const struct lamprey_driver *lamprey_driver_get(void);

/* Why the driver can't serve; "" when it can. */
const char *lamprey_driver_missing(void);

/* CUDA_SUCCESS -> LAMPREY_OK; anything else is logged with the call's name at warn level. */
enum lamprey_status lamprey_driver_check(CUresult result, const char *call);

#ifdef __cplusplus
}
#endif

#endif
