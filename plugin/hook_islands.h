/* SPDX-License-Identifier: Apache-2.0 */
/* Where the islands of one installation are: stub and trampoline of each function, as near to it as
 * its jump needs. */
#ifndef LAMPREY_PLUGIN_HOOK_ISLANDS_H
#define LAMPREY_PLUGIN_HOOK_ISLANDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "plugin/hook_memory.h"
#include "plugin/hook_methods.h"
#include "plugin/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Pages that several islands share, and what will be in them. */
struct lamprey_hook_region {
    uint8_t *pages;
    uint8_t *contents;
    size_t bytes;
    size_t used;
    bool far;
};

struct lamprey_hook_islands {
    struct lamprey_hook_region *regions;
    size_t count;
    size_t room; /* islands that each region has room for */
};

/* Gives the entry, of which the plan is made, an island, by the far jump if need be. */
enum lamprey_status lamprey_hook_islands_place(struct lamprey_hook_islands *islands,
                                               struct lamprey_hook_entry *entry, char *reason,
                                               size_t reason_size);

/* Writes all islands. */
enum lamprey_status lamprey_hook_islands_fill(const struct lamprey_hook_islands *islands,
                                              struct lamprey_hook_memory *memory, char *reason,
                                              size_t reason_size);

/* Frees what was kept about the islands, and the islands too if nobody can be in one. */
void lamprey_hook_islands_close(struct lamprey_hook_islands *islands, bool unmap);

#ifdef __cplusplus
}
#endif

#endif
