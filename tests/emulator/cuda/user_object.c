/* SPDX-License-Identifier: Apache-2.0 */
/* User objects: a destructor that runs when neither the program nor a graph refers to the object
 * any more. */
#include "tests/emulator/cuda/emulator.h"

#include <stdlib.h>

static void release_user_object(struct emulator_object *object)
{
    struct emulator_user_object *user = (struct emulator_user_object *)object;
    emulator_defer(user->destroy, user->pointer);
    free(user);
}

void emulator_user_object_release(struct emulator_user_object *object, unsigned long long count)
{
    object->count -= count;
    if (object->count == 0) {
        emulator_object_retire(&object->object);
    }
}

bool emulator_retain(struct emulator_retained **list, size_t *list_count,
                     struct emulator_user_object *object, unsigned long long count)
{
    for (size_t i = 0; i < *list_count; i++) {
        if ((*list)[i].object == object) {
            (*list)[i].count += count;
            return true;
        }
    }
    struct emulator_retained item = {object, count};
    return emulator_append(list, list_count, sizeof(item), &item);
}

CUresult cuUserObjectCreate(CUuserObject *handle, void *pointer, CUhostFn destroy,
                            unsigned int count, unsigned int flags)
{
    ENTER();
    if (handle == NULL || destroy == NULL || count == 0 || count > INT32_MAX ||
        flags != CU_USER_OBJECT_NO_DESTRUCTOR_SYNC) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    struct emulator_user_object *object = calloc(1, sizeof(*object));
    if (object == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    object->pointer = pointer;
    object->destroy = destroy;
    object->count = count;
    emulator_object_publish(&object->object, EMULATOR_USER_OBJECT, release_user_object);
    *handle = EMULATOR_HANDLE(CUuserObject, object);
    return CUDA_SUCCESS;
}

CUresult cuUserObjectRetain(CUuserObject handle, unsigned int count)
{
    ENTER();
    LOCKED();
    struct emulator_user_object *object = EMULATOR_FIND(user_object, EMULATOR_USER_OBJECT, handle);
    if (object == NULL || count == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    object->count += count;
    return CUDA_SUCCESS;
}

CUresult cuUserObjectRelease(CUuserObject handle, unsigned int count)
{
    ENTER();
    LOCKED();
    struct emulator_user_object *object = EMULATOR_FIND(user_object, EMULATOR_USER_OBJECT, handle);
    if (object == NULL || count == 0 || count > object->count) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    emulator_user_object_release(object, count);
    return CUDA_SUCCESS;
}

CUresult cuGraphRetainUserObject(CUgraph graph_handle, CUuserObject handle, unsigned int count,
                                 unsigned int flags)
{
    ENTER();
    LOCKED();
    struct emulator_graph *graph = EMULATOR_FIND(graph, EMULATOR_GRAPH, graph_handle);
    struct emulator_user_object *object = EMULATOR_FIND(user_object, EMULATOR_USER_OBJECT, handle);
    if (graph == NULL || object == NULL || count == 0 ||
        (flags & ~(unsigned)CU_GRAPH_USER_OBJECT_MOVE) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_retain(&graph->retained, &graph->retained_count, object, count)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if ((flags & CU_GRAPH_USER_OBJECT_MOVE) == 0) {
        object->count += count;
    }
    return CUDA_SUCCESS;
}

CUresult cuGraphReleaseUserObject(CUgraph graph_handle, CUuserObject handle, unsigned int count)
{
    ENTER();
    LOCKED();
    struct emulator_graph *graph = EMULATOR_FIND(graph, EMULATOR_GRAPH, graph_handle);
    struct emulator_user_object *object = EMULATOR_FIND(user_object, EMULATOR_USER_OBJECT, handle);
    if (graph == NULL || object == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < graph->retained_count; i++) {
        struct emulator_retained *retained = &graph->retained[i];
        if (retained->object != object || retained->count < count) {
            continue;
        }
        retained->count -= count;
        if (retained->count == 0) {
            *retained = graph->retained[--graph->retained_count];
        }
        emulator_user_object_release(object, count);
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
}
