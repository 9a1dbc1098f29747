/* SPDX-License-Identifier: Apache-2.0 */
/* The way in for the default-named doors (default_door.c), which are objects of their own. */
#ifndef LAMPREY_PLUGIN_DOOR_ATTACH_H
#define LAMPREY_PLUGIN_DOOR_ATTACH_H

#ifdef __cplusplus
extern "C" {
#endif

#define LAMPREY_ATTACH_LOADED_SYMBOL "lampreyAttachLoaded"

/* Exported. Attaches to every NCCL of the process; returns how many are attached. door is for the
 * log. Idempotent and thread-safe. */
int lampreyAttachLoaded(const char *door);

typedef int (*lamprey_attach_loaded_function)(const char *door);

#ifdef __cplusplus
}
#endif

#endif
