/* SPDX-License-Identifier: Apache-2.0 */
/* cuMemAlloc, host memory, and the list of known address ranges. Device pointers are host pointers.
 */
#include "tests/emulator/cuda/emulator.h"

#include <stdlib.h>
#include <string.h>

#include <unistd.h>

#define ALIGNMENT 512
/* Fresh device memory is no zeroed memory. */
#define JUNK 0xa5
#define JUNK_BYTES ((size_t)1 << 20)

static struct emulator_range *ranges;
static unsigned long long next_buffer_id = 1;

struct emulator_range *emulator_range_at(const void *address)
{
    struct emulator_range *reserved = NULL;
    for (struct emulator_range *r = ranges; r != NULL; r = r->next) {
        if ((uintptr_t)address - (uintptr_t)r->base >= r->bytes) {
            continue;
        }
        if (r->kind != EMULATOR_RANGE_RESERVED) {
            return r;
        }
        reserved = r;
    }
    return reserved;
}

struct emulator_range *emulator_range_add(enum emulator_range_kind kind, void *base, size_t bytes)
{
    struct emulator_range *range = calloc(1, sizeof(*range));
    if (range == NULL) {
        return NULL;
    }
    range->kind = kind;
    range->base = base;
    range->bytes = bytes;
    range->id = next_buffer_id++;
    range->next = ranges;
    ranges = range;
    return range;
}

void emulator_range_remove(struct emulator_range *range)
{
    struct emulator_range **link = &ranges;
    while (*link != range) {
        link = &(*link)->next;
    }
    *link = range->next;
    free(range);
}

bool emulator_range_covers(const void *address, size_t bytes)
{
    const char *at = address;
    while (bytes > 0) {
        struct emulator_range *range = emulator_range_at(at);
        if (range == NULL || range->kind == EMULATOR_RANGE_RESERVED) {
            return false;
        }
        size_t left = range->bytes - (size_t)(at - range->base);
        if (left >= bytes) {
            return true;
        }
        at += left;
        bytes -= left;
    }
    return true;
}

void emulator_memory_count(size_t *mappings, size_t *allocations)
{
    for (struct emulator_range *r = ranges; r != NULL; r = r->next) {
        if (r->kind == EMULATOR_RANGE_MAPPED) {
            ++*mappings;
        } else if (r->kind != EMULATOR_RANGE_RESERVED) {
            ++*allocations;
        }
    }
}

static void free_range(struct emulator_range *range)
{
    if (!range->registered) {
        free(range->base);
    }
    emulator_range_remove(range);
}

void emulator_memory_free_context(struct emulator_context *context)
{
    struct emulator_range *range = ranges;
    while (range != NULL) {
        struct emulator_range *next = range->next;
        bool allocated = range->kind == EMULATOR_RANGE_DEVICE || range->kind == EMULATOR_RANGE_HOST;
        if (allocated && range->context == context) {
            free_range(range);
        }
        range = next;
    }
}

static CUresult allocate(enum emulator_range_kind kind, size_t alignment, void **pointer,
                         size_t bytes)
{
    if (pointer == NULL || bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_context *context = emulator_context_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    CUresult result = emulator_capture_unsafe();
    if (result != CUDA_SUCCESS) {
        return result;
    }
    void *memory = NULL;
    if (bytes > (size_t)1 << 40 || posix_memalign(&memory, alignment, bytes) != 0) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct emulator_range *range = emulator_range_add(kind, memory, bytes);
    if (range == NULL) {
        free(memory);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    range->context = context;
    range->device = context->device;
    memset(memory, JUNK, bytes < JUNK_BYTES ? bytes : JUNK_BYTES);
    *pointer = memory;
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
    ENTER();
    void *memory = NULL;
    CUresult result =
        allocate(EMULATOR_RANGE_DEVICE, ALIGNMENT, pointer != NULL ? &memory : NULL, bytes);
    if (result == CUDA_SUCCESS) {
        *pointer = (CUdeviceptr)(uintptr_t)memory;
    }
    return result;
}

CUresult cuMemHostAlloc(void **pointer, size_t bytes, unsigned int flags)
{
    ENTER();
    const unsigned known =
        CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;
    if ((flags & ~known) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return allocate(EMULATOR_RANGE_HOST, (size_t)sysconf(_SC_PAGESIZE), pointer, bytes);
}

CUresult cuMemAllocHost_v2(void **pointer, size_t bytes)
{
    ENTER();
    return allocate(EMULATOR_RANGE_HOST, (size_t)sysconf(_SC_PAGESIZE), pointer, bytes);
}

/* Memory of a device or the host that work may still use. */
struct doomed {
    void *memory;
    struct emulator_point **points;
    size_t count;
    struct doomed *next;
};

static struct doomed *graveyard;

static void sweep(void)
{
    struct doomed **link = &graveyard;
    while (*link != NULL) {
        struct doomed *item = *link;
        while (item->count > 0 && emulator_point_reached(item->points[item->count - 1])) {
            emulator_point_drop(item->points[--item->count]);
        }
        if (item->count > 0) {
            link = &item->next;
            continue;
        }
        *link = item->next;
        free(item->memory);
        free(item->points);
        free(item);
    }
}

/* CUDA waits here for the work of the context. That would deadlock ranks that share a virtual GPU,
 * so the memory goes away later, once all work that was issued before the call is done. */
static CUresult release(enum emulator_range_kind kind, void *pointer, bool registered)
{
    if (pointer == NULL) {
        return kind == EMULATOR_RANGE_DEVICE ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_range *range = emulator_range_at(pointer);
    if (range == NULL || range->kind != kind || range->base != pointer ||
        range->registered != registered) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = emulator_capture_unsafe();
    if (result != CUDA_SUCCESS) {
        return result;
    }
    struct doomed *item = calloc(1, sizeof(*item));
    if (item == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    item->points = emulator_context_tails(range->context, &item->count);
    item->memory = registered ? NULL : pointer;
    item->next = graveyard;
    graveyard = item;
    emulator_range_remove(range);
    sweep();
    return CUDA_SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr pointer)
{
    ENTER();
    return release(EMULATOR_RANGE_DEVICE, (void *)(uintptr_t)pointer, false);
}

CUresult cuMemFreeHost(void *pointer)
{
    ENTER();
    return release(EMULATOR_RANGE_HOST, pointer, false);
}

CUresult cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned int flags)
{
    ENTER();
    (void)flags;
    if (pointer == NULL || bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_context *context = emulator_context_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (emulator_range_at(pointer) != NULL) {
        return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    }
    struct emulator_range *range = emulator_range_add(EMULATOR_RANGE_HOST, pointer, bytes);
    if (range == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    range->context = context;
    range->device = context->device;
    range->registered = true;
    return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void *pointer)
{
    ENTER();
    CUresult result = release(EMULATOR_RANGE_HOST, pointer, true);
    return result == CUDA_ERROR_INVALID_VALUE ? CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED : result;
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *device, void *host, unsigned int flags)
{
    ENTER();
    if (device == NULL || flags != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_range *range = emulator_range_at(host);
    if (range == NULL || range->kind != EMULATOR_RANGE_HOST) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *device = (CUdeviceptr)(uintptr_t)host;
    return CUDA_SUCCESS;
}

CUresult cuMemHostGetFlags(unsigned int *flags, void *host)
{
    ENTER();
    if (flags == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_range *range = emulator_range_at(host);
    if (range == NULL || range->kind != EMULATOR_RANGE_HOST) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *flags = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP;
    return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr pointer)
{
    ENTER();
    LOCKED();
    struct emulator_range *range = emulator_range_at((void *)(uintptr_t)pointer);
    if (range == NULL || range->kind == EMULATOR_RANGE_HOST) {
        return CUDA_ERROR_NOT_FOUND;
    }
    if (base != NULL) {
        *base = (CUdeviceptr)(uintptr_t)range->base;
    }
    if (bytes != NULL) {
        *bytes = range->bytes;
    }
    return CUDA_SUCCESS;
}

static CUresult attribute_of(void *data, CUpointer_attribute attribute,
                             struct emulator_range *range, CUdeviceptr pointer)
{
    bool host = range->kind == EMULATOR_RANGE_HOST;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        *(CUcontext *)data =
            range->context != NULL ? EMULATOR_HANDLE(CUcontext, range->context) : NULL;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(CUmemorytype *)data = host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)data = pointer;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        *(void **)data = host ? (void *)(uintptr_t)pointer : NULL;
        return host ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        *(unsigned *)data = 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)data = range->device;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        *(unsigned long long *)data = range->id;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        *(int *)data = 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(CUdeviceptr *)data = (CUdeviceptr)(uintptr_t)range->base;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)data = range->bytes;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MAPPED:
        *(int *)data = range->kind != EMULATOR_RANGE_RESERVED;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer)
{
    ENTER();
    LOCKED();
    struct emulator_range *range = emulator_range_at((void *)(uintptr_t)pointer);
    if (data == NULL || range == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return attribute_of(data, attribute, range, pointer);
}

CUresult cuPointerGetAttributes(unsigned int count, CUpointer_attribute *attributes, void **data,
                                CUdeviceptr pointer)
{
    ENTER();
    if (count == 0 || attributes == NULL || data == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_range *range = emulator_range_at((void *)(uintptr_t)pointer);
    for (unsigned i = 0; i < count; i++) {
        if (data[i] == NULL) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (range != NULL) {
            attribute_of(data[i], attributes[i], range, pointer);
        } else if (attributes[i] == CU_POINTER_ATTRIBUTE_MEMORY_TYPE) {
            *(CUmemorytype *)data[i] = (CUmemorytype)0; /* pageable host memory */
        } else if (attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) {
            *(int *)data[i] = -2;
        }
    }
    return CUDA_SUCCESS;
}

CUresult cuPointerSetAttribute(const void *value, CUpointer_attribute attribute,
                               CUdeviceptr pointer)
{
    ENTER();
    LOCKED();
    bool known = emulator_range_at((void *)(uintptr_t)pointer) != NULL;
    return value != NULL && known && attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}
