/* SPDX-License-Identifier: Apache-2.0 */
/* Redirects functions of an image to replacements, all or none.
 *
 * text: bytes at or just behind the function's entry become a jump to a stub, which jumps to the
 * replacement; the overwritten whole instructions move to a trampoline, which is the way to the
 * original. Catches every caller. The stub lies within 2 GB on x86-64; on aarch64 within 128 MB or,
 * by a longer jump, 4 GB.
 *
 * got: where code pages can't be written, the slots by which loaded objects reach the function are
 * redirected; misses callers that took the address with dlsym or statically, so nothing is served
 * over it unless asked for. */
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
    const char *name; /* as the image exports it: for its size, GOT slots and messages */
    void *function;   /* the function in the image */
    void *replacement;
    void **original; /* set to the way to the original before the redirection becomes visible */
};

struct lamprey_hooks; /* what was changed */

/* Redirects all targets by one method, or none. reason (reason_size bytes, always terminated) says
 * why not, naming the function and the bytes or system call.
 *
 * Safe against threads that run in the functions. What becomes visible does so by one store; where
 * the jump covers or is several instructions, callers are first held at the entry for the few
 * milliseconds until no thread can be between two of them. (Not covered: a signal handler that
 * interrupted such an instruction and runs for seconds.) No page is ever writable and executable.
 * *original is stored atomically; once a jump has been seen it is never taken back. */
enum lamprey_status lamprey_hooks_install(enum lamprey_hook_method method,
                                          const struct lamprey_hook_target *targets, size_t count,
                                          struct lamprey_hooks **hooks, char *reason,
                                          size_t reason_size);

/* Holds forks off while functions are being changed; install does it too. A caller with a lock of
 * its own around these functions registers its handlers after this call, so that its lock is taken
 * first. */
void lamprey_hooks_watch_forks(void);

/* Re-scans objects loaded since (GOT method; nothing to do for text). */
void lamprey_hooks_refresh(struct lamprey_hooks *hooks);

/* Restores every entry that is still as we left it, says so where someone has patched on top, and
 * frees hooks (NULL is fine). Trampolines stay mapped, since a thread may be inside one. */
void lamprey_hooks_remove(struct lamprey_hooks *hooks);

#ifdef __cplusplus
}
#endif

#endif
