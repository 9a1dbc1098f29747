/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/memory.h"

#include <fcntl.h>
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

static CUmemAllocationHandleType handle_type(enum lamprey_sharing sharing)
{
    return sharing == LAMPREY_BY_FABRIC ? CU_MEM_HANDLE_TYPE_FABRIC
                                        : CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
}

enum lamprey_status lamprey_memory_create(const struct lamprey_device *device, size_t bytes,
                                          enum lamprey_sharing sharing,
                                          struct lamprey_memory *memory)
{
    const struct lamprey_driver *driver = device->driver;
    const CUmemAllocationProp properties = {
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = handle_type(sharing),
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
    memory->sharing = sharing;
    status = lamprey_driver_check(driver->MemCreate(&memory->handle, memory->bytes, &properties, 0),
                                  "cuMemCreate");
    return status ? status : map_or_release(device, memory);
}

enum lamprey_status lamprey_memory_export(const struct lamprey_device *device,
                                          const struct lamprey_memory *memory,
                                          union lamprey_memory_name *name)
{
    union lamprey_memory_name exported;
    enum lamprey_status status =
        lamprey_driver_check(device->driver->MemExportToShareableHandle(
                                 &exported, memory->handle, handle_type(memory->sharing), 0),
                             "cuMemExportToShareableHandle");
    if (status) {
        return status;
    }
    if (memory->sharing == LAMPREY_BY_DESCRIPTOR) { /* not for programs that are started */
        fcntl(exported.descriptor, F_SETFD, FD_CLOEXEC);
    }
    *name = exported;
    return LAMPREY_OK;
}

enum lamprey_status lamprey_memory_import(const struct lamprey_device *device,
                                          enum lamprey_sharing sharing,
                                          const union lamprey_memory_name *name, size_t bytes,
                                          struct lamprey_memory *memory)
{
    union lamprey_memory_name imported = *name;
    /* The driver takes a descriptor by value, and a fabric handle by address. */
    void *shareable = sharing == LAMPREY_BY_DESCRIPTOR ? (void *)(intptr_t)imported.descriptor
                                                       : (void *)&imported.fabric;
    memset(memory, 0, sizeof *memory);
    memory->bytes = bytes;
    enum lamprey_status status =
        lamprey_driver_check(device->driver->MemImportFromShareableHandle(
                                 &memory->handle, shareable, handle_type(sharing)),
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
