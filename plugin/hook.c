/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin/hook.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/hook_methods.h"
#include "plugin/log.h"

/* One installation at a time: neighbours may share a page or a word of code. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* A child must find neither the lock taken nor callers held in an entry that is being changed. */
static void before_fork(void)
{
    pthread_mutex_lock(&mutex);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&mutex);
}

static void register_handlers(void)
{
    pthread_atfork(before_fork, after_fork, after_fork);
}

void lamprey_hooks_watch_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_handlers);
}

static enum lamprey_status check_targets(const struct lamprey_hook_target *targets, size_t count,
                                         char *reason, size_t reason_size)
{
    for (size_t i = 0; i < count; i++) {
        if (targets[i].name == NULL || targets[i].function == NULL ||
            targets[i].replacement == NULL || targets[i].original == NULL) {
            snprintf(reason, reason_size, "target %zu (%s) lacks a name or a pointer", i,
                     targets[i].name == NULL ? "?" : targets[i].name);
            return LAMPREY_ERROR_INVALID;
        }
        for (size_t j = 0; j < i; j++) {
            if (targets[i].function == targets[j].function) {
                snprintf(reason, reason_size, "%s and %s are one function", targets[j].name,
                         targets[i].name);
                return LAMPREY_ERROR_INVALID;
            }
        }
    }
    return LAMPREY_OK;
}

static void destroy(struct lamprey_hooks *hooks)
{
    if (hooks == NULL) {
        return;
    }
    for (size_t i = 0; i < hooks->count; i++) {
        free(hooks->entries[i].name);
    }
    free(hooks->entries);
    free(hooks->slots);
    free(hooks);
}

static struct lamprey_hooks *create(enum lamprey_hook_method method,
                                    const struct lamprey_hook_target *targets, size_t count)
{
    struct lamprey_hooks *hooks = calloc(1, sizeof(*hooks));
    if (hooks == NULL) {
        return NULL;
    }
    hooks->method = method;
    hooks->entries = calloc(count, sizeof(*hooks->entries));
    if (hooks->entries == NULL) {
        destroy(hooks);
        return NULL;
    }
    for (; hooks->count < count; hooks->count++) {
        struct lamprey_hook_entry *entry = &hooks->entries[hooks->count];
        const struct lamprey_hook_target *target = &targets[hooks->count];
        entry->name = strdup(target->name);
        if (entry->name == NULL) {
            destroy(hooks);
            return NULL;
        }
        entry->function = target->function;
        entry->replacement = target->replacement;
        entry->original = target->original;
    }
    return hooks;
}

enum lamprey_status lamprey_hooks_install(enum lamprey_hook_method method,
                                          const struct lamprey_hook_target *targets, size_t count,
                                          struct lamprey_hooks **hooks, char *reason,
                                          size_t reason_size)
{
    snprintf(reason, reason_size, "%s", "");
    if (targets == NULL || count == 0 || hooks == NULL) {
        snprintf(reason, reason_size, "nothing to redirect");
        return LAMPREY_ERROR_INVALID;
    }
    enum lamprey_status status = check_targets(targets, count, reason, reason_size);
    if (status != LAMPREY_OK) {
        return status;
    }
    struct lamprey_hooks *created = create(method, targets, count);
    if (created == NULL) {
        snprintf(reason, reason_size, "out of memory");
        return LAMPREY_ERROR_MEMORY;
    }
    lamprey_hooks_watch_forks();
    pthread_mutex_lock(&mutex);
    status = method == LAMPREY_HOOK_TEXT ? lamprey_hook_text_install(created, reason, reason_size)
                                         : lamprey_hook_got_install(created, reason, reason_size);
    pthread_mutex_unlock(&mutex);
    if (status != LAMPREY_OK) {
        destroy(created);
        return status;
    }
    *hooks = created;
    return LAMPREY_OK;
}

void lamprey_hooks_refresh(struct lamprey_hooks *hooks)
{
    char reason[256] = "";
    if (hooks == NULL || hooks->method != LAMPREY_HOOK_GOT) {
        return;
    }
    pthread_mutex_lock(&mutex);
    enum lamprey_status status = lamprey_hook_got_refresh(hooks, reason, sizeof(reason));
    pthread_mutex_unlock(&mutex);
    if (status != LAMPREY_OK) {
        lamprey_warn("objects loaded since are not redirected: %s", reason);
    }
}

void lamprey_hooks_remove(struct lamprey_hooks *hooks)
{
    if (hooks == NULL) {
        return;
    }
    pthread_mutex_lock(&mutex);
    if (hooks->method == LAMPREY_HOOK_TEXT) {
        lamprey_hook_text_remove(hooks);
    } else {
        lamprey_hook_got_remove(hooks);
    }
    pthread_mutex_unlock(&mutex);
    destroy(hooks);
}
