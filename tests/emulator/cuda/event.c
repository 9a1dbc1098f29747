/* SPDX-License-Identifier: Apache-2.0 */
/* An event stands for the point that was recorded last, or for a set of nodes while a capture is
 * on. */
#include "tests/emulator/cuda/emulator.h"

#include <stdlib.h>
#include <string.h>

static size_t live_events;

size_t emulator_event_count(void)
{
    return live_events;
}

static void release_event(struct emulator_object *object)
{
    struct emulator_event *event = (struct emulator_event *)object;
    emulator_point_drop(event->latest);
    free(event->deps);
    free(event);
}

void emulator_event_set(struct emulator_event *event, struct emulator_point *point)
{
    emulator_point_hold(point);
    emulator_point_drop(event->latest);
    event->latest = point;
    event->capture_id = 0;
    free(event->deps);
    event->deps = NULL;
    event->dep_count = 0;
}

CUresult cuEventCreate(CUevent *handle, unsigned int flags)
{
    ENTER();
    const unsigned known = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
    if (handle == NULL || (flags & ~known) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if ((flags & CU_EVENT_INTERPROCESS) != 0) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    LOCKED();
    struct emulator_context *context = emulator_context_current();
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    struct emulator_event *event = calloc(1, sizeof(*event));
    if (event == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    event->flags = flags;
    event->context = context;
    event->device = context->device;
    emulator_object_publish(&event->object, EMULATOR_EVENT, release_event);
    live_events++;
    *handle = EMULATOR_HANDLE(CUevent, event);
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent handle)
{
    ENTER();
    LOCKED();
    struct emulator_event *event = EMULATOR_FIND(event, EMULATOR_EVENT, handle);
    if (event == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    live_events--;
    emulator_object_retire(&event->object);
    return CUDA_SUCCESS;
}

/* The event comes to stand for what the stream has captured so far. */
static CUresult record_captured(struct emulator_event *event, struct emulator_stream *stream)
{
    struct emulator_node **deps = NULL;
    if (stream->dep_count > 0) {
        deps = malloc(stream->dep_count * sizeof(*deps));
        if (deps == NULL) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        memcpy(deps, stream->deps, stream->dep_count * sizeof(*deps));
    }
    free(event->deps);
    event->deps = deps;
    event->dep_count = stream->dep_count;
    event->capture_id = stream->capture->id;
    return CUDA_SUCCESS;
}

CUresult cuEventRecordWithFlags(CUevent handle, CUstream stream_handle, unsigned int flags)
{
    ENTER();
    if ((flags & ~(unsigned)CU_EVENT_RECORD_EXTERNAL) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_event *event = EMULATOR_FIND(event, EMULATOR_EVENT, handle);
    struct emulator_stream *stream = NULL;
    if (event == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    CUresult result = emulator_stream_resolve(stream_handle, &stream);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    if (event->context != stream->context) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    struct emulator_capture *capture = stream->capture;
    if (capture != NULL && capture->status != CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    if (capture == NULL && (flags & CU_EVENT_RECORD_EXTERNAL) != 0) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    if (capture != NULL && (flags & CU_EVENT_RECORD_EXTERNAL) == 0) {
        return record_captured(event, stream);
    }
    struct emulator_work work = {.kind = EMULATOR_WORK_EMPTY};
    if (capture != NULL) {
        work.kind = EMULATOR_WORK_RECORD;
        work.event.event = event;
        emulator_object_hold(&event->object);
    }
    struct emulator_point *point = NULL;
    result = emulator_submit(stream, &work, &point);
    if (point != NULL) {
        emulator_event_set(event, point);
        emulator_point_drop(point);
    }
    return result;
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
    CUresult result = emulator_enter(__func__);
    return result != CUDA_SUCCESS ? result : cuEventRecordWithFlags(event, stream, 0);
}

/* Waiting in a capture for an event of that capture, or joining it. */
static CUresult wait_captured(struct emulator_stream *stream, struct emulator_event *event)
{
    struct emulator_capture *capture = emulator_capture_by_id(event->capture_id);
    if (capture == NULL || (stream->capture != NULL && stream->capture != capture)) {
        if (stream->capture != NULL) {
            emulator_capture_invalidate(stream->capture);
        }
        return capture == NULL ? CUDA_ERROR_CAPTURED_EVENT : CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    if (capture->status != CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    if (stream->legacy) {
        emulator_capture_invalidate(capture);
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    bool joining = stream->capture == NULL;
    stream->capture = capture;
    if (!emulator_capture_set_deps(stream, event->deps, event->dep_count, !joining)) {
        emulator_capture_invalidate(capture);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned int flags)
{
    ENTER();
    if ((flags & ~(unsigned)CU_EVENT_WAIT_EXTERNAL) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_event *event = EMULATOR_FIND(event, EMULATOR_EVENT, handle);
    struct emulator_stream *stream = NULL;
    if (event == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    CUresult result = emulator_stream_resolve(stream_handle, &stream);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    bool external = (flags & CU_EVENT_WAIT_EXTERNAL) != 0;
    if (external && stream->capture == NULL) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    if (external) {
        struct emulator_work work = {.kind = EMULATOR_WORK_WAIT, .event = {event}};
        emulator_object_hold(&event->object);
        return emulator_submit(stream, &work, NULL);
    }
    if (event->capture_id != 0) {
        return wait_captured(stream, event);
    }
    if (stream->capture != NULL) {
        /* An event from outside would be lost in replays. */
        emulator_capture_invalidate(stream->capture);
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (event->latest == NULL || emulator_point_reached(event->latest)) {
        return CUDA_SUCCESS;
    }
    if (stream->legacy) {
        result = emulator_capture_implicit(stream);
        if (result != CUDA_SUCCESS) {
            return result;
        }
    }
    struct emulator_work nothing = {.kind = EMULATOR_WORK_EMPTY};
    struct emulator_point *point = emulator_stream_push(stream, &nothing, &event->latest, 1, NULL);
    return point != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Finds an event for a call that looks at it from the host. */
static CUresult find_to_observe(CUevent handle, struct emulator_event **event)
{
    *event = EMULATOR_FIND(event, EMULATOR_EVENT, handle);
    if (*event == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if ((*event)->capture_id != 0) {
        struct emulator_capture *capture = emulator_capture_by_id((*event)->capture_id);
        if (capture != NULL) {
            emulator_capture_invalidate(capture);
        }
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    return emulator_capture_unsafe();
}

CUresult cuEventQuery(CUevent handle)
{
    ENTER();
    LOCKED();
    struct emulator_event *event = NULL;
    CUresult result = find_to_observe(handle, &event);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    bool done = event->latest == NULL || emulator_point_reached(event->latest);
    return done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuEventSynchronize(CUevent handle)
{
    ENTER();
    struct emulator_point *point = NULL;
    {
        LOCKED();
        struct emulator_event *event = NULL;
        CUresult result = find_to_observe(handle, &event);
        if (result != CUDA_SUCCESS) {
            return result;
        }
        if (event->latest != NULL) {
            point = emulator_point_hold(event->latest);
        }
    }
    if (point != NULL) {
        emulator_point_wait(point);
        emulator_point_drop(point);
    }
    return CUDA_SUCCESS;
}

EMULATOR_EXPORT CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start_handle,
                                               CUevent end_handle)
{
    ENTER();
    if (milliseconds == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_event *start = EMULATOR_FIND(event, EMULATOR_EVENT, start_handle);
    struct emulator_event *end = EMULATOR_FIND(event, EMULATOR_EVENT, end_handle);
    if (start == NULL || end == NULL ||
        ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) != 0 || start->latest == NULL ||
        end->latest == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (!emulator_point_reached(start->latest) || !emulator_point_reached(end->latest)) {
        return CUDA_ERROR_NOT_READY;
    }
    int64_t elapsed = (int64_t)(end->latest->time_ns - start->latest->time_ns);
    *milliseconds = (float)((double)elapsed / 1e6);
    return CUDA_SUCCESS;
}

#undef cuEventElapsedTime
EMULATOR_EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end)
{
    return cuEventElapsedTime_v2(milliseconds, start, end);
}
