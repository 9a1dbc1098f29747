/* SPDX-License-Identifier: Apache-2.0 */
/* Staging memories of this process that set-ups of its other ranks may map. */
#ifndef LAMPREY_PLUGIN_PUBLISHED_H
#define LAMPREY_PLUGIN_PUBLISHED_H

#include "plugin/memory.h"

/* Lets others of this process map memory by id (random, from the rank's record) until removed. */
enum lamprey_status lamprey_published_add(uint64_t id, const struct lamprey_memory *memory);
void lamprey_published_remove(uint64_t id);

/* Maps the memory published under id for device; LAMPREY_ERROR_INVALID if there is none. */
enum lamprey_status lamprey_published_map(uint64_t id, const struct lamprey_device *device,
                                          struct lamprey_memory *memory);

#endif
