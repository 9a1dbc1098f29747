/* SPDX-License-Identifier: Apache-2.0 */
/* Versions, error texts, memory, registration. */
#include "tests/emulator/nccl/internal.h"

#include <stdlib.h>

ncclResult_t pncclGetVersion(int *version)
{
    ENTER_API();
    if (version == NULL) {
        return ncclInvalidArgument;
    }
    *version = NCCL_VERSION(2, 28, 9);
    return ncclSuccess;
}
EMULATED_ALIAS(ncclGetVersion);

const char *pncclGetErrorString(ncclResult_t code)
{
    switch (code) {
    case ncclSuccess:
        return "no error";
    case ncclUnhandledCudaError:
        return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError:
        return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError:
        return "internal error";
    case ncclInvalidArgument:
        return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage:
        return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError:
        return "remote process exited or there was a network error";
    case ncclInProgress:
        return "NCCL operation in progress";
    default:
        return "unknown result code";
    }
}
EMULATED_ALIAS(ncclGetErrorString);

const char *pncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return emulated_last_error();
}
EMULATED_ALIAS(ncclGetLastError);

ncclResult_t pncclMemAlloc(void **pointer, size_t bytes)
{
    ENTER_API();
    CUcontext context = NULL;
    if (pointer == NULL || bytes == 0) {
        WARN("ncclMemAlloc : bad arguments");
        return ncclInvalidArgument;
    }
    ncclResult_t result = emulated_current_context(&context);
    if (result != ncclSuccess) {
        return result;
    }
    CUdevice device = 0;
    CUmemGenericAllocationHandle handle = 0;
    CUdeviceptr address = 0;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR};
    size_t granularity = 0;
    result = CUDA_TRY(cuCtxGetDevice(&device));
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = device;
    if (result == ncclSuccess) {
        result = CUDA_TRY(cuMemGetAllocationGranularity(&granularity, &prop,
                                                        CU_MEM_ALLOC_GRANULARITY_RECOMMENDED));
    }
    if (result != ncclSuccess) {
        return result;
    }
    size_t size = (bytes + granularity - 1) / granularity * granularity;
    result = CUDA_TRY(cuMemCreate(&handle, size, &prop, 0));
    if (result != ncclSuccess) {
        return result;
    }
    result = CUDA_TRY(cuMemAddressReserve(&address, size, granularity, 0, 0));
    if (result == ncclSuccess) {
        result = CUDA_TRY(cuMemMap(address, size, 0, handle, 0));
        if (result != ncclSuccess) {
            cuMemAddressFree(address, size);
        }
    }
    /* The mapping keeps the memory. */
    cuMemRelease(handle);
    if (result != ncclSuccess) {
        return result;
    }
    int count = 0;
    CUmemAccessDesc access = {.location = prop.location,
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    result = CUDA_TRY(cuDeviceGetCount(&count));
    if (result == ncclSuccess) {
        result = CUDA_TRY(cuMemSetAccess(address, size, &access, 1));
    }
    if (result != ncclSuccess) {
        cuMemUnmap(address, size);
        cuMemAddressFree(address, size);
        return result;
    }
    *pointer = (void *)(uintptr_t)address;
    return ncclSuccess;
}
EMULATED_ALIAS(ncclMemAlloc);

ncclResult_t pncclMemFree(void *pointer)
{
    ENTER_API();
    if (pointer == NULL) {
        return ncclSuccess;
    }
    CUdeviceptr base = 0;
    size_t bytes = 0;
    ncclResult_t result =
        CUDA_TRY(cuMemGetAddressRange(&base, &bytes, (CUdeviceptr)(uintptr_t)pointer));
    if (result == ncclSuccess) {
        result = CUDA_TRY(cuMemUnmap(base, bytes));
    }
    return result == ncclSuccess ? CUDA_TRY(cuMemAddressFree(base, bytes)) : result;
}
EMULATED_ALIAS(ncclMemFree);

/* Registration changes nothing here: a handle that Deregister takes back. */
static ncclResult_t register_buffer(ncclComm_t comm, const char *function, const void *buffer,
                                    size_t bytes, void **handle)
{
    ncclResult_t result = emulated_comm_check(comm, function);
    if (result != ncclSuccess) {
        return result;
    }
    if (buffer == NULL || bytes == 0 || handle == NULL) {
        WARN("%s : bad arguments", function);
        return ncclInvalidArgument;
    }
    *handle = malloc(1);
    return *handle != NULL ? ncclSuccess : ncclSystemError;
}

static ncclResult_t deregister_buffer(ncclComm_t comm, const char *function, void *handle)
{
    ncclResult_t result = emulated_comm_check(comm, function);
    if (result == ncclSuccess) {
        free(handle);
    }
    return result;
}

ncclResult_t pncclCommRegister(const ncclComm_t comm, void *buffer, size_t bytes, void **handle)
{
    ENTER_API();
    return register_buffer(comm, "CommRegister", buffer, bytes, handle);
}
EMULATED_ALIAS(ncclCommRegister);

ncclResult_t pncclCommDeregister(const ncclComm_t comm, void *handle)
{
    ENTER_API();
    return deregister_buffer(comm, "CommDeregister", handle);
}
EMULATED_ALIAS(ncclCommDeregister);

ncclResult_t pncclCommWindowRegister(ncclComm_t comm, void *buffer, size_t bytes,
                                     ncclWindow_t *window, int flags)
{
    ENTER_API();
    (void)flags;
    return register_buffer(comm, "CommWindowRegister", buffer, bytes, (void **)window);
}
EMULATED_ALIAS(ncclCommWindowRegister);

ncclResult_t pncclCommWindowDeregister(ncclComm_t comm, ncclWindow_t window)
{
    ENTER_API();
    return deregister_buffer(comm, "CommWindowDeregister", window);
}
EMULATED_ALIAS(ncclCommWindowDeregister);

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
void pncclResetDebugInit(void)
{
    INFO("ncclResetDebugInit is deprecated and does nothing");
}
EMULATED_ALIAS(ncclResetDebugInit);
