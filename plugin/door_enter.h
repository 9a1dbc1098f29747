/* SPDX-License-Identifier: Apache-2.0 */
/* What all plugin doors do when NCCL initialises them. */
#ifndef LAMPREY_PLUGIN_DOOR_ENTER_H
#define LAMPREY_PLUGIN_DOOR_ENTER_H

#include "plugin/log.h"

#define LAMPREY_DOOR_EXPORT __attribute__((visibility("default")))

/* logger: NCCL's, or NULL where the table has none; then address, a return address inside NCCL,
 * tells which NCCL it is. suffix: NCCL's version suffix, or NULL where the table has none. door is
 * for the log. Thread-safe. */
void lamprey_door_enter(lamprey_nccl_logger logger, const void *address, const char *suffix,
                        const char *door);

#endif
