/* SPDX-License-Identifier: Apache-2.0 */
/* The two ways of redirection behind plugin/hook.h. Callers hold hook.c's mutex. */
#ifndef LAMPREY_PLUGIN_HOOK_METHODS_H
#define LAMPREY_PLUGIN_HOOK_METHODS_H

#include <stddef.h>
#include <stdint.h>

#include "plugin/hook.h"
#include "plugin/hook_arch.h"

#ifdef __cplusplus
extern "C" {
#endif

enum lamprey_hook_state {
    LAMPREY_HOOK_UNTOUCHED,
    LAMPREY_HOOK_PARKED, /* the first bytes hold callers, the rest is the function's */
    LAMPREY_HOOK_TAILED, /* the first bytes hold callers, the rest is ours */
    LAMPREY_HOOK_DONE,
    LAMPREY_HOOK_EMPTYING, /* after that, the first bytes hold callers again */
};

struct lamprey_hook_entry {
    char *name;
    uint8_t *function;
    void *replacement;
    void **original;
    void *trampoline; /* text: what *original becomes */
    struct lamprey_hook_plan plan;
    enum lamprey_hook_state state;
};

struct lamprey_hook_slot {
    void **slot;
    size_t entry;
};

struct lamprey_hooks {
    enum lamprey_hook_method method;
    struct lamprey_hook_entry *entries;
    size_t count;
    struct lamprey_hook_slot *slots; /* GOT: what was redirected */
    size_t slot_count;
    size_t slot_capacity;
};

/* Each installs for all entries or leaves everything as it was and fills reason. */
enum lamprey_status lamprey_hook_text_install(struct lamprey_hooks *hooks, char *reason,
                                              size_t reason_size);
void lamprey_hook_text_remove(struct lamprey_hooks *hooks);

enum lamprey_status lamprey_hook_got_install(struct lamprey_hooks *hooks, char *reason,
                                             size_t reason_size);
/* Redirects what has appeared since. */
enum lamprey_status lamprey_hook_got_refresh(struct lamprey_hooks *hooks, char *reason,
                                             size_t reason_size);
void lamprey_hook_got_remove(struct lamprey_hooks *hooks);

#ifdef __cplusplus
}
#endif

#endif
