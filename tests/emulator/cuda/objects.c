/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/emulator/cuda/emulator.h"

#define BUCKETS 4096

static struct emulator_object *buckets[BUCKETS];
/* Handles start where no pointer can be, so that one that is dereferenced by mistake faults. */
static uint64_t next_id = UINT64_C(0x00e0000000001000);

static struct emulator_object **bucket_of(uint64_t id)
{
    return &buckets[(id >> 4) % BUCKETS];
}

void emulator_object_publish(struct emulator_object *object, enum emulator_kind kind,
                             void (*release)(struct emulator_object *object))
{
    object->kind = kind;
    object->id = next_id;
    object->references = 1;
    object->release = release;
    next_id += 16;
    struct emulator_object **bucket = bucket_of(object->id);
    object->next = *bucket;
    *bucket = object;
}

void emulator_object_retire(struct emulator_object *object)
{
    struct emulator_object **link = bucket_of(object->id);
    while (*link != NULL && *link != object) {
        link = &(*link)->next;
    }
    if (*link == NULL) {
        return;
    }
    *link = object->next;
    object->next = NULL;
    emulator_object_drop(object);
}

void emulator_object_hold(struct emulator_object *object)
{
    object->references++;
}

void emulator_object_drop(struct emulator_object *object)
{
    if (--object->references == 0) {
        object->release(object);
    }
}

struct emulator_object *emulator_object_find(uint64_t handle, enum emulator_kind kind)
{
    for (struct emulator_object *object = *bucket_of(handle); object != NULL;
         object = object->next) {
        if (object->id == handle) {
            return object->kind == kind ? object : NULL;
        }
    }
    return NULL;
}

void emulator_object_publish_again(struct emulator_object *object)
{
    int references = object->references;
    emulator_object_publish(object, object->kind, object->release);
    object->references += references;
}
