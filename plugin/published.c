/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/published.h"

#include <pthread.h>
#include <stdlib.h>

struct entry {
    struct entry *next;
    uint64_t id;
    const struct lamprey_memory *memory;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct entry *entries;

enum lamprey_status lamprey_published_add(uint64_t id, const struct lamprey_memory *memory)
{
    struct entry *entry = malloc(sizeof *entry);
    if (!entry) {
        return LAMPREY_ERROR_MEMORY;
    }
    pthread_mutex_lock(&mutex);
    *entry = (struct entry){.next = entries, .id = id, .memory = memory};
    entries = entry;
    pthread_mutex_unlock(&mutex);
    return LAMPREY_OK;
}

static struct entry **find(uint64_t id)
{
    struct entry **link = &entries;
    while (*link && (*link)->id != id) {
        link = &(*link)->next;
    }
    return link;
}

void lamprey_published_remove(uint64_t id)
{
    pthread_mutex_lock(&mutex);
    struct entry **link = find(id);
    struct entry *entry = *link;
    if (entry) {
        *link = entry->next;
    }
    pthread_mutex_unlock(&mutex);
    free(entry);
}

enum lamprey_status lamprey_published_map(uint64_t id, const struct lamprey_device *device,
                                          struct lamprey_memory *memory)
{
    pthread_mutex_lock(&mutex);
    struct entry *entry = *find(id);
    enum lamprey_status status =
        entry ? lamprey_memory_alias(device, entry->memory, memory) : LAMPREY_ERROR_INVALID;
    pthread_mutex_unlock(&mutex);
    return status;
}
