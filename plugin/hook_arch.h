/* SPDX-License-Identifier: Apache-2.0 */
/* What differs between processors when a function's entry is redirected. hook_text.c does the rest:
 * finding memory, the order of writes, undoing. */
#ifndef LAMPREY_PLUGIN_HOOK_ARCH_H
#define LAMPREY_PLUGIN_HOOK_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "plugin/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LAMPREY_HOOK_SITE_BYTES = 8,     /* at least what is written over a function */
    LAMPREY_HOOK_ISLAND_BYTES = 160, /* stub and trampoline of one function */
    LAMPREY_HOOK_TRAMPOLINE_AT = 64, /* offset of the trampoline in the island */
};

struct lamprey_hook_plan {
    const uint8_t *function;
    bool far;           /* by the longer jump, where this processor has two */
    size_t readable;    /* bytes of code that may be read at function */
    size_t size;        /* of the function; 0 if not known */
    size_t site;        /* where the jump goes, as an offset from function */
    size_t site_bytes;  /* and how many bytes it takes */
    size_t moved;       /* bytes from function on that the trampoline repeats */
    bool parks;         /* the jump can't be written by one store: see park */
    bool interior;      /* a thread may be between two instructions of the site */
    bool jump_interior; /* or, once it is there, of the jump */
    uint8_t before[LAMPREY_HOOK_SITE_BYTES];
    uint8_t after[LAMPREY_HOOK_SITE_BYTES];
    uint8_t park[4]; /* a jump to itself, holds callers while the rest of the site changes */
    size_t park_bytes;
};

/* How far from a function its island may lie; 0 if this processor isn't supported or has no longer
 * jump. */
uintptr_t lamprey_hook_arch_reach(bool far);

/* Bytes from one island to the next, of which the first starts a page. */
size_t lamprey_hook_arch_stride(bool far);

/* Looks at the function's first instructions and fills the plan, of which function, far, readable
 * and size are given, but for after. On a refusal reason tells the instruction. */
enum lamprey_status lamprey_hook_arch_plan(struct lamprey_hook_plan *plan, char *reason,
                                           size_t reason_size);

/* Writes stub and trampoline, as they must be at address island, into bytes
 * (LAMPREY_HOOK_ISLAND_BYTES), and completes the plan. */
enum lamprey_status lamprey_hook_arch_emit(struct lamprey_hook_plan *plan, uintptr_t island,
                                           const void *replacement, uint8_t *bytes, char *reason,
                                           size_t reason_size);

#ifdef __cplusplus
}
#endif

#endif
