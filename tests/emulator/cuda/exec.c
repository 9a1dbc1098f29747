/* SPDX-License-Identifier: Apache-2.0 */
/* Executable graphs. Branches that may have to run at the same time (two kernels that wait for each
 * other) go to lanes of their own: lane 0 is the stream of the launch, the others are threads that
 * belong to the executable graph. */
#include "tests/emulator/cuda/emulator.h"

#include <stdlib.h>
#include <string.h>

#define MAX_LANES 64

struct step {
    struct emulator_work work;
    size_t *deps; /* indices of earlier steps */
    size_t dep_count;
    size_t lane;
};

struct emulator_exec {
    struct emulator_object object;
    struct step *steps;
    size_t step_count;
    size_t lane_count;
    struct emulator_stream *lanes[MAX_LANES]; /* from 1 */
    struct emulator_point *last; /* launches of one executable graph follow each other */
    struct emulator_retained *retained;
    size_t retained_count;
    struct emulator_retained *outdated; /* of before an update, for launches that still run */
    size_t outdated_count;
};

static void drop_steps(struct emulator_exec *exec)
{
    for (size_t i = 0; i < exec->step_count; i++) {
        emulator_work_drop(&exec->steps[i].work);
        free(exec->steps[i].deps);
    }
    free(exec->steps);
    exec->steps = NULL;
    exec->step_count = 0;
}

static void drop_retained(struct emulator_retained **list, size_t *count)
{
    for (size_t i = 0; i < *count; i++) {
        emulator_user_object_release((*list)[i].object, (*list)[i].count);
    }
    free(*list);
    *list = NULL;
    *count = 0;
}

static void drop_outdated(struct emulator_exec *exec)
{
    if (exec->last == NULL || emulator_point_reached(exec->last)) {
        drop_retained(&exec->outdated, &exec->outdated_count);
    }
}

static void release_exec(struct emulator_object *object)
{
    struct emulator_exec *exec = (struct emulator_exec *)object;
    drop_steps(exec);
    for (size_t i = 1; i < MAX_LANES; i++) {
        if (exec->lanes[i] != NULL) {
            emulator_stream_close(exec->lanes[i]);
            emulator_object_drop(&exec->lanes[i]->object);
        }
    }
    drop_retained(&exec->retained, &exec->retained_count);
    drop_retained(&exec->outdated, &exec->outdated_count);
    emulator_point_drop(exec->last);
    free(exec);
}

/* Stable topological order; graphs have no cycles. order maps position to node, position the other
 * way. */
static bool sort_nodes(const struct emulator_graph *graph, size_t *order, size_t *position)
{
    size_t done = 0;
    bool *placed = calloc(graph->node_count + 1, sizeof(*placed));
    if (placed == NULL) {
        return false;
    }
    while (done < graph->node_count) {
        size_t before = done;
        for (size_t i = 0; i < graph->node_count; i++) {
            const struct emulator_node *node = graph->nodes[i];
            bool ready = !placed[i];
            for (size_t j = 0; j < node->dep_count && ready; j++) {
                ready = placed[node->deps[j]->index];
            }
            if (ready) {
                placed[i] = true;
                position[i] = done;
                order[done++] = i;
            }
        }
        if (done == before) {
            break;
        }
    }
    free(placed);
    return done == graph->node_count;
}

/* Work that may take until something outside of its own stream happens. */
static bool may_block(const struct emulator_work *work)
{
    return work->kind == EMULATOR_WORK_KERNEL || work->kind == EMULATOR_WORK_HOST ||
           work->kind == EMULATOR_WORK_WAIT || work->kind == EMULATOR_WORK_WAIT_VALUE;
}

/* A lane is good for a step if whatever the lane may wait for comes before the step anyway. Sets of
 * steps are bit sets: before[i] what precedes step i, held[l] what lane l may wait for. */
static CUresult assign_lanes(struct emulator_exec *exec)
{
    size_t words = (exec->step_count + 63) / 64;
    uint64_t *before = calloc(exec->step_count * words + 1, sizeof(*before));
    uint64_t *held = calloc(MAX_LANES * words + 1, sizeof(*held));
    CUresult result = before != NULL && held != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    exec->lane_count = exec->step_count > 0 ? 1 : 0;
    for (size_t i = 0; i < exec->step_count && result == CUDA_SUCCESS; i++) {
        struct step *step = &exec->steps[i];
        uint64_t *mine = before + i * words;
        for (size_t j = 0; j < step->dep_count; j++) {
            size_t dep = step->deps[j];
            for (size_t w = 0; w < words; w++) {
                mine[w] |= before[dep * words + w];
            }
            if (may_block(&exec->steps[dep].work)) {
                mine[dep / 64] |= (uint64_t)1 << (dep % 64);
            }
        }
        size_t lane = 0;
        for (; lane < exec->lane_count; lane++) {
            bool good = true;
            for (size_t w = 0; w < words && good; w++) {
                good = (held[lane * words + w] & ~mine[w]) == 0;
            }
            if (good) {
                break;
            }
        }
        if (lane == MAX_LANES) {
            result = CUDA_ERROR_NOT_SUPPORTED;
            break;
        }
        if (lane == exec->lane_count) {
            exec->lane_count++;
        }
        step->lane = lane;
        for (size_t w = 0; w < words; w++) {
            held[lane * words + w] |= mine[w];
        }
        if (may_block(&step->work)) {
            held[lane * words + i / 64] |= (uint64_t)1 << (i % 64);
        }
    }
    free(before);
    free(held);
    return result;
}

static CUresult copy_steps(struct emulator_exec *exec, const struct emulator_graph *graph,
                           const size_t *order, const size_t *position)
{
    exec->steps = calloc(graph->node_count + 1, sizeof(*exec->steps));
    if (exec->steps == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (size_t i = 0; i < graph->node_count; i++) {
        const struct emulator_node *node = graph->nodes[order[i]];
        struct step *step = &exec->steps[i];
        step->deps = calloc(node->dep_count + 1, sizeof(*step->deps));
        if (step->deps == NULL || !emulator_work_copy(&step->work, &node->work)) {
            free(step->deps);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        exec->step_count++;
        step->dep_count = node->dep_count;
        for (size_t j = 0; j < node->dep_count; j++) {
            step->deps[j] = position[node->deps[j]->index];
        }
    }
    return CUDA_SUCCESS;
}

static CUresult fill_exec(struct emulator_exec *exec, const struct emulator_graph *graph)
{
    size_t *order = calloc(graph->node_count + 1, sizeof(*order));
    size_t *position = calloc(graph->node_count + 1, sizeof(*position));
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    if (order != NULL && position != NULL) {
        result = sort_nodes(graph, order, position) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    }
    if (result == CUDA_SUCCESS) {
        result = copy_steps(exec, graph, order, position);
    }
    free(order);
    free(position);
    if (result == CUDA_SUCCESS) {
        result = assign_lanes(exec);
    }
    for (size_t i = 0; i < graph->retained_count && result == CUDA_SUCCESS; i++) {
        const struct emulator_retained *retained = &graph->retained[i];
        if (!emulator_retain(&exec->retained, &exec->retained_count, retained->object,
                             retained->count)) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        retained->object->count += retained->count;
    }
    return result;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *handle, CUgraph graph_handle,
                                     unsigned long long flags)
{
    ENTER();
    (void)flags;
    LOCKED();
    struct emulator_graph *graph = EMULATOR_FIND(graph, EMULATOR_GRAPH, graph_handle);
    if (handle == NULL || graph == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = emulator_capture_unsafe();
    if (result != CUDA_SUCCESS) {
        return result;
    }
    struct emulator_exec *exec = calloc(1, sizeof(*exec));
    if (exec == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    emulator_object_publish(&exec->object, EMULATOR_EXEC, release_exec);
    result = fill_exec(exec, graph);
    if (result != CUDA_SUCCESS) {
        emulator_object_retire(&exec->object);
        return result;
    }
    *handle = EMULATOR_HANDLE(CUgraphExec, exec);
    return CUDA_SUCCESS;
}

#undef cuGraphInstantiate
EMULATOR_EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec *handle, CUgraph graph,
                                               CUgraphNode *node, char *log, size_t log_bytes)
{
    if (node != NULL) {
        *node = NULL;
    }
    if (log != NULL && log_bytes > 0) {
        log[0] = '\0';
    }
    return cuGraphInstantiateWithFlags(handle, graph, 0);
}

CUresult cuGraphInstantiateWithParams(CUgraphExec *handle, CUgraph graph,
                                      CUDA_GRAPH_INSTANTIATE_PARAMS *parameters)
{
    if (parameters == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = cuGraphInstantiateWithFlags(handle, graph, parameters->flags);
    parameters->hErrNode_out = NULL;
    parameters->result_out =
        result == CUDA_SUCCESS ? CUDA_GRAPH_INSTANTIATE_SUCCESS : CUDA_GRAPH_INSTANTIATE_ERROR;
    return result;
}

CUresult cuGraphExecDestroy(CUgraphExec handle)
{
    ENTER();
    LOCKED();
    struct emulator_exec *exec = EMULATOR_FIND(exec, EMULATOR_EXEC, handle);
    if (exec == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    emulator_object_retire(&exec->object);
    return CUDA_SUCCESS;
}

/* Nodes are compared in the order they were added, which re-tracing programs keep. */
CUresult cuGraphExecUpdate_v2(CUgraphExec handle, CUgraph graph_handle,
                              CUgraphExecUpdateResultInfo *info)
{
    ENTER();
    LOCKED();
    struct emulator_exec *exec = EMULATOR_FIND(exec, EMULATOR_EXEC, handle);
    struct emulator_graph *graph = EMULATOR_FIND(graph, EMULATOR_GRAPH, graph_handle);
    if (exec == NULL || graph == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct emulator_exec *fresh = calloc(1, sizeof(*fresh));
    if (fresh == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = fill_exec(fresh, graph);
    bool same = result == CUDA_SUCCESS && fresh->step_count == exec->step_count;
    for (size_t i = 0; i < exec->step_count && same; i++) {
        struct step *a = &exec->steps[i];
        struct step *b = &fresh->steps[i];
        same =
            a->work.kind == b->work.kind && a->dep_count == b->dep_count &&
            (a->dep_count == 0 || memcmp(a->deps, b->deps, a->dep_count * sizeof(*a->deps)) == 0);
    }
    drop_outdated(exec);
    for (size_t i = 0; i < exec->retained_count && same; i++) {
        same = emulator_append(&exec->outdated, &exec->outdated_count, sizeof exec->retained[i],
                               &exec->retained[i]);
    }
    if (same) {
        struct step *old = exec->steps;
        free(exec->retained);
        exec->steps = fresh->steps;
        exec->retained = fresh->retained;
        exec->retained_count = fresh->retained_count;
        fresh->steps = old;
        fresh->retained = NULL;
        fresh->retained_count = 0;
        drop_outdated(exec);
    }
    drop_steps(fresh);
    drop_retained(&fresh->retained, &fresh->retained_count);
    free(fresh);
    if (info != NULL) {
        memset(info, 0, sizeof(*info));
        info->result =
            same ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    }
    if (result != CUDA_SUCCESS) {
        return result;
    }
    return same ? CUDA_SUCCESS : CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
}

CUresult cuGraphUpload(CUgraphExec handle, CUstream stream_handle)
{
    ENTER();
    LOCKED();
    struct emulator_stream *stream = NULL;
    if (EMULATOR_FIND(exec, EMULATOR_EXEC, handle) == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return emulator_stream_resolve(stream_handle, &stream);
}

static bool prepare_lanes(struct emulator_exec *exec, struct emulator_context *context)
{
    for (size_t i = 1; i < exec->lane_count; i++) {
        struct emulator_stream *old = exec->lanes[i];
        if (old != NULL && old->context != NULL) {
            continue;
        }
        if (old != NULL) {
            emulator_object_drop(&old->object); /* its context is gone */
            exec->lanes[i] = NULL;
        }
        struct emulator_stream *lane = emulator_stream_make(context, CU_STREAM_NON_BLOCKING, 0);
        if (lane == NULL) {
            return false;
        }
        lane->internal = true;
        emulator_object_hold(&lane->object);
        exec->lanes[i] = lane;
    }
    return true;
}

/* What a step waits for: its dependencies in other lanes, the beginning of the launch, and, for a
 * wait node, what the event stands for at this moment. */
static size_t collect_waits(const struct emulator_exec *exec, const struct step *step,
                            struct emulator_point *const *points, struct emulator_point *begin,
                            struct emulator_point **waits)
{
    size_t count = 0;
    if (step->lane != 0) {
        waits[count++] = begin;
    }
    for (size_t i = 0; i < step->dep_count; i++) {
        if (exec->steps[step->deps[i]].lane != step->lane) {
            waits[count++] = points[step->deps[i]];
        }
    }
    if (step->work.kind == EMULATOR_WORK_WAIT && step->work.event.event->latest != NULL) {
        waits[count++] = step->work.event.event->latest;
    }
    return count;
}

static bool launch_step(struct emulator_exec *exec, size_t index, struct emulator_stream *stream,
                        struct emulator_point **points, struct emulator_point *begin)
{
    struct step *step = &exec->steps[index];
    struct emulator_point **waits = calloc(step->dep_count + 2, sizeof(*waits));
    struct emulator_work work = {.kind = EMULATOR_WORK_EMPTY};
    if (waits == NULL || !emulator_work_copy(&work, &step->work)) {
        free(waits);
        return false;
    }
    size_t count = collect_waits(exec, step, points, begin, waits);
    struct emulator_stream *lane = step->lane == 0 ? stream : exec->lanes[step->lane];
    struct emulator_point *point = emulator_stream_push(lane, &work, waits, count, &exec->object);
    free(waits);
    if (point == NULL) {
        return false;
    }
    points[index] = emulator_point_hold(point);
    if (step->work.kind == EMULATOR_WORK_RECORD) {
        emulator_event_set(step->work.event.event, point);
    }
    return true;
}

static CUresult launch_all(struct emulator_exec *exec, struct emulator_stream *stream)
{
    struct emulator_point **points = calloc(exec->step_count + 1, sizeof(*points));
    struct emulator_point *tails[MAX_LANES] = {NULL};
    struct emulator_work nothing = {.kind = EMULATOR_WORK_EMPTY};
    struct emulator_point *begin =
        emulator_stream_push(stream, &nothing, &exec->last, exec->last != NULL ? 1 : 0, NULL);
    if (begin != NULL) {
        emulator_point_hold(begin); /* the tail moves on */
    }
    bool good = points != NULL && begin != NULL;
    size_t launched = 0;
    while (good && launched < exec->step_count) {
        good = launch_step(exec, launched, stream, points, begin);
        launched += good ? 1 : 0;
    }
    size_t tail_count = 0;
    for (size_t lane = 1; lane < exec->lane_count && good; lane++) {
        tails[tail_count++] = exec->lanes[lane]->tail;
    }
    struct emulator_point *end =
        good ? emulator_stream_push(stream, &nothing, tails, tail_count, &exec->object) : NULL;
    if (end != NULL) {
        emulator_point_drop(exec->last);
        exec->last = emulator_point_hold(end);
    }
    for (size_t i = 0; i < launched; i++) {
        emulator_point_drop(points[i]);
    }
    emulator_point_drop(begin);
    free(points);
    return end != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle)
{
    ENTER();
    emulator_stream_await_room(stream_handle);
    LOCKED();
    struct emulator_exec *exec = EMULATOR_FIND(exec, EMULATOR_EXEC, handle);
    struct emulator_stream *stream = NULL;
    if (exec == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = emulator_stream_resolve(stream_handle, &stream);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    if (stream->capture != NULL) {
        emulator_capture_invalidate(stream->capture);
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    result = stream->legacy ? emulator_capture_implicit(stream) : CUDA_SUCCESS;
    if (result != CUDA_SUCCESS) {
        return result;
    }
    drop_outdated(exec);
    if (!prepare_lanes(exec, stream->context)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return launch_all(exec, stream);
}
