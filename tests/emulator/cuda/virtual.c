/* SPDX-License-Identifier: Apache-2.0 */
/* Virtual memory management: an allocation is a memfd, so other processes can map it too (share.c).
 * A mapping can be touched only after cuMemSetAccess, and a wild access faults. */
#define _GNU_SOURCE
#include "tests/emulator/cuda/emulator.h"

#include <stdlib.h>
#include <string.h>

#include <sys/mman.h>
#include <unistd.h>

static size_t live_handles;

size_t emulator_handle_count(void)
{
    return live_handles;
}

static void release_allocation(struct emulator_object *object)
{
    struct emulator_allocation *allocation = (struct emulator_allocation *)object;
    close(allocation->fd);
    free(allocation);
}

static bool aligned(size_t value)
{
    return value % EMULATOR_GRANULARITY == 0;
}

static CUresult check_properties(const CUmemAllocationProp *prop)
{
    if (prop == NULL || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
        prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(prop->location.id)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    return emulator_handle_types_known(prop->requestedHandleTypes) ? CUDA_SUCCESS
                                                                   : CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
                                       CUmemAllocationGranularity_flags option)
{
    ENTER();
    if (granularity == NULL || (option != CU_MEM_ALLOC_GRANULARITY_MINIMUM &&
                                option != CU_MEM_ALLOC_GRANULARITY_RECOMMENDED)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = check_properties(prop);
    if (result == CUDA_SUCCESS) {
        *granularity = EMULATOR_GRANULARITY;
    }
    return result;
}

CUresult emulator_allocation_adopt(int fd, size_t bytes, CUdevice device, unsigned types,
                                   CUmemGenericAllocationHandle *handle)
{
    struct emulator_allocation *allocation = calloc(1, sizeof(*allocation));
    if (allocation == NULL) {
        close(fd);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    allocation->fd = fd;
    allocation->bytes = bytes;
    allocation->device = device;
    allocation->types = types;
    allocation->handles = 1;
    emulator_object_publish(&allocation->object, EMULATOR_ALLOCATION, release_allocation);
    live_handles++;
    *handle = allocation->object.id;
    return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
                     const CUmemAllocationProp *prop, unsigned long long flags)
{
    ENTER();
    if (handle == NULL || bytes == 0 || !aligned(bytes) || flags != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = check_properties(prop);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    LOCKED();
    result = emulator_capture_unsafe();
    if (result != CUDA_SUCCESS) {
        return result;
    }
    if (!emulator_handle_types_permitted(prop->requestedHandleTypes)) {
        return CUDA_ERROR_NOT_PERMITTED;
    }
    int fd = emulator_share_file(prop->location.id, bytes);
    return fd < 0 ? CUDA_ERROR_OUT_OF_MEMORY
                  : emulator_allocation_adopt(fd, bytes, prop->location.id,
                                              prop->requestedHandleTypes, handle);
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    ENTER();
    LOCKED();
    struct emulator_allocation *allocation = EMULATOR_FIND(allocation, EMULATOR_ALLOCATION, handle);
    if (allocation == NULL || allocation->handles == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    live_handles--;
    if (--allocation->handles == 0) {
        emulator_object_retire(&allocation->object);
    }
    return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop,
                                                CUmemGenericAllocationHandle handle)
{
    ENTER();
    LOCKED();
    struct emulator_allocation *allocation = EMULATOR_FIND(allocation, EMULATOR_ALLOCATION, handle);
    if (prop == NULL || allocation == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    memset(prop, 0, sizeof(*prop));
    prop->type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop->location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop->location.id = allocation->device;
    prop->requestedHandleTypes = (CUmemAllocationHandleType)allocation->types;
    return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t bytes, size_t alignment,
                             CUdeviceptr wanted, unsigned long long flags)
{
    ENTER();
    (void)wanted; /* a hint only */
    if (pointer == NULL || bytes == 0 || !aligned(bytes) || flags != 0 ||
        (alignment & (alignment - 1)) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (alignment < EMULATOR_GRANULARITY) {
        alignment = EMULATOR_GRANULARITY;
    }
    LOCKED();
    char *area = mmap(NULL, bytes + alignment, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    char *base = (char *)(((uintptr_t)area + alignment - 1) & ~(uintptr_t)(alignment - 1));
    if (base > area) {
        munmap(area, (size_t)(base - area));
    }
    munmap(base + bytes, (size_t)(area + alignment - base));
    if (emulator_range_add(EMULATOR_RANGE_RESERVED, base, bytes) == NULL) {
        munmap(base, bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *pointer = (CUdeviceptr)(uintptr_t)base;
    return CUDA_SUCCESS;
}

/* Looks only at where ranges begin, which is what the calls below want. */
static bool mapped_inside(const char *base, size_t bytes)
{
    for (size_t offset = 0; offset < bytes; offset += EMULATOR_GRANULARITY) {
        if (emulator_range_at(base + offset)->kind == EMULATOR_RANGE_MAPPED) {
            return true;
        }
    }
    return false;
}

CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes)
{
    ENTER();
    LOCKED();
    char *base = (char *)(uintptr_t)pointer;
    struct emulator_range *range = emulator_range_at(base);
    if (range == NULL || range->kind != EMULATOR_RANGE_RESERVED || range->base != base ||
        range->bytes != bytes || mapped_inside(base, bytes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    munmap(base, bytes);
    emulator_range_remove(range);
    return CUDA_SUCCESS;
}

static bool reserved(const char *base, size_t bytes)
{
    struct emulator_range *range = emulator_range_at(base);
    return range != NULL && range->kind == EMULATOR_RANGE_RESERVED &&
           bytes <= range->bytes - (size_t)(base - range->base) && !mapped_inside(base, bytes);
}

CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset,
                  CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    ENTER();
    LOCKED();
    char *base = (char *)(uintptr_t)pointer;
    struct emulator_allocation *allocation = EMULATOR_FIND(allocation, EMULATOR_ALLOCATION, handle);
    if (allocation == NULL || flags != 0 || bytes == 0 || !aligned(bytes) || !aligned(offset) ||
        !aligned((size_t)pointer) || offset > allocation->bytes ||
        bytes > allocation->bytes - offset || !reserved(base, bytes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct emulator_range *range = emulator_range_add(EMULATOR_RANGE_MAPPED, base, bytes);
    if (range == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (mmap(base, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, allocation->fd, (off_t)offset) ==
        MAP_FAILED) {
        emulator_range_remove(range);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    range->allocation = allocation;
    range->offset = offset;
    range->device = allocation->device;
    emulator_object_hold(&allocation->object);
    return CUDA_SUCCESS;
}

/* The range must consist of whole mappings; visits each of them. */
static CUresult each_mapping(CUdeviceptr pointer, size_t bytes,
                             CUresult (*visit)(struct emulator_range *range, int argument),
                             int argument)
{
    char *base = (char *)(uintptr_t)pointer;
    size_t covered = 0;
    while (covered < bytes) {
        struct emulator_range *range = emulator_range_at(base + covered);
        if (range == NULL || range->kind != EMULATOR_RANGE_MAPPED ||
            range->base != base + covered || range->bytes > bytes - covered) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        covered += range->bytes;
    }
    CUresult result = bytes > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (size_t at = 0; at < bytes && result == CUDA_SUCCESS;) {
        struct emulator_range *range = emulator_range_at(base + at);
        at += range->bytes;
        result = visit(range, argument);
    }
    return result;
}

static CUresult unmap(struct emulator_range *range, int argument)
{
    (void)argument;
    mmap(range->base, range->bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    struct emulator_allocation *allocation = range->allocation;
    emulator_range_remove(range);
    emulator_object_drop(&allocation->object);
    return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes)
{
    ENTER();
    LOCKED();
    CUresult result = emulator_capture_unsafe();
    return result != CUDA_SUCCESS ? result : each_mapping(pointer, bytes, unmap, 0);
}

static CUresult protect(struct emulator_range *range, int protection)
{
    return mprotect(range->base, range->bytes, protection) == 0 ? CUDA_SUCCESS
                                                                : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemSetAccess(CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc *access,
                        size_t count)
{
    ENTER();
    if (access == NULL || count == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int protection = PROT_NONE;
    for (size_t i = 0; i < count; i++) {
        if (access[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (!emulator_device_valid(access[i].location.id)) {
            return CUDA_ERROR_INVALID_DEVICE;
        }
        if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
            protection |= PROT_READ | PROT_WRITE;
        } else if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READ) {
            protection |= PROT_READ;
        }
    }
    LOCKED();
    return each_mapping(pointer, bytes, protect, protection);
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
    ENTER();
    LOCKED();
    struct emulator_range *range = emulator_range_at(address);
    if (handle == NULL || range == NULL || range->kind != EMULATOR_RANGE_MAPPED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct emulator_allocation *allocation = range->allocation;
    if (allocation->handles == 0) {
        emulator_object_publish_again(&allocation->object);
    }
    allocation->handles++;
    live_handles++;
    *handle = allocation->object.id;
    return CUDA_SUCCESS;
}
