/* SPDX-License-Identifier: Apache-2.0 */
/* Stream capture: which calls it forbids, and how streams and events become nodes. */
#include "tests/emulator/cuda/emulator.h"

#include <stdlib.h>
#include <string.h>

static struct emulator_capture *captures;
static uint64_t next_capture_id = 1;
static _Thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
static _Thread_local char identity;

const void *emulator_thread_identity(void)
{
    return &identity;
}

struct emulator_capture *emulator_capture_by_id(uint64_t id)
{
    struct emulator_capture *capture = captures;
    while (capture != NULL && capture->id != id) {
        capture = capture->next;
    }
    return capture;
}

void emulator_capture_invalidate(struct emulator_capture *capture)
{
    capture->status = CU_STREAM_CAPTURE_STATUS_INVALIDATED;
}

CUresult emulator_capture_unsafe(void)
{
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) {
        return CUDA_SUCCESS;
    }
    CUresult result = CUDA_SUCCESS;
    for (struct emulator_capture *c = captures; c != NULL; c = c->next) {
        bool own =
            c->owner == emulator_thread_identity() && c->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
        bool global = thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                      c->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (own || global) {
            emulator_capture_invalidate(c);
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return result;
}

CUresult emulator_capture_implicit(struct emulator_stream *legacy)
{
    CUresult result = CUDA_SUCCESS;
    for (struct emulator_stream *s = legacy->context->streams; s != NULL; s = s->next) {
        if (s->capture != NULL && (s->flags & CU_STREAM_NON_BLOCKING) == 0) {
            emulator_capture_invalidate(s->capture);
            result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    }
    return result;
}

bool emulator_capture_set_deps(struct emulator_stream *stream, struct emulator_node *const *nodes,
                               size_t count, bool add)
{
    if (!add) {
        stream->dep_count = 0;
    }
    for (size_t i = 0; i < count; i++) {
        bool known = false;
        for (size_t j = 0; j < stream->dep_count; j++) {
            known = known || stream->deps[j] == nodes[i];
        }
        if (!known &&
            !emulator_append(&stream->deps, &stream->dep_count, sizeof(nodes[0]), &nodes[i])) {
            return false;
        }
    }
    return true;
}

CUresult emulator_capture_add(struct emulator_stream *stream, struct emulator_work *work,
                              struct emulator_node **result)
{
    struct emulator_capture *capture = stream->capture;
    if (capture->status != CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        emulator_work_drop(work);
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    struct emulator_node *node =
        emulator_graph_add(capture->graph, work, stream->deps, stream->dep_count);
    if (node == NULL || !emulator_capture_set_deps(stream, &node, 1, false)) {
        emulator_capture_invalidate(capture);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != NULL) {
        *result = node;
    }
    return CUDA_SUCCESS;
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
    ENTER();
    if (mode == NULL || *mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUstreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode)
{
    ENTER();
    if (mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    if (stream->legacy) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (stream->capture != NULL) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    struct emulator_capture *capture = calloc(1, sizeof(*capture));
    struct emulator_graph *graph = emulator_graph_make();
    if (capture == NULL || graph == NULL) {
        free(capture);
        if (graph != NULL) {
            emulator_object_retire(&graph->object);
        }
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    capture->id = next_capture_id++;
    capture->graph = graph;
    capture->mode = mode;
    capture->status = CU_STREAM_CAPTURE_STATUS_ACTIVE;
    capture->origin = stream;
    capture->owner = emulator_thread_identity();
    capture->next = captures;
    captures = capture;
    stream->capture = capture;
    stream->dep_count = 0;
    return CUDA_SUCCESS;
}

/* True if everything that any stream captured leads to what the origin stream waits for. */
static bool joined(const struct emulator_capture *capture, const struct emulator_context *context)
{
    for (const struct emulator_stream *s = context->streams; s != NULL; s = s->next) {
        if (s->capture != capture || s == capture->origin) {
            continue;
        }
        for (size_t i = 0; i < s->dep_count; i++) {
            bool reached = false;
            for (size_t j = 0; j < capture->origin->dep_count && !reached; j++) {
                reached = emulator_node_precedes(s->deps[i], capture->origin->deps[j]);
            }
            if (!reached) {
                return false;
            }
        }
    }
    return true;
}

struct ending {
    struct emulator_capture *capture;
    bool joined;
};

static void check_joined(struct emulator_context *context, void *argument)
{
    struct ending *ending = argument;
    ending->joined = ending->joined && joined(ending->capture, context);
}

static void leave(struct emulator_context *context, void *argument)
{
    struct ending *ending = argument;
    for (struct emulator_stream *s = context->streams; s != NULL; s = s->next) {
        if (s->capture == ending->capture) {
            s->capture = NULL;
            s->dep_count = 0;
        }
    }
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph)
{
    ENTER();
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (graph != NULL) {
        *graph = NULL;
    }
    if (result != CUDA_SUCCESS) {
        return result;
    }
    struct emulator_capture *capture = stream->capture;
    if (capture == NULL) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    if (capture->origin != stream) {
        emulator_capture_invalidate(capture);
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
        capture->owner != emulator_thread_identity()) {
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    struct ending ending = {capture, true};
    emulator_context_each(check_joined, &ending);
    if (capture->status != CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    } else if (!ending.joined) {
        result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    }
    emulator_context_each(leave, &ending);
    struct emulator_capture **link = &captures;
    while (*link != capture) {
        link = &(*link)->next;
    }
    *link = capture->next;
    if (result == CUDA_SUCCESS && graph != NULL) {
        *graph = EMULATOR_HANDLE(CUgraph, capture->graph);
    } else {
        emulator_object_retire(&capture->graph->object);
    }
    free(capture);
    return result;
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status)
{
    ENTER();
    if (status == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (result == CUDA_SUCCESS && stream->legacy) {
        result = emulator_capture_implicit(stream);
    }
    if (result != CUDA_SUCCESS) {
        return result;
    }
    *status = stream->capture != NULL ? stream->capture->status : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

EMULATOR_EXPORT CUresult cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus *status,
                                                   cuuint64_t *id, CUgraph *graph,
                                                   const CUgraphNode **dependencies,
                                                   const CUgraphEdgeData **edges, size_t *count)
{
    ENTER();
    if (status == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (result == CUDA_SUCCESS && stream->legacy) {
        result = emulator_capture_implicit(stream);
    }
    if (result != CUDA_SUCCESS) {
        return result;
    }
    struct emulator_capture *capture = stream->capture;
    *status = capture != NULL ? capture->status : CU_STREAM_CAPTURE_STATUS_NONE;
    if (*status != CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        return CUDA_SUCCESS; /* the other outputs are defined for an active capture only */
    }
    CUgraphNode *handles = malloc((stream->dep_count + 1) * sizeof(*handles));
    if (handles == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (size_t i = 0; i < stream->dep_count; i++) {
        handles[i] = EMULATOR_HANDLE(CUgraphNode, stream->deps[i]);
    }
    free(stream->dep_handles);
    stream->dep_handles = handles;
    if (id != NULL) {
        *id = capture->id;
    }
    if (graph != NULL) {
        *graph = EMULATOR_HANDLE(CUgraph, capture->graph);
    }
    if (dependencies != NULL) {
        *dependencies = handles;
    }
    if (edges != NULL) {
        *edges = NULL;
    }
    if (count != NULL) {
        *count = stream->dep_count;
    }
    return CUDA_SUCCESS;
}

EMULATOR_EXPORT CUresult cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus *status,
                                                   cuuint64_t *id, CUgraph *graph,
                                                   const CUgraphNode **dependencies, size_t *count)
{
    return cuStreamGetCaptureInfo_v3(stream, status, id, graph, dependencies, NULL, count);
}

EMULATOR_EXPORT CUresult cuStreamUpdateCaptureDependencies_v2(CUstream handle, CUgraphNode *nodes,
                                                              const CUgraphEdgeData *edges,
                                                              size_t count, unsigned int flags)
{
    ENTER();
    (void)edges;
    if (flags > CU_STREAM_SET_CAPTURE_DEPENDENCIES || (nodes == NULL && count > 0)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_stream *stream = NULL;
    CUresult result = emulator_stream_resolve(handle, &stream);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    if (stream->capture == NULL || stream->capture->status != CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    struct emulator_node **found = calloc(count + 1, sizeof(*found));
    if (found == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        found[i] = EMULATOR_FIND(node, EMULATOR_NODE, nodes[i]);
        if (found[i] == NULL || found[i]->graph != stream->capture->graph) {
            result = CUDA_ERROR_INVALID_VALUE;
        }
    }
    bool add = flags == CU_STREAM_ADD_CAPTURE_DEPENDENCIES;
    if (result == CUDA_SUCCESS && !emulator_capture_set_deps(stream, found, count, add)) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    free(found);
    return result;
}

#undef cuStreamUpdateCaptureDependencies
EMULATOR_EXPORT CUresult cuStreamUpdateCaptureDependencies(CUstream stream, CUgraphNode *nodes,
                                                           size_t count, unsigned int flags)
{
    return cuStreamUpdateCaptureDependencies_v2(stream, nodes, NULL, count, flags);
}
