/* SPDX-License-Identifier: Apache-2.0 */
/* A loaded ELF object that holds NCCL: libnccl.so.2, or whatever NCCL was linked into statically.
 */
#ifndef LAMPREY_PLUGIN_IMAGE_H
#define LAMPREY_PLUGIN_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "plugin/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lamprey_image {
    uintptr_t base;     /* load bias: symbol value + base = address */
    const void *symtab; /* the object's own dynamic symbols, strings and hash tables */
    const char *strtab;
    const uint32_t *gnu_hash;
    const uint32_t *sysv_hash;
    void *
        handle; /* keeps the object mapped (dlopen NOLOAD|NODELETE); NULL if it can't be reopened */
    char path[512]; /* as the loader has it; the main program's is what /proc/self/exe points to */
};

/* Finds the object that contains address and holds it for the life of the process.
 * LAMPREY_ERROR_INVALID when no loaded object contains it. */
enum lamprey_status lamprey_image_of(const void *address, struct lamprey_image *image);

/* The address of a function that this object itself defines; NULL if it doesn't (imports don't
 * count, and other objects are never searched, so a preloaded namesake can't be found by mistake).
 */
void *lamprey_image_function(const struct lamprey_image *image, const char *name);

/* The same, and the function's size from the symbol table (0 if the table has none). */
void *lamprey_image_symbol(const struct lamprey_image *image, const char *name, size_t *size);

/* As lamprey_image_of, but holds nothing: the object may go away at any time (handle is NULL). */
enum lamprey_status lamprey_image_find(const void *address, struct lamprey_image *image);

/* Calls visit for every loaded object that itself defines ncclAllReduce and ncclGetVersion, except
 * the one that holds this library. Stops when visit returns non-zero. */
void lamprey_image_each_nccl(int (*visit)(const struct lamprey_image *image, void *context),
                             void *context);

#ifdef __cplusplus
}
#endif

#endif
