/* SPDX-License-Identifier: Apache-2.0 */
/* The LD_PRELOAD door: the intercepted names under NCCL's own names. Each finds the NCCL that the
 * caller would have reached and calls its function, which is redirected to us: so nothing is
 * counted twice, and a call behaves as if it had come without us. Where the library was loaded as a
 * plugin nobody finds these names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/attach.h"
#include "plugin/door_attach.h"
#include "plugin/door_enter.h"
#include "plugin/first_copy.h"
#include "plugin/image.h"
#include "plugin/nccl_functions.h"

#define MAX_ROUTES 64

/* A call site and where it leads; never freed or changed, so readers need no lock. */
struct route {
    const void *site;
    void *function;
    struct route *next;
};

struct routes {
    const char *name;
    struct route *_Atomic first;
    atomic_int count;
};

struct choice {
    const char *name;
    uintptr_t caller_base;
    bool caller_known;
    void *function; /* the first NCCL's, or that of the caller's own image */
};

static int visit_choice(const struct lamprey_image *image, void *context)
{
    struct choice *choice = context;
    void *function = lamprey_image_function(image, choice->name);

    if (choice->caller_known && image->base == choice->caller_base) {
        choice->function = function;
        return 1;
    }
    if (choice->function == NULL) {
        choice->function = function;
    }
    return 0;
}

static bool names_us(const char *list)
{
    Dl_info own;
    if (list == NULL || dladdr((const void *)&names_us, &own) == 0 || own.dli_fname == NULL) {
        return false;
    }
    const char *slash = strrchr(own.dli_fname, '/');
    return strstr(list, slash != NULL ? slash + 1 : own.dli_fname) != NULL;
}

/* A program that merely links the library for its own symbols hasn't asked to be served. */
static bool preloaded(void)
{
    char list[4096] = "";
    if (names_us(getenv("LD_PRELOAD"))) {
        return true;
    }
    FILE *file = fopen("/etc/ld.so.preload", "re");
    if (file != NULL) {
        size_t length = fread(list, 1, sizeof(list) - 1, file);
        list[length] = '\0';
        fclose(file);
    }
    return names_us(list);
}

/* NCCL calls some public functions of its own, and with two NCCLs in the process those calls must
 * come back to the one that made them. Everybody else gets the first in the loader's order. */
static void *choose(const char *name, const void *site)
{
    struct choice choice = {.name = name};
    struct lamprey_image caller;

    if (lamprey_image_find(site, &caller) == LAMPREY_OK) {
        choice.caller_known = true;
        choice.caller_base = caller.base;
    }
    lamprey_image_each_nccl(visit_choice, &choice);
    if (choice.function != NULL && preloaded()) {
        lamprey_attach(choice.function, "preload");
    }
    return choice.function;
}

static void *find(struct routes *routes, const void *site)
{
    struct route *first = atomic_load_explicit(&routes->first, memory_order_acquire);
    struct route *route = NULL;
    void *function = NULL;

    for (route = first; route != NULL; route = route->next) {
        if (route->site == site) {
            return route->function;
        }
    }
    function = choose(routes->name, site);
    /* Generated code may have any number of call sites: past the limit each call is looked up. */
    if (function == NULL || atomic_fetch_add(&routes->count, 1) >= MAX_ROUTES) {
        return function;
    }
    route = malloc(sizeof(*route));
    if (route == NULL) {
        return function;
    }
    route->site = site;
    route->function = function;
    route->next = first;
    while (!atomic_compare_exchange_weak_explicit(&routes->first, &route->next, route,
                                                  memory_order_release, memory_order_acquire)) {
    }
    return function;
}

/* nccl.h declares these names with types that older releases lack, hence the assembler names. */
#define FORWARD(entry, parameters, arguments)                                                      \
    LAMPREY_DOOR_EXPORT ncclResult_t lamprey_preload_##entry parameters __asm__("nccl" #entry);    \
    ncclResult_t lamprey_preload_##entry parameters                                                \
    {                                                                                              \
        static struct routes routes = {.name = "nccl" #entry};                                     \
        ncclResult_t(*function) parameters =                                                       \
            (ncclResult_t(*) parameters)find(&routes, __builtin_return_address(0));                \
                                                                                                   \
        return function != NULL ? function arguments : ncclInvalidUsage;                           \
    }

LAMPREY_NCCL_INTERCEPTED(FORWARD)
LAMPREY_NCCL_ORDERED(FORWARD)

static int note_one(const struct lamprey_image *image, void *context)
{
    (void)image;
    *(bool *)context = true;
    return 1;
}

/* Programs that link NCCL have it mapped already, and may take addresses with dlsym that pass by
 * the names above: attach before main. Where NCCL comes later, the first call through a name does
 * it. */
__attribute__((constructor)) static void enter(void)
{
    void *global = preloaded() ? dlopen(NULL, RTLD_LAZY) : NULL;
    bool nccl_is_here = false;
    void *visible = NULL;

    if (global == NULL) {
        return;
    }
    visible = dlsym(global, LAMPREY_ATTACH_LOADED_SYMBOL);
    dlclose(global);
    if (visible != (void *)&lampreyAttachLoaded || !lamprey_first_copy()) {
        return;
    }
    lamprey_image_each_nccl(note_one, &nccl_is_here);
    if (nccl_is_here) {
        lamprey_attach_loaded("preload");
    }
}
