/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/attach.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "plugin/config.h"
#include "plugin/device.h"
#include "plugin/door_attach.h"
#include "plugin/first_copy.h"
#include "plugin/lamprey.h"
#include "plugin/log.h"
#include "plugin/nccl.h"

#define OLDEST_NCCL 22105 /* 2.21.5 */

struct lamprey_nccl lamprey_nccls[LAMPREY_MAX_IMAGES];

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int image_count;

/* Images that we have looked at and stay out of, so that each is reported once. */
static uintptr_t refused[LAMPREY_MAX_IMAGES * 2];
static int refused_count;

struct function {
    const char *name;
    size_t original; /* offset in struct lamprey_nccl */
};

static const struct function redirected[] = {
#define LAMPREY_ROW(name, parameters, arguments)                                                   \
    {"nccl" #name, offsetof(struct lamprey_nccl, name)},
    LAMPREY_NCCL_INTERCEPTED(LAMPREY_ROW) LAMPREY_NCCL_ORDERED(LAMPREY_ROW)
#undef LAMPREY_ROW
};
#define REDIRECTED (sizeof redirected / sizeof redirected[0])

static const struct function called[] = {
#define LAMPREY_ROW(name, parameters) {"nccl" #name, offsetof(struct lamprey_nccl, name)},
    LAMPREY_NCCL_CALLED(LAMPREY_ROW)
#undef LAMPREY_ROW
};

/* Without these nothing can be served; releases differ in the others. */
static const char *const needed[] = {"ncclAllReduce", "ncclGroupStart",  "ncclGroupEnd",
                                     "ncclAllGather", "ncclCommDestroy", "ncclCommAbort"};

_Static_assert(REDIRECTED <= 64, "lamprey_replacements has room");

static void **original_of(struct lamprey_nccl *nccl, const struct function *function)
{
    return (void **)((char *)nccl + function->original);
}

static bool resolve_called(struct lamprey_nccl *nccl, char *reason, size_t size)
{
    for (size_t i = 0; i < sizeof called / sizeof called[0]; i++) {
        void *function = lamprey_image_function(&nccl->image, called[i].name);
        if (!function) {
            snprintf(reason, size, "it has no %s", called[i].name);
            return false;
        }
        *original_of(nccl, &called[i]) = function;
    }
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        if (!lamprey_image_function(&nccl->image, needed[i])) {
            snprintf(reason, size, "it has no %s", needed[i]);
            return false;
        }
    }
    if (nccl->GetVersion(&nccl->version) != ncclSuccess || nccl->version < OLDEST_NCCL) {
        snprintf(reason, size, "version %d is older than 2.21.5", nccl->version);
        return false;
    }
    return true;
}

/* A thread that gets no processor for a while is no reason to fall back on this rank alone. */
static enum lamprey_status install_text(const struct lamprey_hook_target *targets, size_t count,
                                        struct lamprey_hooks **hooks, char *reason, size_t size)
{
    enum lamprey_status status = LAMPREY_ERROR_TIMEOUT;
    for (int attempt = 0; attempt < 5 && status == LAMPREY_ERROR_TIMEOUT; attempt++) {
        status = lamprey_hooks_install(LAMPREY_HOOK_TEXT, targets, count, hooks, reason, size);
    }
    return status;
}

/* NULL: not possible, for reason. */
static struct lamprey_hooks *install(struct lamprey_nccl *nccl,
                                     const struct lamprey_hook_target *targets, size_t count,
                                     char *reason, size_t size)
{
    const int64_t choice = lamprey_config_get()->hook;
    struct lamprey_hooks *hooks = NULL;
    if (choice != LAMPREY_HOOK_CHOICE_GOT &&
        install_text(targets, count, &hooks, reason, size) == LAMPREY_OK) {
        return hooks;
    }
    if (choice == LAMPREY_HOOK_CHOICE_TEXT) {
        return NULL;
    }
    if (choice == LAMPREY_HOOK_CHOICE_AUTO) {
        lamprey_warn(
            "NCCL's code can't be redirected (%s): trying its callers' slots, over which "
            "nothing is served; where this happens on some ranks only, set "
            "LAMPREY_DISABLE=1 on all, since a caller that the slots miss doesn't tell its "
            "peers",
            reason);
    }
    nccl->over_got = choice == LAMPREY_HOOK_CHOICE_AUTO;
    if (lamprey_hooks_install(LAMPREY_HOOK_GOT, targets, count, &hooks, reason, size) !=
        LAMPREY_OK) {
        return NULL;
    }
    return hooks;
}

static bool redirect(struct lamprey_nccl *nccl, char *reason, size_t size)
{
    struct lamprey_hook_target targets[REDIRECTED];
    size_t count = 0;
    for (size_t i = 0; i < REDIRECTED; i++) {
        void *function = lamprey_image_function(&nccl->image, redirected[i].name);
        if (function) {
            targets[count++] = (struct lamprey_hook_target){redirected[i].name, function,
                                                            lamprey_replacements[nccl->index][i],
                                                            original_of(nccl, &redirected[i])};
        }
    }
    struct lamprey_hooks *hooks = install(nccl, targets, count, reason, size);
    atomic_store(&nccl->hooks, hooks);
    return hooks != NULL;
}

static void before_fork(void)
{
    pthread_mutex_lock(&mutex);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&mutex);
}

/* A child can't use the CUDA of its parent; one whose parent had none yet is as good as its parent.
 */
static void after_fork_in_child(void)
{
    pthread_mutex_unlock(&mutex);
    if (lamprey_device_any()) {
        atomic_store(&lamprey_forked, true);
    }
}

static bool seen(const struct lamprey_image *image)
{
    for (int i = 0; i < image_count; i++) {
        if (lamprey_nccls[i].image.base == image->base) {
            return true;
        }
    }
    for (int i = 0; i < refused_count; i++) {
        if (refused[i] == image->base) {
            return true;
        }
    }
    return false;
}

static bool attach_locked(const struct lamprey_image *image, const char *door, char *reason,
                          size_t size)
{
    if (image_count == LAMPREY_MAX_IMAGES) {
        snprintf(reason, size, "%d other NCCLs are redirected already", image_count);
        return false;
    }
    struct lamprey_nccl *nccl = &lamprey_nccls[image_count];
    memset(nccl, 0, sizeof *nccl);
    nccl->index = image_count;
    nccl->image = *image;
    if (!resolve_called(nccl, reason, size) || !redirect(nccl, reason, size)) {
        return false;
    }
    image_count++;
    lamprey_info("version %d.%d.%d, through the %s door, on NCCL %d.%d.%d at %s (%s)",
                 LAMPREY_MAJOR, LAMPREY_MINOR, LAMPREY_PATCH, door, nccl->version / 10000,
                 nccl->version / 100 % 100, nccl->version % 100,
                 nccl->image.path[0] ? nccl->image.path : "the main program",
                 nccl->over_got ? "callers' slots, serving nothing"
                 : lamprey_config_get()->hook == LAMPREY_HOOK_CHOICE_GOT ? "callers' slots"
                                                                         : "redirected");
    return true;
}

static void watch_forks(void)
{
    lamprey_hooks_watch_forks();
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* Only the first copy of the library in a process acts; others hand over to it. */
static bool hand_over(const char *door)
{
    static atomic_bool said;
    if (lamprey_first_copy()) {
        return false;
    }
    lamprey_attach_loaded_function attach =
        (lamprey_attach_loaded_function)(uintptr_t)lamprey_first_copy_function(
            LAMPREY_ATTACH_LOADED_SYMBOL);
    if (attach) {
        attach(door);
    } else if (!atomic_exchange(&said, true)) {
        lamprey_warn(
            "another copy of Lamprey is in this process, which can't be told of the %s door", door);
    }
    return true;
}

static void attach_image(const struct lamprey_image *image, const char *door)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    char reason[256] = "";
    if (hand_over(door)) {
        return;
    }
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&mutex);
    if (!seen(image) && !attach_locked(image, door, reason, sizeof reason)) {
        if (refused_count < LAMPREY_MAX_IMAGES * 2) {
            refused[refused_count++] = image->base;
        }
        lamprey_warn("stays out of NCCL at %s: %s",
                     image->path[0] ? image->path : "the main program", reason);
    }
    pthread_mutex_unlock(&mutex);
}

void lamprey_attach(const void *address, const char *door)
{
    struct lamprey_image image;
    if (lamprey_image_of(address, &image) != LAMPREY_OK) {
        lamprey_warn("the %s door was opened from %p, which no loaded object holds", door, address);
        return;
    }
    attach_image(&image, door);
}

static int attach_visited(const struct lamprey_image *image, void *door)
{
    struct lamprey_image held; /* lamprey_image_of also keeps the object in the process */
    if (lamprey_image_of(lamprey_image_function(image, "ncclAllReduce"), &held) == LAMPREY_OK) {
        attach_image(&held, door);
    }
    return 0;
}

int lamprey_attach_loaded(const char *door)
{
    lamprey_image_each_nccl(attach_visited, (void *)door);
    pthread_mutex_lock(&mutex);
    int count = image_count;
    pthread_mutex_unlock(&mutex);
    return count;
}
