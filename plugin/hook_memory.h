/* SPDX-License-Identifier: Apache-2.0 */
/* What redirection needs from the operating system: the address space as it is, pages near a given
 * address, writes to code that other threads may be running, and proof that no thread is between
 * two instructions. Callers serialise. */
#ifndef LAMPREY_PLUGIN_HOOK_MEMORY_H
#define LAMPREY_PLUGIN_HOOK_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "plugin/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lamprey_hook_mapping {
    uintptr_t start;
    uintptr_t end;
    int protection; /* PROT_* */
    bool shared;
    bool heap;  /* grows into the gap above */
    bool stack; /* grows into the gap below */
};

/* The mappings of this process, ascending. */
struct lamprey_hook_maps {
    struct lamprey_hook_mapping *mappings;
    size_t count;
};

/* Reads /proc/self/maps. The caller frees with lamprey_hook_maps_free. */
enum lamprey_status lamprey_hook_maps_read(struct lamprey_hook_maps *maps);
void lamprey_hook_maps_free(struct lamprey_hook_maps *maps);

/* The mapping that holds address, or NULL. */
const struct lamprey_hook_mapping *lamprey_hook_maps_find(const struct lamprey_hook_maps *maps,
                                                          uintptr_t address);

/* Maps size empty bytes (whole pages), readable and executable, so that all of them lie within
 * reach of address, as near as possible. maps must be fresh. LAMPREY_ERROR_MEMORY if there is no
 * such gap; *gaps is how many were looked at. */
enum lamprey_status lamprey_hook_maps_near(const struct lamprey_hook_maps *maps, uintptr_t address,
                                           uintptr_t reach, size_t size, uint8_t **pages,
                                           size_t *gaps);

/* How code is written. */
struct lamprey_hook_memory {
    int descriptor;   /* /proc/self/mem, or -1 */
    bool replace;     /* the kernel refuses forced writes: pages are replaced by changed copies */
    const char *call; /* the call that failed last, and why */
    int error;
};

void lamprey_hook_memory_open(struct lamprey_hook_memory *memory);
void lamprey_hook_memory_close(struct lamprey_hook_memory *memory);

/* Copies from memory that may be gone or unreadable; false then. */
bool lamprey_hook_memory_read(struct lamprey_hook_memory *memory, const void *address, void *bytes,
                              size_t size);

/* Writes to code without ever making it writable, and reads it back. An aligned 8-byte write is
 * seen by other threads as a whole. The bytes must lie in one page. */
enum lamprey_status lamprey_hook_memory_write(struct lamprey_hook_memory *memory, void *address,
                                              const void *bytes, size_t size);

/* Fills fresh pages (from lamprey_hook_maps_near), which nobody executes yet. */
enum lamprey_status lamprey_hook_memory_fill(struct lamprey_hook_memory *memory, void *pages,
                                             const void *bytes, size_t size);

/* One store to a pointer in data, which may be read-only. false: errno says why. */
bool lamprey_hook_memory_store(struct lamprey_hook_memory *memory, void **slot, void *value);

/* Makes every other thread that is on a processor execute a serialising instruction. */
void lamprey_hook_threads_synchronise(void);

/* Waits until every other thread has left whatever few instructions it was in when this was
 * called: it has run on since, or it sleeps in the kernel. LAMPREY_ERROR_TIMEOUT if one does
 * neither. Meaningful only once nothing can enter those instructions any more. */
enum lamprey_status lamprey_hook_threads_settle(unsigned timeout_ms);

#ifdef __cplusplus
}
#endif

#endif
