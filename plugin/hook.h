/* SPDX-License-Identifier: Apache-2.0 */
/* Redirects functions of an image to replacements, all or none.
 *
 * text: the first 5 bytes of the function become a jump to a stub within 2 GB, which jumps to the replacement; the
 * overwritten whole instructions move to a trampoline, which is the way to the original. Catches every caller.
 * got:  where code pages can't be written, the slots by which loaded objects reach the function are redirected;
 * misses callers that took the address with dlsym or statically, so nothing is served over it unless asked for. */
#ifndef LAMPREY_PLUGIN_HOOK_H
#define LAMPREY_PLUGIN_HOOK_H

#include <stddef.h>

#include "plugin/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum lamprey_hook_method {
    LAMPREY_HOOK_TEXT,
    LAMPREY_HOOK_GOT,
};

struct lamprey_hook_target {
    const char *name;        /* for messages, and for GOT slots */
    void *function;          /* the function in the image */
    void *replacement;
    void **original;         /* set to the way to the original before the redirection becomes visible */
};

struct lamprey_hooks; /* what was changed */

/* Redirects all targets by one method, or none. reason (reason_size bytes, always terminated) says why not, naming the
 * function and the bytes or system call. Thread-safe against callers running in the functions: the entry is changed by
 * one atomic 8-byte store. Never leaves a page both writable and executable. */
enum lamprey_status lamprey_hooks_install(enum lamprey_hook_method method, const struct lamprey_hook_target *targets,
                                          size_t count, struct lamprey_hooks **hooks, char *reason,
                                          size_t reason_size);

/* Re-scans objects loaded since (GOT method; nothing to do for text). */
void lamprey_hooks_refresh(struct lamprey_hooks *hooks);

/* Restores every entry and frees hooks (NULL is fine). Trampolines stay mapped, since a thread may be inside one. */
void lamprey_hooks_remove(struct lamprey_hooks *hooks);

#ifdef __cplusplus
}
#endif

#endif
