/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/emulator/cuda/emulator.h"

#include <stdlib.h>

#define STACK_DEPTH 64

struct entry {
    uint64_t id;
    struct emulator_context *context; /* valid while the id is */
};

static _Thread_local struct entry stack[STACK_DEPTH];
static _Thread_local int depth;
static struct emulator_context *primaries[EMULATOR_MAX_GPUS];

static struct emulator_context *contexts;

void emulator_context_each(void (*visit)(struct emulator_context *context, void *argument),
                           void *argument)
{
    for (struct emulator_context *context = contexts; context != NULL; context = context->next) {
        visit(context, argument);
    }
}

static void release_context(struct emulator_object *object)
{
    struct emulator_context **link = &contexts;
    while ((struct emulator_object *)*link != object) {
        link = &(*link)->next;
    }
    *link = (*link)->next;
    free(object);
}

static struct emulator_context *make_context(CUdevice device, bool primary)
{
    struct emulator_context *context = calloc(1, sizeof(*context));
    if (context == NULL) {
        return NULL;
    }
    context->device = device;
    context->primary = primary;
    context->next = contexts;
    contexts = context;
    emulator_object_publish(&context->object, EMULATOR_CONTEXT, release_context);
    context->legacy = emulator_stream_make(context, CU_STREAM_DEFAULT, 0);
    if (context->legacy == NULL) {
        emulator_object_retire(&context->object);
        return NULL;
    }
    context->legacy->legacy = true;
    return context;
}

static struct emulator_context *find_live(uint64_t id)
{
    struct emulator_context *context = EMULATOR_FIND(context, EMULATOR_CONTEXT, id);
    if (context == NULL || (context->primary && context->retained == 0)) {
        return NULL;
    }
    return context;
}

struct emulator_context *emulator_context_current(void)
{
    return depth > 0 && stack[depth - 1].id != 0 ? find_live(stack[depth - 1].id) : NULL;
}

/* Everything the context owns goes; the caller has drained its streams. */
static void empty_context(struct emulator_context *context)
{
    struct emulator_stream *stream = context->streams;
    while (stream != NULL) {
        struct emulator_stream *next = stream->next;
        if (stream != context->legacy) {
            emulator_stream_close(stream);
        }
        stream = next;
    }
    emulator_memory_free_context(context);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *handle, CUdevice device)
{
    ENTER();
    if (handle == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    LOCKED();
    if (primaries[device] == NULL) {
        primaries[device] = make_context(device, true);
        if (primaries[device] == NULL) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    primaries[device]->retained++;
    *handle = EMULATOR_HANDLE(CUcontext, primaries[device]);
    return CUDA_SUCCESS;
}

static CUresult reset_primary(CUdevice device, bool whole)
{
    struct emulator_context *context = NULL;
    {
        LOCKED();
        context = primaries[device];
        if (context == NULL || context->retained == 0) {
            return whole ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
        }
        if (!whole && context->retained > 1) {
            context->retained--;
            return CUDA_SUCCESS;
        }
    }
    emulator_context_drain(context);
    LOCKED();
    empty_context(context);
    context->retained -= whole ? 0 : 1;
    context->resets++;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    ENTER();
    return emulator_device_valid(device) ? reset_primary(device, false) : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
    ENTER();
    return emulator_device_valid(device) ? reset_primary(device, true) : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
    ENTER();
    if (flags == NULL || active == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    LOCKED();
    struct emulator_context *context = primaries[device];
    *flags = context != NULL ? context->flags : 0;
    *active = context != NULL && context->retained > 0;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned int flags)
{
    ENTER();
    if (!emulator_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    LOCKED();
    if (primaries[device] != NULL) {
        primaries[device]->flags = flags;
    }
    return CUDA_SUCCESS;
}

static CUresult push(struct emulator_context *context)
{
    if (depth == STACK_DEPTH) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    stack[depth++] = (struct entry){context->object.id, context};
    return CUDA_SUCCESS;
}

EMULATOR_EXPORT CUresult cuCtxCreate_v2(CUcontext *handle, unsigned int flags, CUdevice device)
{
    ENTER();
    if (handle == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    LOCKED();
    struct emulator_context *context = make_context(device, false);
    if (context == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    context->flags = flags;
    *handle = EMULATOR_HANDLE(CUcontext, context);
    return push(context);
}

EMULATOR_EXPORT CUresult cuCtxCreate_v3(CUcontext *handle, CUexecAffinityParam *affinity, int count,
                                        unsigned int flags, CUdevice device)
{
    if (affinity != NULL || count != 0) {
        return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
    }
    return cuCtxCreate_v2(handle, flags, device);
}

EMULATOR_EXPORT CUresult cuCtxCreate_v4(CUcontext *handle, CUctxCreateParams *parameters,
                                        unsigned int flags, CUdevice device)
{
    if (parameters != NULL &&
        (parameters->numExecAffinityParams != 0 || parameters->cigParams != NULL)) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return cuCtxCreate_v2(handle, flags, device);
}

CUresult cuCtxDestroy_v2(CUcontext handle)
{
    ENTER();
    struct emulator_context *context = NULL;
    {
        LOCKED();
        context = EMULATOR_FIND(context, EMULATOR_CONTEXT, handle);
        if (context == NULL || context->primary) {
            return CUDA_ERROR_INVALID_CONTEXT;
        }
    }
    emulator_context_drain(context);
    LOCKED();
    if (EMULATOR_FIND(context, EMULATOR_CONTEXT, handle) == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    empty_context(context);
    emulator_stream_close(context->legacy);
    if (depth > 0 && stack[depth - 1].id == context->object.id) {
        depth--;
    }
    emulator_object_retire(&context->object);
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext handle)
{
    ENTER();
    LOCKED();
    if (handle == NULL) {
        depth = depth > 0 ? depth - 1 : 0;
        return CUDA_SUCCESS;
    }
    struct emulator_context *context = find_live((uint64_t)(uintptr_t)handle);
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (depth == 0) {
        return push(context);
    }
    stack[depth - 1] = (struct entry){context->object.id, context};
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *handle)
{
    ENTER();
    if (handle == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *handle = depth > 0 ? (CUcontext)(uintptr_t)stack[depth - 1].id : NULL;
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext handle)
{
    ENTER();
    LOCKED();
    struct emulator_context *context = find_live((uint64_t)(uintptr_t)handle);
    return context != NULL ? push(context) : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxPopCurrent_v2(CUcontext *handle)
{
    ENTER();
    if (depth == 0) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    depth--;
    if (handle != NULL) {
        *handle = (CUcontext)(uintptr_t)stack[depth].id;
    }
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device)
{
    ENTER();
    if (device == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_context *context = emulator_context_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    *device = context->device;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetFlags(unsigned int *flags)
{
    ENTER();
    if (flags == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_context *context = emulator_context_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    *flags = context->flags;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetApiVersion(CUcontext handle, unsigned int *version)
{
    ENTER();
    if (version == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    if (handle != NULL && find_live((uint64_t)(uintptr_t)handle) == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    *version = 3020;
    return CUDA_SUCCESS;
}

EMULATOR_EXPORT CUresult cuCtxGetId(CUcontext handle, unsigned long long *id)
{
    ENTER();
    if (id == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_context *context =
        handle != NULL ? find_live((uint64_t)(uintptr_t)handle) : emulator_context_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    *id = (context->object.id >> 4) + (context->resets << 32);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    ENTER();
    if (least != NULL) {
        *least = 0;
    }
    if (greatest != NULL) {
        *greatest = -5;
    }
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void)
{
    ENTER();
    struct emulator_context *context = NULL;
    {
        LOCKED();
        context = emulator_context_current();
        if (context == NULL) {
            return CUDA_ERROR_INVALID_CONTEXT;
        }
        CUresult result = emulator_capture_unsafe();
        for (struct emulator_stream *s = context->streams; s != NULL; s = s->next) {
            if (s->capture != NULL) {
                emulator_capture_invalidate(s->capture);
                result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
            }
        }
        if (result != CUDA_SUCCESS) {
            return result;
        }
    }
    emulator_context_drain(context);
    return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value)
{
    ENTER();
    (void)value;
    return limit < CU_LIMIT_MAX ? CUDA_SUCCESS : CUDA_ERROR_UNSUPPORTED_LIMIT;
}

CUresult cuCtxGetLimit(size_t *value, CUlimit limit)
{
    ENTER();
    if (value == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *value = limit == CU_LIMIT_STACK_SIZE ? 1024 : 0;
    return limit < CU_LIMIT_MAX ? CUDA_SUCCESS : CUDA_ERROR_UNSUPPORTED_LIMIT;
}
