/* SPDX-License-Identifier: Apache-2.0 */
/* libnccl-env.so and libnccl-tuner.so: NCCL opens files of these names without being told to. This
 * one has no plugin in it, so NCCL closes it again and goes on as if it weren't there; before that
 * its constructor opens liblamprey.so if NCCL_PLUGIN names it.
 *
 * One thing isn't as before: a tuner inside a network plugin's file is looked for only where no
 * libnccl-tuner.so is found. Machines with such a plugin should leave that file out. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/door_attach.h"

#define LIBRARY "liblamprey.so"

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

static bool equals(const char *text, size_t length, const char *word)
{
    return length == strlen(word) && memcmp(text, word, length) == 0;
}

/* Writes the path of liblamprey.so that an item of the list stands for; false if the item is
 * somebody else's. "lamprey" and "liblamprey.so" mean the file beside this one. */
static bool resolve(const char *item, size_t length, char *path, size_t size)
{
    static const char suffix[] = "/" LIBRARY;
    size_t suffix_length = sizeof(suffix) - 1;
    Dl_info own;
    const char *slash = NULL;
    int written = 0;

    if (length >= suffix_length &&
        memcmp(item + length - suffix_length, suffix, suffix_length) == 0) {
        written = snprintf(path, size, "%.*s", (int)length, item);
    } else if (equals(item, length, "lamprey") || equals(item, length, LIBRARY)) {
        if (dladdr((const void *)&resolve, &own) == 0 || own.dli_fname == NULL) {
            return false;
        }
        slash = strrchr(own.dli_fname, '/');
        written = snprintf(path, size, "%.*s" LIBRARY,
                           slash != NULL ? (int)(slash + 1 - own.dli_fname) : 0, own.dli_fname);
    } else {
        return false;
    }
    return written > 0 && (size_t)written < size;
}

static void open_library(const char *path)
{
    lamprey_attach_loaded_function attach = NULL;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    if (handle == NULL) {
        fprintf(stderr, "lamprey: NCCL_PLUGIN asks for Lamprey, but it can't be loaded: %s\n",
                dlerror());
        return;
    }
    attach = (lamprey_attach_loaded_function)dlsym(handle, LAMPREY_ATTACH_LOADED_SYMBOL);
    if (attach == NULL) {
        fprintf(stderr, "lamprey: %s is not the library that belongs to this door: %s\n", path,
                dlerror());
        dlclose(handle);
        return;
    }
    /* The handle is kept: the library stays as long as the process. */
    attach("NCCL_PLUGIN");
}

__attribute__((constructor)) static void enter(void)
{
    const char *item = getenv("NCCL_PLUGIN");
    char path[PATH_MAX];

    while (item != NULL) {
        const char *end = strchr(item, ',');
        const char *last = end != NULL ? end : item + strlen(item);

        while (item < last && is_space(*item)) {
            item++;
        }
        while (last > item && is_space(last[-1])) {
            last--;
        }
        if (resolve(item, (size_t)(last - item), path, sizeof(path))) {
            open_library(path);
            return;
        }
        item = end != NULL ? end + 1 : NULL;
    }
}
