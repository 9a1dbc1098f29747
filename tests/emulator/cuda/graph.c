/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs: nodes, dependencies, user objects. */
#include "tests/emulator/cuda/emulator.h"

#include <stdlib.h>
#include <string.h>

bool emulator_append(void *array, size_t *count, size_t element_bytes, const void *element)
{
    void *old = NULL;
    memcpy(&old, array, sizeof(old)); /* array is the address of any kind of pointer */
    char *grown = realloc(old, (*count + 1) * element_bytes);
    if (grown == NULL) {
        return false;
    }
    memcpy(grown + *count * element_bytes, element, element_bytes);
    ++*count;
    memcpy(array, &grown, sizeof(grown));
    return true;
}

static void release_node(struct emulator_object *object)
{
    struct emulator_node *node = (struct emulator_node *)object;
    emulator_work_drop(&node->work);
    free(node->deps);
    free(node);
}

static void release_graph(struct emulator_object *object)
{
    struct emulator_graph *graph = (struct emulator_graph *)object;
    for (size_t i = 0; i < graph->node_count; i++) {
        emulator_object_retire(&graph->nodes[i]->object);
    }
    for (size_t i = 0; i < graph->retained_count; i++) {
        emulator_user_object_release(graph->retained[i].object, graph->retained[i].count);
    }
    free(graph->nodes);
    free(graph->retained);
    free(graph);
}

struct emulator_graph *emulator_graph_make(void)
{
    struct emulator_graph *graph = calloc(1, sizeof(*graph));
    if (graph != NULL) {
        emulator_object_publish(&graph->object, EMULATOR_GRAPH, release_graph);
    }
    return graph;
}

bool emulator_node_depend(struct emulator_node *node, struct emulator_node *on)
{
    for (size_t i = 0; i < node->dep_count; i++) {
        if (node->deps[i] == on) {
            return true;
        }
    }
    return emulator_append(&node->deps, &node->dep_count, sizeof(on), &on);
}

struct emulator_node *emulator_graph_add(struct emulator_graph *graph, struct emulator_work *work,
                                         struct emulator_node *const *deps, size_t count)
{
    struct emulator_node *node = calloc(1, sizeof(*node));
    if (node == NULL) {
        emulator_work_drop(work);
        return NULL;
    }
    node->work = *work;
    node->graph = graph;
    node->index = graph->node_count;
    emulator_object_publish(&node->object, EMULATOR_NODE, release_node);
    bool added = true;
    for (size_t i = 0; i < count && added; i++) {
        added = emulator_node_depend(node, deps[i]);
    }
    if (!added || !emulator_append(&graph->nodes, &graph->node_count, sizeof(node), &node)) {
        emulator_object_retire(&node->object);
        return NULL;
    }
    return node;
}

static bool search(const struct emulator_node *from, const struct emulator_node *to, bool *seen)
{
    if (from == to) {
        return true;
    }
    if (seen[to->index]) {
        return false;
    }
    seen[to->index] = true;
    for (size_t i = 0; i < to->dep_count; i++) {
        if (search(from, to->deps[i], seen)) {
            return true;
        }
    }
    return false;
}

bool emulator_node_precedes(const struct emulator_node *from, const struct emulator_node *to)
{
    bool *seen = calloc(to->graph->node_count, sizeof(*seen));
    bool found = seen != NULL && search(from, to, seen);
    free(seen);
    return found;
}

CUresult cuGraphCreate(CUgraph *handle, unsigned int flags)
{
    ENTER();
    if (handle == NULL || flags != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_graph *graph = emulator_graph_make();
    if (graph == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = EMULATOR_HANDLE(CUgraph, graph);
    return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph handle)
{
    ENTER();
    LOCKED();
    struct emulator_graph *graph = EMULATOR_FIND(graph, EMULATOR_GRAPH, handle);
    if (graph == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    emulator_object_retire(&graph->object);
    return CUDA_SUCCESS;
}

static CUresult find_nodes(struct emulator_graph *graph, const CUgraphNode *handles, size_t count,
                           struct emulator_node ***nodes)
{
    if (count > 0 && handles == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct emulator_node **found = calloc(count + 1, sizeof(*found));
    if (found == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (size_t i = 0; i < count; i++) {
        found[i] = EMULATOR_FIND(node, EMULATOR_NODE, handles[i]);
        if (found[i] == NULL || found[i]->graph != graph) {
            free(found);
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    *nodes = found;
    return CUDA_SUCCESS;
}

/* Takes work over. */
static CUresult add_node(CUgraphNode *handle, CUgraph graph_handle, const CUgraphNode *deps,
                         size_t count, struct emulator_work *work)
{
    struct emulator_graph *graph = EMULATOR_FIND(graph, EMULATOR_GRAPH, graph_handle);
    struct emulator_node **nodes = NULL;
    CUresult result = graph != NULL && handle != NULL ? find_nodes(graph, deps, count, &nodes)
                                                      : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS) {
        emulator_work_drop(work);
        return result;
    }
    struct emulator_node *node = emulator_graph_add(graph, work, nodes, count);
    free(nodes);
    if (node == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = EMULATOR_HANDLE(CUgraphNode, node);
    return CUDA_SUCCESS;
}

CUresult cuGraphAddEmptyNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *deps,
                             size_t count)
{
    ENTER();
    LOCKED();
    struct emulator_work work = {.kind = EMULATOR_WORK_EMPTY};
    return add_node(handle, graph, deps, count, &work);
}

CUresult cuGraphAddHostNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *deps,
                            size_t count, const CUDA_HOST_NODE_PARAMS *parameters)
{
    ENTER();
    if (parameters == NULL || parameters->fn == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_work work = {.kind = EMULATOR_WORK_HOST,
                                 .host = {parameters->fn, parameters->userData}};
    return add_node(handle, graph, deps, count, &work);
}

static CUresult add_event_node(enum emulator_work_kind kind, CUgraphNode *handle, CUgraph graph,
                               const CUgraphNode *deps, size_t count, CUevent event_handle)
{
    struct emulator_event *event = EMULATOR_FIND(event, EMULATOR_EVENT, event_handle);
    if (event == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    struct emulator_work work = {.kind = kind, .event = {event}};
    emulator_object_hold(&event->object);
    return add_node(handle, graph, deps, count, &work);
}

CUresult cuGraphAddEventRecordNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *deps,
                                   size_t count, CUevent event)
{
    ENTER();
    LOCKED();
    return add_event_node(EMULATOR_WORK_RECORD, handle, graph, deps, count, event);
}

CUresult cuGraphAddEventWaitNode(CUgraphNode *handle, CUgraph graph, const CUgraphNode *deps,
                                 size_t count, CUevent event)
{
    ENTER();
    LOCKED();
    return add_event_node(EMULATOR_WORK_WAIT, handle, graph, deps, count, event);
}

EMULATOR_EXPORT CUresult cuGraphAddDependencies_v2(CUgraph handle, const CUgraphNode *from,
                                                   const CUgraphNode *to,
                                                   const CUgraphEdgeData *edges, size_t count)
{
    ENTER();
    (void)edges;
    LOCKED();
    struct emulator_graph *graph = EMULATOR_FIND(graph, EMULATOR_GRAPH, handle);
    struct emulator_node **sources = NULL;
    struct emulator_node **targets = NULL;
    if (graph == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = find_nodes(graph, from, count, &sources);
    if (result == CUDA_SUCCESS) {
        result = find_nodes(graph, to, count, &targets);
    }
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        if (emulator_node_precedes(targets[i], sources[i])) {
            result = CUDA_ERROR_INVALID_VALUE; /* a cycle */
        } else if (!emulator_node_depend(targets[i], sources[i])) {
            result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    free(sources);
    free(targets);
    return result;
}

static bool remove_dependency(struct emulator_node *node, const struct emulator_node *on)
{
    for (size_t i = 0; i < node->dep_count; i++) {
        if (node->deps[i] == on) {
            node->deps[i] = node->deps[--node->dep_count];
            return true;
        }
    }
    return false;
}

EMULATOR_EXPORT CUresult cuGraphRemoveDependencies_v2(CUgraph handle, const CUgraphNode *from,
                                                      const CUgraphNode *to,
                                                      const CUgraphEdgeData *edges, size_t count)
{
    ENTER();
    (void)edges;
    LOCKED();
    struct emulator_graph *graph = EMULATOR_FIND(graph, EMULATOR_GRAPH, handle);
    struct emulator_node **sources = NULL;
    struct emulator_node **targets = NULL;
    if (graph == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = find_nodes(graph, from, count, &sources);
    if (result == CUDA_SUCCESS) {
        result = find_nodes(graph, to, count, &targets);
    }
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        if (!remove_dependency(targets[i], sources[i])) {
            result = CUDA_ERROR_INVALID_VALUE;
        }
    }
    free(sources);
    free(targets);
    return result;
}

#undef cuGraphAddDependencies
#undef cuGraphRemoveDependencies
EMULATOR_EXPORT CUresult cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from,
                                                const CUgraphNode *to, size_t count)
{
    return cuGraphAddDependencies_v2(graph, from, to, NULL, count);
}

EMULATOR_EXPORT CUresult cuGraphRemoveDependencies(CUgraph graph, const CUgraphNode *from,
                                                   const CUgraphNode *to, size_t count)
{
    return cuGraphRemoveDependencies_v2(graph, from, to, NULL, count);
}

/* As CUDA's listings do it: with handles NULL the number is returned; else up to *count, the rest
 * NULL. */
static CUresult list_nodes(struct emulator_node *const *nodes, size_t available,
                           CUgraphNode *handles, size_t *count)
{
    if (count == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (handles != NULL) {
        for (size_t i = 0; i < *count; i++) {
            handles[i] = i < available ? EMULATOR_HANDLE(CUgraphNode, nodes[i]) : NULL;
        }
        available = available < *count ? available : *count;
    }
    *count = available;
    return CUDA_SUCCESS;
}

CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode *nodes, size_t *count)
{
    ENTER();
    LOCKED();
    struct emulator_graph *graph = EMULATOR_FIND(graph, EMULATOR_GRAPH, handle);
    if (graph == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return list_nodes(graph->nodes, graph->node_count, nodes, count);
}

EMULATOR_EXPORT CUresult cuGraphNodeGetDependencies_v2(CUgraphNode handle, CUgraphNode *nodes,
                                                       CUgraphEdgeData *edges, size_t *count)
{
    ENTER();
    LOCKED();
    struct emulator_node *node = EMULATOR_FIND(node, EMULATOR_NODE, handle);
    if (node == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (edges != NULL && count != NULL) {
        memset(edges, 0, *count * sizeof(*edges));
    }
    return list_nodes(node->deps, node->dep_count, nodes, count);
}

#undef cuGraphNodeGetDependencies
EMULATOR_EXPORT CUresult cuGraphNodeGetDependencies(CUgraphNode node, CUgraphNode *nodes,
                                                    size_t *count)
{
    return cuGraphNodeGetDependencies_v2(node, nodes, NULL, count);
}

CUresult cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType *type)
{
    ENTER();
    static const CUgraphNodeType types[] = {
        [EMULATOR_WORK_EMPTY] = CU_GRAPH_NODE_TYPE_EMPTY,
        [EMULATOR_WORK_KERNEL] = CU_GRAPH_NODE_TYPE_KERNEL,
        [EMULATOR_WORK_COPY] = CU_GRAPH_NODE_TYPE_MEMCPY,
        [EMULATOR_WORK_SET] = CU_GRAPH_NODE_TYPE_MEMSET,
        [EMULATOR_WORK_HOST] = CU_GRAPH_NODE_TYPE_HOST,
        [EMULATOR_WORK_RECORD] = CU_GRAPH_NODE_TYPE_EVENT_RECORD,
        [EMULATOR_WORK_WAIT] = CU_GRAPH_NODE_TYPE_WAIT_EVENT,
        [EMULATOR_WORK_WRITE_VALUE] = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP,
        [EMULATOR_WORK_WAIT_VALUE] = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP,
    };
    LOCKED();
    struct emulator_node *node = EMULATOR_FIND(node, EMULATOR_NODE, handle);
    if (node == NULL || type == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *type = types[node->work.kind];
    return CUDA_SUCCESS;
}

/* Copies the nodes of from behind those of to; those without dependencies get deps. False: out of
 * memory. */
static bool append_graph(struct emulator_graph *to, const struct emulator_graph *from,
                         struct emulator_node *const *deps, size_t count)
{
    const size_t first = to->node_count;
    bool complete = true;
    for (size_t i = 0; i < from->node_count && complete; i++) {
        struct emulator_work work = {.kind = EMULATOR_WORK_EMPTY};
        const bool root = from->nodes[i]->dep_count == 0;
        complete = emulator_work_copy(&work, &from->nodes[i]->work) &&
                   emulator_graph_add(to, &work, deps, root ? count : 0) != NULL;
    }
    for (size_t i = 0; i < from->node_count && complete; i++) {
        const struct emulator_node *node = from->nodes[i];
        for (size_t j = 0; j < node->dep_count && complete; j++) {
            complete =
                emulator_node_depend(to->nodes[first + i], to->nodes[first + node->deps[j]->index]);
        }
    }
    for (size_t i = 0; i < from->retained_count && complete; i++) {
        struct emulator_retained *retained = &from->retained[i];
        complete =
            emulator_retain(&to->retained, &to->retained_count, retained->object, retained->count);
        retained->object->count += complete ? retained->count : 0;
    }
    return complete;
}

/* The child's nodes become the parent's; the node that stands for it comes after all of them. */
CUresult cuGraphAddChildGraphNode(CUgraphNode *handle, CUgraph graph_handle,
                                  const CUgraphNode *deps, size_t count, CUgraph child_handle)
{
    ENTER();
    LOCKED();
    struct emulator_graph *graph = EMULATOR_FIND(graph, EMULATOR_GRAPH, graph_handle);
    struct emulator_graph *child = EMULATOR_FIND(graph, EMULATOR_GRAPH, child_handle);
    struct emulator_node **nodes = NULL;
    if (graph == NULL || child == NULL || child == graph || handle == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = find_nodes(graph, deps, count, &nodes);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    const size_t first = graph->node_count;
    struct emulator_work work = {.kind = EMULATOR_WORK_EMPTY};
    struct emulator_node *end = NULL;
    if (append_graph(graph, child, nodes, count)) {
        end = emulator_graph_add(graph, &work, graph->nodes + first, graph->node_count - first);
    }
    free(nodes);
    if (end == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = EMULATOR_HANDLE(CUgraphNode, end);
    return CUDA_SUCCESS;
}

CUresult cuGraphClone(CUgraph *handle, CUgraph original_handle)
{
    ENTER();
    LOCKED();
    struct emulator_graph *original = EMULATOR_FIND(graph, EMULATOR_GRAPH, original_handle);
    if (handle == NULL || original == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct emulator_graph *clone = emulator_graph_make();
    if (clone == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!append_graph(clone, original, NULL, 0)) {
        emulator_object_retire(&clone->object);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = EMULATOR_HANDLE(CUgraph, clone);
    return CUDA_SUCCESS;
}
