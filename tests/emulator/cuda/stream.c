/* SPDX-License-Identifier: Apache-2.0 */
/* Streams: a queue and one thread each, started at the first operation. */
#include "tests/emulator/cuda/emulator.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

struct emulator_operation {
    struct emulator_work work;
    struct emulator_point *done;
    struct emulator_object *hold; /* kept until the operation has run, or NULL */
    struct emulator_operation *next;
    size_t wait_count;
    struct emulator_point *waits[];
};

static size_t live_streams;

static void release_stream(struct emulator_object *object)
{
    struct emulator_stream *stream = (struct emulator_stream *)object;
    emulator_point_drop(stream->tail);
    pthread_cond_destroy(stream->wake);
    free(stream->wake);
    free(stream->deps);
    free(stream->dep_handles);
    free(stream);
}

struct emulator_stream *emulator_stream_make(struct emulator_context *context, unsigned flags,
                                             int priority)
{
    struct emulator_stream *stream = calloc(1, sizeof(*stream));
    pthread_cond_t *wake = malloc(sizeof(*wake));
    if (stream == NULL || wake == NULL) {
        free(stream);
        free(wake);
        return NULL;
    }
    pthread_cond_init(wake, NULL);
    stream->wake = wake;
    stream->context = context;
    stream->device = context->device;
    stream->flags = flags;
    stream->priority = priority;
    stream->next = context->streams;
    context->streams = stream;
    emulator_object_publish(&stream->object, EMULATOR_STREAM, release_stream);
    return stream;
}

void emulator_stream_close(struct emulator_stream *stream)
{
    if (stream->closing) {
        return;
    }
    if (stream->capture != NULL) {
        emulator_capture_invalidate(stream->capture);
    }
    if (stream->context != NULL) {
        struct emulator_stream **link = &stream->context->streams;
        while (*link != NULL && *link != stream) {
            link = &(*link)->next;
        }
        if (*link == stream) {
            *link = stream->next;
        }
    }
    stream->context = NULL;
    stream->closing = true;
    pthread_cond_signal(stream->wake);
    emulator_object_retire(&stream->object);
}

static void free_operation(struct emulator_operation *operation)
{
    for (size_t i = 0; i < operation->wait_count; i++) {
        emulator_point_drop(operation->waits[i]);
    }
    emulator_work_drop(&operation->work);
    emulator_point_drop(operation->done);
    if (operation->hold != NULL) {
        emulator_object_drop(operation->hold);
    }
    free(operation);
}

static void *stream_main(void *argument)
{
    struct emulator_stream *stream = argument;
    int token = emulator_lock();
    for (;;) {
        while (stream->head == NULL && !stream->closing) {
            pthread_cond_wait(stream->wake, emulator_mutex());
        }
        struct emulator_operation *operation = stream->head;
        if (operation == NULL) {
            break;
        }
        stream->head = operation->next;
        if (stream->head == NULL) {
            stream->end = NULL;
        }
        emulator_unlock(&token);
        for (size_t i = 0; i < operation->wait_count; i++) {
            emulator_point_wait(operation->waits[i]);
        }
        emulator_work_run(&operation->work);
        emulator_point_signal(operation->done);
        token = emulator_lock();
        stream->queued--;
        free_operation(operation);
        emulator_unlock(&token); /* runs destructors that this brought about */
        token = emulator_lock();
    }
    emulator_object_drop(&stream->object);
    emulator_unlock(&token);
    return NULL;
}

/* Signals belong to the program's own threads. */
static bool start_worker(struct emulator_stream *stream)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    int error = pthread_create(&thread, NULL, stream_main, stream);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        return false;
    }
    pthread_detach(thread);
    emulator_object_hold(&stream->object);
    stream->started = true;
    return true;
}

static bool blocks_on_legacy(const struct emulator_stream *stream)
{
    return !stream->internal && !stream->legacy && (stream->flags & CU_STREAM_NON_BLOCKING) == 0;
}

/* The tails that the legacy stream's rule makes an operation wait for; at most one per stream of
 * the context. */
static size_t legacy_waits(const struct emulator_stream *stream, struct emulator_point **waits)
{
    size_t count = 0;
    if (stream->context == NULL) {
        return 0;
    }
    for (struct emulator_stream *s = stream->context->streams; s != NULL; s = s->next) {
        bool other_side = stream->legacy ? blocks_on_legacy(s) : s->legacy;
        if (!other_side || s->tail == NULL || emulator_point_reached(s->tail)) {
            continue;
        }
        if (waits != NULL) {
            waits[count] = emulator_point_hold(s->tail);
        }
        count++;
    }
    return count;
}

struct emulator_point *emulator_stream_push(struct emulator_stream *stream,
                                            struct emulator_work *work,
                                            struct emulator_point *const *waits, size_t wait_count,
                                            struct emulator_object *hold)
{
    bool ruled = stream->legacy || blocks_on_legacy(stream);
    /* A tail may be reached between the two looks, so the second one gives the number that counts.
     */
    size_t more = ruled ? legacy_waits(stream, NULL) : 0;
    struct emulator_operation *operation =
        calloc(1, sizeof(*operation) + (wait_count + more) * sizeof(operation->waits[0]));
    struct emulator_point *done = emulator_point_create();
    if (operation == NULL || done == NULL || (!stream->started && !start_worker(stream))) {
        emulator_work_drop(work);
        free(operation);
        emulator_point_drop(done);
        return NULL;
    }
    for (size_t i = 0; i < wait_count; i++) {
        operation->waits[i] = emulator_point_hold(waits[i]);
    }
    operation->wait_count = wait_count;
    if (ruled) {
        operation->wait_count += legacy_waits(stream, operation->waits + wait_count);
    }
    operation->work = *work;
    operation->done = done;
    operation->hold = hold;
    if (hold != NULL) {
        emulator_object_hold(hold);
    }
    if (stream->end == NULL) {
        stream->head = operation;
    } else {
        stream->end->next = operation;
    }
    stream->end = operation;
    stream->queued++;
    emulator_point_drop(stream->tail);
    stream->tail = emulator_point_hold(done);
    pthread_cond_signal(stream->wake);
    return stream->tail;
}

CUresult emulator_stream_resolve(CUstream handle, struct emulator_stream **result)
{
    if (handle == NULL || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD) {
        struct emulator_context *context = emulator_context_current();
        if (context == NULL) {
            return CUDA_ERROR_INVALID_CONTEXT;
        }
        if (handle != CU_STREAM_PER_THREAD) {
            *result = context->legacy;
            return CUDA_SUCCESS;
        }
        const void *self = emulator_thread_identity();
        struct emulator_stream *stream = context->streams;
        while (stream != NULL && stream->owner_thread != self) {
            stream = stream->next;
        }
        if (stream == NULL) {
            stream = emulator_stream_make(context, CU_STREAM_DEFAULT, 0);
            if (stream == NULL) {
                return CUDA_ERROR_OUT_OF_MEMORY;
            }
            stream->owner_thread = self;
        }
        *result = stream;
        return CUDA_SUCCESS;
    }
    struct emulator_stream *stream = EMULATOR_FIND(stream, EMULATOR_STREAM, handle);
    if (stream == NULL || stream->context == NULL || stream->legacy) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *result = stream;
    return CUDA_SUCCESS;
}

void emulator_stream_await_room(CUstream handle)
{
    const size_t room = (size_t)emulator_launch_queue();
    for (bool full = room > 0; full;) {
        {
            LOCKED();
            struct emulator_stream *stream = NULL;
            full = emulator_stream_resolve(handle, &stream) == CUDA_SUCCESS &&
                   stream->capture == NULL && stream->queued >= room;
        }
        if (full) {
            usleep(100);
        }
    }
}

CUresult emulator_submit(struct emulator_stream *stream, struct emulator_work *work,
                         struct emulator_point **wait_after)
{
    if (wait_after != NULL) {
        *wait_after = NULL;
    }
    if (stream->capture != NULL) {
        return emulator_capture_add(stream, work, NULL);
    }
    CUresult result = stream->legacy ? emulator_capture_implicit(stream) : CUDA_SUCCESS;
    if (result != CUDA_SUCCESS) {
        emulator_work_drop(work);
        return result;
    }
    struct emulator_point *done = emulator_stream_push(stream, work, NULL, 0, NULL);
    if (done == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (wait_after != NULL) {
        *wait_after = emulator_point_hold(done);
    }
    return CUDA_SUCCESS;
}

size_t emulator_stream_count(void)
{
    return live_streams;
}

struct emulator_point **emulator_context_tails(const struct emulator_context *context,
                                               size_t *count)
{
    size_t most = 1;
    for (const struct emulator_stream *s = context->streams; s != NULL; s = s->next) {
        most++;
    }
    struct emulator_point **tails = calloc(most, sizeof(*tails));
    *count = 0;
    for (const struct emulator_stream *s = context->streams; s != NULL && tails != NULL;
         s = s->next) {
        if (s->tail != NULL && !emulator_point_reached(s->tail)) {
            tails[(*count)++] = emulator_point_hold(s->tail);
        }
    }
    return tails;
}

void emulator_context_drain(struct emulator_context *context)
{
    size_t count = 0;
    struct emulator_point **tails = NULL;
    {
        LOCKED();
        tails = emulator_context_tails(context, &count);
    }
    for (size_t i = 0; i < count; i++) {
        emulator_point_wait(tails[i]);
        emulator_point_drop(tails[i]);
    }
    free(tails);
}

CUresult cuStreamCreateWithPriority(CUstream *handle, unsigned int flags, int priority)
{
    ENTER();
    if (handle == NULL || (flags & ~(unsigned)CU_STREAM_NON_BLOCKING) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_context *context = emulator_context_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (priority > 0) {
        priority = 0;
    } else if (priority < -5) {
        priority = -5;
    }
    struct emulator_stream *stream = emulator_stream_make(context, flags, priority);
    if (stream == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    live_streams++;
    *handle = EMULATOR_HANDLE(CUstream, stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *handle, unsigned int flags)
{
    CUresult result = emulator_enter(__func__);
    return result != CUDA_SUCCESS ? result : cuStreamCreateWithPriority(handle, flags, 0);
}

CUresult cuStreamDestroy_v2(CUstream handle)
{
    ENTER();
    LOCKED();
    struct emulator_stream *stream = EMULATOR_FIND(stream, EMULATOR_STREAM, handle);
    if (stream == NULL || stream->legacy || stream->owner_thread != NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    live_streams--;
    emulator_stream_close(stream);
    return CUDA_SUCCESS;
}

/* Resolves a stream for a call that looks at or waits for its work. */
static CUresult resolve_to_observe(CUstream handle, struct emulator_stream **stream)
{
    CUresult result = emulator_stream_resolve(handle, stream);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    if ((*stream)->capture != NULL) {
        emulator_capture_invalidate((*stream)->capture);
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if ((*stream)->legacy) {
        result = emulator_capture_implicit(*stream);
        if (result != CUDA_SUCCESS) {
            return result;
        }
    }
    return emulator_capture_unsafe();
}

CUresult cuStreamSynchronize(CUstream handle)
{
    ENTER();
    struct emulator_point *points[1] = {NULL};
    {
        LOCKED();
        struct emulator_stream *stream = NULL;
        CUresult result = resolve_to_observe(handle, &stream);
        if (result != CUDA_SUCCESS) {
            return result;
        }
        if (stream->legacy) {
            /* The legacy stream is done when the streams that it orders are. */
            struct emulator_work nothing = {.kind = EMULATOR_WORK_EMPTY};
            if (emulator_stream_push(stream, &nothing, NULL, 0, NULL) == NULL) {
                return CUDA_ERROR_OUT_OF_MEMORY;
            }
        }
        if (stream->tail != NULL) {
            points[0] = emulator_point_hold(stream->tail);
        }
    }
    if (points[0] != NULL) {
        emulator_point_wait(points[0]);
        emulator_point_drop(points[0]);
    }
    return CUDA_SUCCESS;
}

CUresult cuStreamQuery(CUstream handle)
{
    ENTER();
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = resolve_to_observe(handle, &stream);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    bool idle = stream->tail == NULL || emulator_point_reached(stream->tail);
    if (stream->legacy && legacy_waits(stream, NULL) > 0) {
        idle = false;
    }
    return idle ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuStreamGetFlags(CUstream handle, unsigned int *flags)
{
    ENTER();
    if (flags == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (result == CUDA_SUCCESS) {
        *flags = stream->flags;
    }
    return result;
}

CUresult cuStreamGetPriority(CUstream handle, int *priority)
{
    ENTER();
    if (priority == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (result == CUDA_SUCCESS) {
        *priority = stream->priority;
    }
    return result;
}

CUresult cuStreamGetId(CUstream handle, unsigned long long *id)
{
    ENTER();
    if (id == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    /* The documentation doesn't say so; driver 580 was seen to do it. */
    if (stream->capture != NULL) {
        emulator_capture_invalidate(stream->capture);
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    *id = stream->object.id >> 4;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetCtx(CUstream handle, CUcontext *context)
{
    ENTER();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (result == CUDA_SUCCESS) {
        *context = EMULATOR_HANDLE(CUcontext, stream->context);
    }
    return result;
}

EMULATOR_EXPORT CUresult cuStreamGetDevice(CUstream handle, CUdevice *device)
{
    ENTER();
    if (device == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (result == CUDA_SUCCESS) {
        *device = stream->device;
    }
    return result;
}

CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *data)
{
    ENTER();
    if (function == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    emulator_stream_await_room(handle);
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    struct emulator_work work = {.kind = EMULATOR_WORK_HOST, .host = {function, data}};
    return emulator_submit(stream, &work, NULL);
}

static CUresult word_operation(enum emulator_work_kind kind, CUstream handle, CUdeviceptr address,
                               uint64_t value, unsigned flags, unsigned width)
{
    if (address % width != 0 || !emulator_range_covers((void *)(uintptr_t)address, width)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    struct emulator_work work = {.kind = kind,
                                 .word = {(void *)(uintptr_t)address, value, flags, width}};
    return emulator_submit(stream, &work, NULL);
}

CUresult cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value,
                                 unsigned int flags)
{
    ENTER();
    LOCKED();
    return word_operation(EMULATOR_WORK_WRITE_VALUE, stream, address, value, flags, 4);
}

CUresult cuStreamWriteValue64_v2(CUstream stream, CUdeviceptr address, cuuint64_t value,
                                 unsigned int flags)
{
    ENTER();
    LOCKED();
    return word_operation(EMULATOR_WORK_WRITE_VALUE, stream, address, value, flags, 8);
}

CUresult cuStreamWaitValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value,
                                unsigned int flags)
{
    ENTER();
    LOCKED();
    return word_operation(EMULATOR_WORK_WAIT_VALUE, stream, address, value, flags, 4);
}

CUresult cuStreamWaitValue64_v2(CUstream stream, CUdeviceptr address, cuuint64_t value,
                                unsigned int flags)
{
    ENTER();
    LOCKED();
    return word_operation(EMULATOR_WORK_WAIT_VALUE, stream, address, value, flags, 8);
}
