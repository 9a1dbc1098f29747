/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/doctor/gpu.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "topology/pci.h"

#define COPIED_BYTES ((size_t)1 << 20)

static bool failed(const struct doctor_driver *driver, CUresult result, const char *call,
                   char *reason, size_t size)
{
    const char *name = NULL;
    if (result == CUDA_SUCCESS) {
        return false;
    }
    if (driver->GetErrorName(result, &name) != CUDA_SUCCESS || name == NULL) {
        name = "an unknown error";
    }
    snprintf(reason, size, "%s gives %s", call, name);
    return true;
}

bool doctor_driver_load(struct doctor_driver *driver, char *reason, size_t size)
{
    memset(driver, 0, sizeof(*driver));
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        const char *error = dlerror();
        snprintf(reason, size, "%s", error != NULL ? error : "libcuda.so.1 can't be loaded");
        return false;
    }
#define DOCTOR_TEXT(symbol) #symbol
#define DOCTOR_NAME(symbol) DOCTOR_TEXT(symbol)
#define DOCTOR_RESOLVE(member, symbol)                                                             \
    driver->member = (__typeof__(driver->member))(uintptr_t)dlsym(library, DOCTOR_NAME(symbol));   \
    if (driver->member == NULL) {                                                                  \
        snprintf(reason, size, "libcuda.so.1 lacks %s", DOCTOR_NAME(symbol));                      \
        return false;                                                                              \
    }
    DOCTOR_DRIVER_FUNCTIONS(DOCTOR_RESOLVE)
#undef DOCTOR_RESOLVE
    return !failed(driver, driver->Init(0), "cuInit", reason, size) &&
           !failed(driver, driver->DriverGetVersion(&driver->version), "cuDriverGetVersion", reason,
                   size);
}

static bool describe(const struct doctor_driver *driver, int ordinal, struct doctor_gpu *gpu,
                     char *reason, size_t size)
{
    int major = 0;
    int minor = 0;
    memset(gpu, 0, sizeof(*gpu));
    if (failed(driver, driver->DeviceGet(&gpu->device, ordinal), "cuDeviceGet", reason, size) ||
        failed(driver, driver->DeviceGetName(gpu->name, sizeof(gpu->name), gpu->device),
               "cuDeviceGetName", reason, size) ||
        failed(driver, driver->DeviceGetPCIBusId(gpu->pci_text, sizeof(gpu->pci_text), gpu->device),
               "cuDeviceGetPCIBusId", reason, size) ||
        failed(driver,
               driver->DeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                                          gpu->device),
               "cuDeviceGetAttribute", reason, size) ||
        failed(driver,
               driver->DeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                                          gpu->device),
               "cuDeviceGetAttribute", reason, size)) {
        return false;
    }
    if (!lamprey_pci_parse(gpu->pci_text, &gpu->pci_id, NULL)) {
        snprintf(reason, size, "GPU %d has the PCI id \"%s\"", ordinal, gpu->pci_text);
        return false;
    }
    snprintf(gpu->sm, sizeof(gpu->sm), "%d.%d", major, minor);
    return true;
}

bool doctor_gpus_list(const struct doctor_driver *driver, struct doctor_gpu *gpus, size_t *count,
                      char *reason, size_t size)
{
    int all = 0;
    *count = 0;
    if (failed(driver, driver->DeviceGetCount(&all), "cuDeviceGetCount", reason, size)) {
        return false;
    }
    for (int i = 0; i < all && *count < DOCTOR_MAX_GPUS; i++) {
        if (!describe(driver, i, &gpus[*count], reason, size)) {
            return false;
        }
        (*count)++;
    }
    return true;
}

/* One GPU's memory, mapped for both. */
struct memory {
    size_t bytes;
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    bool created;
    bool mapped;
};

static bool map_memory(const struct doctor_driver *driver, CUdevice owner, CUdevice other,
                       struct memory *memory, char *reason, size_t size)
{
    CUmemAllocationProp properties = {
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = owner}};
    CUmemAccessDesc access[2] = {{.location = properties.location},
                                 {.location = properties.location}};
    access[1].location.id = other;
    access[0].flags = access[1].flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    size_t granularity = 0;
    if (failed(driver,
               driver->MemGetAllocationGranularity(&granularity, &properties,
                                                   CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
               "cuMemGetAllocationGranularity", reason, size)) {
        return false;
    }
    memory->bytes = (COPIED_BYTES + granularity - 1) / granularity * granularity;
    if (failed(driver, driver->MemCreate(&memory->handle, memory->bytes, &properties, 0),
               "cuMemCreate", reason, size)) {
        return false;
    }
    memory->created = true;
    if (failed(driver, driver->MemAddressReserve(&memory->address, memory->bytes, 0, 0, 0),
               "cuMemAddressReserve", reason, size)) {
        memory->address = 0;
        return false;
    }
    if (failed(driver, driver->MemMap(memory->address, memory->bytes, 0, memory->handle, 0),
               "cuMemMap", reason, size)) {
        return false;
    }
    memory->mapped = true;
    return !failed(driver, driver->MemSetAccess(memory->address, memory->bytes, access, 2),
                   "cuMemSetAccess", reason, size);
}

static void unmap_memory(const struct doctor_driver *driver, struct memory *memory)
{
    if (memory->mapped) {
        driver->MemUnmap(memory->address, memory->bytes);
    }
    if (memory->address != 0) {
        driver->MemAddressFree(memory->address, memory->bytes);
    }
    if (memory->created) {
        driver->MemRelease(memory->handle);
    }
}

/* The sender writes into the receiver's memory, as the kernels do. */
static bool send(const struct doctor_driver *driver, CUcontext sender, CUcontext receiver,
                 CUdeviceptr source, CUdeviceptr target, uint32_t *words, char *reason, size_t size)
{
    size_t n = COPIED_BYTES / sizeof(*words);
    for (size_t i = 0; i < n; i++) {
        words[i] = (uint32_t)i * 2654435761u + 1;
    }
    if (failed(driver, driver->CtxSetCurrent(sender), "cuCtxSetCurrent", reason, size) ||
        failed(driver, driver->MemcpyHtoD(source, words, COPIED_BYTES), "cuMemcpyHtoD", reason,
               size) ||
        failed(driver, driver->MemcpyDtoD(target, source, COPIED_BYTES), "cuMemcpyDtoD", reason,
               size)) {
        return false;
    }
    memset(words, 0, COPIED_BYTES);
    if (failed(driver, driver->CtxSetCurrent(receiver), "cuCtxSetCurrent", reason, size) ||
        failed(driver, driver->MemcpyDtoH(words, target, COPIED_BYTES), "cuMemcpyDtoH", reason,
               size)) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (words[i] != (uint32_t)i * 2654435761u + 1) {
            snprintf(reason, size, "of 1 MiB, byte %zu and what follows did not arrive",
                     i * sizeof(*words));
            return false;
        }
    }
    return true;
}

bool doctor_copy(const struct doctor_driver *driver, CUdevice from, CUdevice to, char *reason,
                 size_t size)
{
    CUcontext sender = NULL;
    CUcontext receiver = NULL;
    struct memory source = {0};
    struct memory target = {0};
    bool arrived = false;
    uint32_t *words = malloc(COPIED_BYTES);
    if (words == NULL) {
        snprintf(reason, size, "out of memory");
        return false;
    }
    if (failed(driver, driver->DevicePrimaryCtxRetain(&sender, from), "cuDevicePrimaryCtxRetain",
               reason, size)) {
        goto free_words;
    }
    if (failed(driver, driver->DevicePrimaryCtxRetain(&receiver, to), "cuDevicePrimaryCtxRetain",
               reason, size)) {
        goto release_sender;
    }
    driver->CtxSetCurrent(sender);
    arrived = map_memory(driver, from, to, &source, reason, size) &&
              map_memory(driver, to, from, &target, reason, size) &&
              send(driver, sender, receiver, source.address, target.address, words, reason, size);
    unmap_memory(driver, &source);
    unmap_memory(driver, &target);
    driver->CtxSetCurrent(NULL);
    driver->DevicePrimaryCtxRelease(to);
release_sender:
    driver->DevicePrimaryCtxRelease(from);
free_words:
    free(words);
    return arrived;
}
