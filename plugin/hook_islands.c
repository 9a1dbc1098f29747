/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin/hook_islands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static bool in_reach(const struct lamprey_hook_region *region, uintptr_t address)
{
    uintptr_t reach = lamprey_hook_arch_reach(region->far);
    uintptr_t start = (uintptr_t)region->pages;
    return start + region->bytes - (address < start ? address : start) < reach &&
           address - (address < start ? address : start) < reach;
}

static enum lamprey_status add_region(struct lamprey_hook_islands *islands,
                                      const struct lamprey_hook_entry *entry, char *reason,
                                      size_t reason_size)
{
    struct lamprey_hook_maps maps;
    bool far = entry->plan.far;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t bytes = (islands->room * lamprey_hook_arch_stride(far) + page - 1) / page * page;
    struct lamprey_hook_region region = {NULL, calloc(1, bytes), bytes, 0, far};
    size_t gaps = 0;
    struct lamprey_hook_region *list =
        realloc(islands->regions, (islands->count + 1) * sizeof(*list));
    if (list != NULL) {
        islands->regions = list;
    }
    if (list == NULL || region.contents == NULL) {
        free(region.contents);
        snprintf(reason, reason_size, "%s: out of memory", entry->name);
        return LAMPREY_ERROR_MEMORY;
    }
    enum lamprey_status status = lamprey_hook_maps_read(&maps);
    if (status == LAMPREY_OK) {
        status = lamprey_hook_maps_near(&maps, (uintptr_t)entry->function,
                                        lamprey_hook_arch_reach(far), bytes, &region.pages, &gaps);
        lamprey_hook_maps_free(&maps);
    }
    if (status != LAMPREY_OK) {
        free(region.contents);
        snprintf(reason, reason_size,
                 status == LAMPREY_ERROR_UNSUPPORTED
                     ? "%s at %p: the system refuses executable memory (mmap)"
                     : "%s at %p: no free page within a jump's reach",
                 entry->name, (void *)entry->function);
        return status;
    }
    islands->regions[islands->count++] = region;
    return LAMPREY_OK;
}

static enum lamprey_status find_region(struct lamprey_hook_islands *islands,
                                       const struct lamprey_hook_entry *entry,
                                       struct lamprey_hook_region **found, char *reason,
                                       size_t reason_size)
{
    for (size_t i = 0; i < islands->count; i++) {
        struct lamprey_hook_region *region = &islands->regions[i];
        if (region->far == entry->plan.far &&
            region->used + lamprey_hook_arch_stride(region->far) <= region->bytes &&
            in_reach(region, (uintptr_t)entry->function)) {
            *found = region;
            return LAMPREY_OK;
        }
    }
    enum lamprey_status status = add_region(islands, entry, reason, reason_size);
    if (status == LAMPREY_OK) {
        *found = &islands->regions[islands->count - 1];
    }
    return status;
}

/* Where there is no room as near as the short jump needs. */
static enum lamprey_status find_far_region(struct lamprey_hook_islands *islands,
                                           struct lamprey_hook_entry *entry,
                                           struct lamprey_hook_region **found, char *reason,
                                           size_t reason_size)
{
    char why[160];
    entry->plan.far = true;
    if (lamprey_hook_arch_plan(&entry->plan, why, sizeof(why)) != LAMPREY_OK) {
        snprintf(reason, reason_size,
                 "%s at %p: no free page within a jump's reach, and a far jump: %s", entry->name,
                 (void *)entry->function, why);
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    return find_region(islands, entry, found, reason, reason_size);
}

enum lamprey_status lamprey_hook_islands_place(struct lamprey_hook_islands *islands,
                                               struct lamprey_hook_entry *entry, char *reason,
                                               size_t reason_size)
{
    char why[160];
    struct lamprey_hook_region *region = NULL;
    enum lamprey_status status = find_region(islands, entry, &region, reason, reason_size);
    if (status == LAMPREY_ERROR_MEMORY && lamprey_hook_arch_reach(true) != 0) {
        status = find_far_region(islands, entry, &region, reason, reason_size);
    }
    if (status != LAMPREY_OK) {
        return status;
    }
    uint8_t *island = region->pages + region->used;
    status = lamprey_hook_arch_emit(&entry->plan, (uintptr_t)island, entry->replacement,
                                    region->contents + region->used, why, sizeof(why));
    if (status != LAMPREY_OK) {
        snprintf(reason, reason_size, "%s at %p: %s", entry->name, (void *)entry->function, why);
        return status;
    }
    region->used += lamprey_hook_arch_stride(region->far);
    entry->trampoline = island + LAMPREY_HOOK_TRAMPOLINE_AT;
    return LAMPREY_OK;
}

enum lamprey_status lamprey_hook_islands_fill(const struct lamprey_hook_islands *islands,
                                              struct lamprey_hook_memory *memory, char *reason,
                                              size_t reason_size)
{
    enum lamprey_status status = LAMPREY_OK;
    for (size_t i = 0; i < islands->count && status == LAMPREY_OK; i++) {
        const struct lamprey_hook_region *region = &islands->regions[i];
        status = lamprey_hook_memory_fill(memory, region->pages, region->contents, region->bytes);
        if (status != LAMPREY_OK) {
            snprintf(reason, reason_size, "stubs can't be written: %s (%s)", memory->call,
                     strerror(memory->error));
        }
    }
    return status;
}

void lamprey_hook_islands_close(struct lamprey_hook_islands *islands, bool unmap)
{
    for (size_t i = 0; i < islands->count; i++) {
        if (unmap) {
            munmap(islands->regions[i].pages, islands->regions[i].bytes);
        }
        free(islands->regions[i].contents);
    }
    free(islands->regions);
}
