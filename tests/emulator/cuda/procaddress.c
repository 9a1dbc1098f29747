/* SPDX-License-Identifier: Apache-2.0 */
/* cuGetProcAddress, error names. */
#define _GNU_SOURCE
#include "tests/emulator/cuda/emulator.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Functions whose versions have symbols of their own, newest first; the others are exported under
 * their plain name. */
static const struct {
    const char *name;
    int version;
    const char *symbol;
} versions[] = {
    {"cuGetProcAddress", 12000, "cuGetProcAddress_v2"},
    {"cuGetProcAddress", 11030, "cuGetProcAddress"},
    {"cuDeviceGetUuid", 11040, "cuDeviceGetUuid_v2"},
    {"cuDeviceGetUuid", 9020, "cuDeviceGetUuid"},
    {"cuDeviceTotalMem", 3020, "cuDeviceTotalMem_v2"},
    {"cuDevicePrimaryCtxRelease", 7000, "cuDevicePrimaryCtxRelease_v2"},
    {"cuDevicePrimaryCtxReset", 7000, "cuDevicePrimaryCtxReset_v2"},
    {"cuDevicePrimaryCtxSetFlags", 7000, "cuDevicePrimaryCtxSetFlags_v2"},
    {"cuCtxCreate", 12050, "cuCtxCreate_v4"},
    {"cuCtxCreate", 11040, "cuCtxCreate_v3"},
    {"cuCtxCreate", 3020, "cuCtxCreate_v2"},
    {"cuCtxDestroy", 4000, "cuCtxDestroy_v2"},
    {"cuCtxPushCurrent", 4000, "cuCtxPushCurrent_v2"},
    {"cuCtxPopCurrent", 4000, "cuCtxPopCurrent_v2"},
    {"cuMemGetInfo", 3020, "cuMemGetInfo_v2"},
    {"cuMemAlloc", 3020, "cuMemAlloc_v2"},
    {"cuMemFree", 3020, "cuMemFree_v2"},
    {"cuMemAllocHost", 3020, "cuMemAllocHost_v2"},
    {"cuMemHostRegister", 6050, "cuMemHostRegister_v2"},
    {"cuMemHostGetDevicePointer", 3020, "cuMemHostGetDevicePointer_v2"},
    {"cuMemGetAddressRange", 3020, "cuMemGetAddressRange_v2"},
    {"cuMemcpyHtoD", 3020, "cuMemcpyHtoD_v2"},
    {"cuMemcpyDtoH", 3020, "cuMemcpyDtoH_v2"},
    {"cuMemcpyDtoD", 3020, "cuMemcpyDtoD_v2"},
    {"cuMemcpyHtoDAsync", 3020, "cuMemcpyHtoDAsync_v2"},
    {"cuMemcpyDtoHAsync", 3020, "cuMemcpyDtoHAsync_v2"},
    {"cuMemcpyDtoDAsync", 3020, "cuMemcpyDtoDAsync_v2"},
    {"cuMemsetD8", 3020, "cuMemsetD8_v2"},
    {"cuMemsetD16", 3020, "cuMemsetD16_v2"},
    {"cuMemsetD32", 3020, "cuMemsetD32_v2"},
    {"cuStreamDestroy", 4000, "cuStreamDestroy_v2"},
    {"cuStreamBeginCapture", 10010, "cuStreamBeginCapture_v2"},
    {"cuStreamGetCaptureInfo", 12030, "cuStreamGetCaptureInfo_v3"},
    {"cuStreamGetCaptureInfo", 11030, "cuStreamGetCaptureInfo_v2"},
    {"cuStreamUpdateCaptureDependencies", 12030, "cuStreamUpdateCaptureDependencies_v2"},
    {"cuStreamUpdateCaptureDependencies", 11030, "cuStreamUpdateCaptureDependencies"},
    {"cuStreamWriteValue32", 11070, "cuStreamWriteValue32_v2"},
    {"cuStreamWriteValue64", 11070, "cuStreamWriteValue64_v2"},
    {"cuStreamWaitValue32", 11070, "cuStreamWaitValue32_v2"},
    {"cuStreamWaitValue64", 11070, "cuStreamWaitValue64_v2"},
    {"cuEventDestroy", 4000, "cuEventDestroy_v2"},
    {"cuEventElapsedTime", 12080, "cuEventElapsedTime_v2"},
    {"cuEventElapsedTime", 2000, "cuEventElapsedTime"},
    {"cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags"},
    {"cuGraphInstantiate", 11000, "cuGraphInstantiate_v2"},
    {"cuGraphInstantiateWithFlags", 11040, "cuGraphInstantiateWithFlags"},
    {"cuGraphExecUpdate", 12000, "cuGraphExecUpdate_v2"},
    {"cuGraphAddDependencies", 12030, "cuGraphAddDependencies_v2"},
    {"cuGraphAddDependencies", 10000, "cuGraphAddDependencies"},
    {"cuGraphRemoveDependencies", 12030, "cuGraphRemoveDependencies_v2"},
    {"cuGraphRemoveDependencies", 10000, "cuGraphRemoveDependencies"},
    {"cuGraphNodeGetDependencies", 12030, "cuGraphNodeGetDependencies_v2"},
    {"cuGraphNodeGetDependencies", 10000, "cuGraphNodeGetDependencies"},
};

/* When a function that has only one version was introduced, for those where that matters to
 * callers. */
static const struct {
    const char *name;
    int version;
} introduced[] = {
    {"cuLaunchKernelEx", 11060},
    {"cuLibraryLoadData", 12000},
    {"cuLibraryUnload", 12000},
    {"cuLibraryGetKernel", 12000},
    {"cuKernelGetFunction", 12000},
    {"cuFuncLoad", 12040},
    {"cuStreamGetId", 12000},
    {"cuStreamGetDevice", 12080},
    {"cuUserObjectCreate", 11030},
    {"cuUserObjectRetain", 11030},
    {"cuUserObjectRelease", 11030},
    {"cuGraphRetainUserObject", 11030},
    {"cuCtxGetId", 12000},
    {"cuGraphAddEventRecordNode", 11010},
    {"cuGraphAddEventWaitNode", 11010},
    {"cuEventRecordWithFlags", 11010},
    {"cuMemCreate", 10020},
    {"cuThreadExchangeStreamCaptureMode", 10010},
};

static void *own_symbol(const char *name)
{
    static void *self;
    if (self == NULL) {
        Dl_info info = {0};
        if (dladdr((void *)(uintptr_t)&own_symbol, &info) != 0) {
            self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
        }
    }
    return self != NULL ? dlsym(self, name) : NULL;
}

static void *look_up(const char *name, int version, CUdriverProcAddressQueryResult *status)
{
    *status = CU_GET_PROC_ADDRESS_SUCCESS;
    bool versioned = false;
    for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++) {
        if (strcmp(versions[i].name, name) == 0) {
            versioned = true;
            if (versions[i].version <= version &&
                versions[i].version <= emulator_driver_version()) {
                return own_symbol(versions[i].symbol);
            }
        }
    }
    int since = 0;
    for (size_t i = 0; i < sizeof(introduced) / sizeof(introduced[0]); i++) {
        if (strcmp(introduced[i].name, name) == 0) {
            since = introduced[i].version;
        }
    }
    void *symbol =
        strncmp(name, "cu", 2) == 0 && strstr(name, "_v") == NULL ? own_symbol(name) : NULL;
    if (since > emulator_driver_version() || (!versioned && symbol == NULL)) {
        *status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
        return NULL;
    }
    if (versioned || since > version) {
        *status = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
        return NULL;
    }
    return symbol;
}

EMULATOR_EXPORT CUresult cuGetProcAddress_v2(const char *name, void **function, int version,
                                             cuuint64_t flags,
                                             CUdriverProcAddressQueryResult *status)
{
    if (name == NULL || function == NULL || version < 2000 || version > 99990 ||
        flags > CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SUCCESS;
    *function = look_up(name, version, &found);
    if (status != NULL) {
        *status = found;
    }
    return *function != NULL ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

#undef cuGetProcAddress
EMULATOR_EXPORT CUresult cuGetProcAddress(const char *name, void **function, int version,
                                          cuuint64_t flags)
{
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

#define ERROR_NAMES(X)                                                                             \
    X(CUDA_SUCCESS, "no error")                                                                    \
    X(CUDA_ERROR_INVALID_VALUE, "invalid argument")                                                \
    X(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")                                                   \
    X(CUDA_ERROR_NOT_INITIALIZED, "initialization error")                                          \
    X(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected")                                  \
    X(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal")                                         \
    X(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid")                                  \
    X(CUDA_ERROR_INVALID_CONTEXT, "invalid device context")                                        \
    X(CUDA_ERROR_UNSUPPORTED_LIMIT, "limit is not supported on this architecture")                 \
    X(CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY, "execution affinity not supported")                    \
    X(CUDA_ERROR_OPERATING_SYSTEM, "OS call failed or operation not supported on this OS")         \
    X(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle")                                        \
    X(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state")          \
    X(CUDA_ERROR_NOT_FOUND, "named symbol not found")                                              \
    X(CUDA_ERROR_NOT_READY, "device not ready")                                                    \
    X(CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed")                                     \
    X(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "memory is already registered")                   \
    X(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "memory is not registered")                           \
    X(CUDA_ERROR_NOT_PERMITTED, "operation not permitted")                                         \
    X(CUDA_ERROR_NOT_SUPPORTED, "operation not supported")                                         \
    X(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing")   \
    X(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "capture failed due to an earlier error")             \
    X(CUDA_ERROR_STREAM_CAPTURE_MERGE, "operation would merge two capture sequences")              \
    X(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not begun on this stream")                 \
    X(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "captured work was not joined to the original stream")   \
    X(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency crosses the edge of a capture")             \
    X(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "implicit dependency on a capturing stream")             \
    X(CUDA_ERROR_CAPTURED_EVENT, "event was last recorded in a capturing stream")                  \
    X(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "capture was begun by another thread")               \
    X(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, "graph update was not performed")                      \
    X(CUDA_ERROR_UNKNOWN, "unknown error")

CUresult cuGetErrorName(CUresult error, const char **text)
{
    if (text == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    switch ((int)error) {
#define ERROR_CASE(code, description)                                                              \
    case code:                                                                                     \
        *text = #code;                                                                             \
        return CUDA_SUCCESS;
        ERROR_NAMES(ERROR_CASE)
#undef ERROR_CASE
    default:
        *text = NULL;
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    if (text == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    switch ((int)error) {
#define ERROR_CASE(code, description)                                                              \
    case code:                                                                                     \
        *text = description;                                                                       \
        return CUDA_SUCCESS;
        ERROR_NAMES(ERROR_CASE)
#undef ERROR_CASE
    default:
        *text = NULL;
        return CUDA_ERROR_INVALID_VALUE;
    }
}
