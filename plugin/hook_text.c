/* SPDX-License-Identifier: Apache-2.0 */
/* Redirection by a jump in the function. In order: look at all functions; write all islands; make
 * the sites that need it hold their callers; wait until no thread is inside a site; write the rest
 * of each; let the callers go. Each step covers all functions, so there is one wait. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "plugin/hook_islands.h"
#include "plugin/hook_memory.h"
#include "plugin/hook_methods.h"
#include "plugin/image.h"
#include "plugin/log.h"

enum {
    WORD_BYTES = 8,
    SETTLE_MS = 2000,
};

static size_t symbol_size(const struct lamprey_hook_entry *entry)
{
    struct lamprey_image image;
    size_t size = 0;
    if (lamprey_image_find(entry->function, &image) != LAMPREY_OK ||
        lamprey_image_symbol(&image, entry->name, &size) != (void *)entry->function) {
        return 0;
    }
    return size;
}

static bool is_code(const struct lamprey_hook_mapping *mapping)
{
    return mapping != NULL && (mapping->protection & PROT_EXEC) != 0 &&
           (mapping->protection & PROT_READ) != 0 && !mapping->shared;
}

/* Where the code that address is in ends. A page that was replaced is a mapping of its own. */
static uintptr_t end_of_code(const struct lamprey_hook_maps *maps, uintptr_t address)
{
    const struct lamprey_hook_mapping *mapping = NULL;
    while (is_code(mapping = lamprey_hook_maps_find(maps, address))) {
        address = mapping->end;
    }
    return address;
}

static enum lamprey_status plan_entry(const struct lamprey_hook_maps *maps,
                                      struct lamprey_hook_entry *entry, char *reason,
                                      size_t reason_size)
{
    char why[160];
    uintptr_t end = end_of_code(maps, (uintptr_t)entry->function);
    if (end == (uintptr_t)entry->function) {
        snprintf(reason, reason_size, "%s at %p: not in private readable code", entry->name,
                 (void *)entry->function);
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    entry->plan.function = entry->function;
    entry->plan.readable = end - (uintptr_t)entry->function;
    entry->plan.size = symbol_size(entry);
    enum lamprey_status status = lamprey_hook_arch_plan(&entry->plan, why, sizeof(why));
    if (status != LAMPREY_OK) {
        snprintf(reason, reason_size, "%s at %p: %s", entry->name, (void *)entry->function, why);
    }
    return status;
}

/* Changes the first bytes of a site by one store of the aligned word that holds them. */
static enum lamprey_status write_start(struct lamprey_hook_memory *memory, uint8_t *site,
                                       const uint8_t *bytes, size_t size)
{
    uint8_t word[WORD_BYTES];
    size_t offset = (uintptr_t)site % WORD_BYTES;
    memcpy(word, site - offset, WORD_BYTES);
    memcpy(word + offset, bytes, size);
    return lamprey_hook_memory_write(memory, site - offset, word, WORD_BYTES);
}

/* The bytes behind those that park. They may go on in the next page; those of a page that are right
 * are left alone, so that undoing a failure needs no write that failed before. */
static enum lamprey_status write_tail(struct lamprey_hook_memory *memory,
                                      const struct lamprey_hook_entry *entry, const uint8_t *bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    enum lamprey_status status = LAMPREY_OK;
    uint8_t *site = entry->function + entry->plan.site;
    size_t next = 0;
    for (size_t at = entry->plan.park_bytes; at < entry->plan.site_bytes && status == LAMPREY_OK;
         at = next) {
        size_t page_end = at + page - (uintptr_t)(site + at) % page;
        next = page_end < entry->plan.site_bytes ? page_end : entry->plan.site_bytes;
        if (memcmp(site + at, bytes + at, next - at) != 0) {
            status = lamprey_hook_memory_write(memory, site + at, bytes + at, next - at);
        }
    }
    return status;
}

static enum lamprey_status park(struct lamprey_hook_memory *memory,
                                struct lamprey_hook_entry *entry)
{
    if (!entry->plan.parks) {
        return LAMPREY_OK;
    }
    enum lamprey_status status = write_start(memory, entry->function + entry->plan.site,
                                             entry->plan.park, entry->plan.park_bytes);
    entry->state = status == LAMPREY_OK ? LAMPREY_HOOK_PARKED : entry->state;
    return status;
}

/* Lets callers in again, to bytes. */
static enum lamprey_status unpark(struct lamprey_hook_memory *memory,
                                  const struct lamprey_hook_entry *entry, const uint8_t *bytes)
{
    return write_start(memory, entry->function + entry->plan.site, bytes,
                       entry->plan.parks ? entry->plan.park_bytes : entry->plan.site_bytes);
}

static const char *error_text(const struct lamprey_hook_memory *memory)
{
    return memory->error == 0 ? "no error code" : strerror(memory->error);
}

/* Waits until no thread is between two instructions of a site that holds its callers. */
static enum lamprey_status settle(struct lamprey_hook_memory *memory)
{
    enum lamprey_status status = lamprey_hook_threads_settle(SETTLE_MS);
    if (status != LAMPREY_OK) {
        memory->call = "waiting for a thread that neither runs nor sleeps";
        memory->error = 0;
    }
    return status;
}

static void say_not_restored(const struct lamprey_hook_entry *entry,
                             const struct lamprey_hook_memory *memory)
{
    lamprey_error("%s can't be restored: %s (%s)", entry->name, memory->call, error_text(memory));
}

/* Holds the callers of complete jumps again, until no thread is inside one. Where one stays, so do
 * the jumps. */
static void empty_jumps(struct lamprey_hooks *hooks, struct lamprey_hook_memory *memory)
{
    bool interior = false;
    for (size_t i = 0; i < hooks->count; i++) {
        struct lamprey_hook_entry *entry = &hooks->entries[i];
        if (entry->state == LAMPREY_HOOK_DONE && entry->plan.parks) {
            if (park(memory, entry) != LAMPREY_OK) {
                say_not_restored(entry, memory);
                continue;
            }
            entry->state = LAMPREY_HOOK_EMPTYING;
            interior = interior || entry->plan.jump_interior;
        }
    }
    lamprey_hook_threads_synchronise();
    bool empty = !interior || settle(memory) == LAMPREY_OK;
    for (size_t i = 0; i < hooks->count; i++) {
        struct lamprey_hook_entry *entry = &hooks->entries[i];
        if (entry->state == LAMPREY_HOOK_EMPTYING && empty) {
            entry->state = LAMPREY_HOOK_TAILED;
        } else if (entry->state == LAMPREY_HOOK_EMPTYING) {
            say_not_restored(entry, memory);
            if (unpark(memory, entry, entry->plan.after) == LAMPREY_OK) {
                entry->state = LAMPREY_HOOK_DONE;
            }
        }
    }
}

/* Back to the functions' own bytes, from any state. */
static void restore_all(struct lamprey_hooks *hooks, struct lamprey_hook_memory *memory)
{
    empty_jumps(hooks, memory);
    for (size_t i = 0; i < hooks->count; i++) {
        struct lamprey_hook_entry *entry = &hooks->entries[i];
        if (entry->state == LAMPREY_HOOK_TAILED) {
            if (write_tail(memory, entry, entry->plan.before) == LAMPREY_OK) {
                entry->state = LAMPREY_HOOK_PARKED;
            } else {
                say_not_restored(entry, memory);
            }
        }
    }
    lamprey_hook_threads_synchronise();
    for (size_t i = 0; i < hooks->count; i++) {
        struct lamprey_hook_entry *entry = &hooks->entries[i];
        if (entry->state == LAMPREY_HOOK_PARKED ||
            (entry->state == LAMPREY_HOOK_DONE && !entry->plan.parks)) {
            if (unpark(memory, entry, entry->plan.before) == LAMPREY_OK) {
                entry->state = LAMPREY_HOOK_UNTOUCHED;
            } else {
                say_not_restored(entry, memory);
            }
        }
    }
}

/* *at is the entry that failed. */
static enum lamprey_status write_all(struct lamprey_hooks *hooks,
                                     struct lamprey_hook_memory *memory, size_t *at)
{
    enum lamprey_status status = LAMPREY_OK;
    bool interior = false;
    for (size_t i = 0; i < hooks->count && status == LAMPREY_OK; i++) {
        *at = i;
        status = park(memory, &hooks->entries[i]);
        interior = interior || hooks->entries[i].plan.interior;
    }
    lamprey_hook_threads_synchronise();
    if (status == LAMPREY_OK && interior) {
        status = settle(memory);
    }
    for (size_t i = 0; i < hooks->count && status == LAMPREY_OK; i++) {
        struct lamprey_hook_entry *entry = &hooks->entries[i];
        *at = i;
        if (entry->plan.parks) {
            entry->state = LAMPREY_HOOK_TAILED;
            status = write_tail(memory, entry, entry->plan.after);
        }
    }
    lamprey_hook_threads_synchronise();
    for (size_t i = 0; i < hooks->count && status == LAMPREY_OK; i++) {
        *at = i;
        status = unpark(memory, &hooks->entries[i], hooks->entries[i].plan.after);
        if (status == LAMPREY_OK) {
            hooks->entries[i].state = LAMPREY_HOOK_DONE;
        }
    }
    return status;
}

/* A signal handler on this thread that called a function while its callers are held would wait for
 * ever. */
static void block_signals(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, before);
}

static enum lamprey_status write_or_undo(struct lamprey_hooks *hooks,
                                         struct lamprey_hook_memory *memory, char *reason,
                                         size_t reason_size)
{
    sigset_t before;
    size_t at = 0;
    block_signals(&before);
    enum lamprey_status status = write_all(hooks, memory, &at);
    if (status != LAMPREY_OK) {
        snprintf(reason, reason_size, "%s at %p can't be changed: %s (%s)", hooks->entries[at].name,
                 (void *)hooks->entries[at].function, memory->call, error_text(memory));
        restore_all(hooks, memory);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}

static enum lamprey_status prepare(struct lamprey_hooks *hooks,
                                   struct lamprey_hook_islands *islands,
                                   struct lamprey_hook_memory *memory, char *reason,
                                   size_t reason_size)
{
    struct lamprey_hook_maps maps;
    enum lamprey_status status = lamprey_hook_maps_read(&maps);
    if (status != LAMPREY_OK) {
        snprintf(reason, reason_size, "/proc/self/maps can't be read");
        return status;
    }
    for (size_t i = 0; i < hooks->count && status == LAMPREY_OK; i++) {
        status = plan_entry(&maps, &hooks->entries[i], reason, reason_size);
    }
    lamprey_hook_maps_free(&maps);
    for (size_t i = 0; i < hooks->count && status == LAMPREY_OK; i++) {
        status = lamprey_hook_islands_place(islands, &hooks->entries[i], reason, reason_size);
    }
    if (status == LAMPREY_OK) {
        status = lamprey_hook_islands_fill(islands, memory, reason, reason_size);
    }
    return status;
}

enum lamprey_status lamprey_hook_text_install(struct lamprey_hooks *hooks, char *reason,
                                              size_t reason_size)
{
    struct lamprey_hook_islands islands = {NULL, 0, hooks->count};
    struct lamprey_hook_memory memory;
    if (lamprey_hook_arch_reach(false) == 0) {
        snprintf(reason, reason_size, "code of this processor can't be changed yet");
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    lamprey_hook_memory_open(&memory);
    enum lamprey_status status = prepare(hooks, &islands, &memory, reason, reason_size);
    if (status != LAMPREY_OK) {
        lamprey_hook_islands_close(&islands, true);
    } else {
        /* Not before the trampolines are written: a replacement may still be running from an
         * installation before this one. */
        for (size_t i = 0; i < hooks->count; i++) {
            __atomic_store_n(hooks->entries[i].original, hooks->entries[i].trampoline,
                             __ATOMIC_RELEASE);
        }
        /* From here on a thread may be in an island or about to use an original, so both stay,
         * whatever happens. */
        status = write_or_undo(hooks, &memory, reason, reason_size);
        lamprey_hook_islands_close(&islands, false);
    }
    lamprey_hook_memory_close(&memory);
    return status;
}

void lamprey_hook_text_remove(struct lamprey_hooks *hooks)
{
    struct lamprey_hook_memory memory;
    sigset_t before;
    lamprey_hook_memory_open(&memory);
    for (size_t i = 0; i < hooks->count; i++) {
        struct lamprey_hook_entry *entry = &hooks->entries[i];
        uint8_t now[LAMPREY_HOOK_SITE_BYTES];
        if (!lamprey_hook_memory_read(&memory, entry->function + entry->plan.site, now,
                                      entry->plan.site_bytes)) {
            lamprey_info("%s is no longer mapped, so there is nothing to restore", entry->name);
            entry->state = LAMPREY_HOOK_UNTOUCHED;
        } else if (memcmp(now, entry->plan.after, entry->plan.site_bytes) != 0) {
            lamprey_warn("%s was changed by someone else after us and is left as it is",
                         entry->name);
            entry->state = LAMPREY_HOOK_UNTOUCHED;
        }
    }
    block_signals(&before);
    restore_all(hooks, &memory);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    lamprey_hook_memory_close(&memory);
}
