/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/memory.h"

#include <string.h>

static enum lamprey_status map(const struct lamprey_device *device, struct lamprey_memory *memory)
{
    const struct lamprey_driver *driver = device->driver;
    const CUmemAccessDesc access = {
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device->device},
        .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    CUdeviceptr address = 0;
    enum lamprey_status status = lamprey_driver_check(
        driver->MemAddressReserve(&address, memory->bytes, 0, 0, 0), "cuMemAddressReserve");
    if (status) {
        return status;
    }
    status = lamprey_driver_check(driver->MemMap(address, memory->bytes, 0, memory->handle, 0),
                                  "cuMemMap");
    if (status) {
        goto free_address;
    }
    status = lamprey_driver_check(driver->MemSetAccess(address, memory->bytes, &access, 1),
                                  "cuMemSetAccess");
    if (status) {
        goto unmap;
    }
    memory->address = address;
    return LAMPREY_OK;

unmap:
    driver->MemUnmap(address, memory->bytes);
free_address:
    driver->MemAddressFree(address, memory->bytes);
    return status;
}

/* Releases the handle and forgets the memory where mapping it has failed. */
static enum lamprey_status map_or_release(const struct lamprey_device *device,
                                          struct lamprey_memory *memory)
{
    enum lamprey_status status = map(device, memory);
    if (status) {
        device->driver->MemRelease(memory->handle);
        memset(memory, 0, sizeof *memory);
    }
    return status;
}

enum lamprey_status lamprey_memory_create(const struct lamprey_device *device, size_t bytes,
                                          bool shareable, struct lamprey_memory *memory)
{
    const struct lamprey_driver *driver = device->driver;
    const CUmemAllocationProp properties = {
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes =
            shareable ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : CU_MEM_HANDLE_TYPE_NONE,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device->device},
    };
    size_t granularity = 0;
    memset(memory, 0, sizeof *memory);
    enum lamprey_status status =
        lamprey_driver_check(driver->MemGetAllocationGranularity(&granularity, &properties,
                                                                 CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                             "cuMemGetAllocationGranularity");
    if (status) {
        return status;
    }
    memory->bytes = (bytes + granularity - 1) / granularity * granularity;
    status = lamprey_driver_check(driver->MemCreate(&memory->handle, memory->bytes, &properties, 0),
                                  "cuMemCreate");
    return status ? status : map_or_release(device, memory);
}

enum lamprey_status lamprey_memory_export(const struct lamprey_device *device,
                                          const struct lamprey_memory *memory, int *descriptor)
{
    int exported = -1;
    enum lamprey_status status = lamprey_driver_check(
        device->driver->MemExportToShareableHandle(&exported, memory->handle,
                                                   CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
        "cuMemExportToShareableHandle");
    if (!status) {
        *descriptor = exported;
    }
    return status;
}

enum lamprey_status lamprey_memory_import(const struct lamprey_device *device, int descriptor,
                                          size_t bytes, struct lamprey_memory *memory)
{
    memset(memory, 0, sizeof *memory);
    memory->bytes = bytes;
    enum lamprey_status status = lamprey_driver_check(
        device->driver->MemImportFromShareableHandle(&memory->handle, (void *)(intptr_t)descriptor,
                                                     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
        "cuMemImportFromShareableHandle");
    return status ? status : map_or_release(device, memory);
}

enum lamprey_status lamprey_memory_alias(const struct lamprey_device *device,
                                         const struct lamprey_memory *original,
                                         struct lamprey_memory *memory)
{
    memset(memory, 0, sizeof *memory);
    memory->bytes = original->bytes;
    enum lamprey_status status = lamprey_driver_check(
        device->driver->MemRetainAllocationHandle(&memory->handle, (void *)original->address),
        "cuMemRetainAllocationHandle");
    return status ? status : map_or_release(device, memory);
}

void lamprey_memory_destroy(const struct lamprey_device *device, struct lamprey_memory *memory)
{
    const struct lamprey_driver *driver = device->driver;
    if (memory->address) {
        driver->MemUnmap(memory->address, memory->bytes);
        driver->MemAddressFree(memory->address, memory->bytes);
        driver->MemRelease(memory->handle);
    }
    memset(memory, 0, sizeof *memory);
}
