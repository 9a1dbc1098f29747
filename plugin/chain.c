/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/chain.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "plugin/log.h"

static bool is_file_name(const char *name)
{
    size_t length = strlen(name);

    if (strchr(name, '/') != NULL) {
        return true;
    }
    return strncmp(name, "lib", 3) == 0 && length >= 3 && strcmp(name + length - 3, ".so") == 0;
}

void *lamprey_chain_open(const char *kind, const char *setting, const char *name)
{
    char derived[PATH_MAX];
    char first_error[512] = "";
    const char *error = NULL;
    void *handle = NULL;
    int length = 0;

    if (name == NULL || name[0] == '\0' || strcasecmp(name, "none") == 0) {
        return NULL;
    }

    handle = dlopen(strcmp(name, "STATIC_PLUGIN") == 0 ? NULL : name, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        error = dlerror();
        snprintf(first_error, sizeof(first_error), "%s", error != NULL ? error : "unknown error");
    }
    if (handle == NULL && !is_file_name(name)) {
        length = snprintf(derived, sizeof(derived), "libnccl-%s-%s.so", kind, name);
        if (length > 0 && (size_t)length < sizeof(derived)) {
            handle = dlopen(derived, RTLD_NOW | RTLD_LOCAL);
            error = handle == NULL ? dlerror() : NULL;
        }
    }
    if (handle == NULL) {
        lamprey_warn("%s=%s: not loaded: %s%s%s", setting, name, first_error,
                     error != NULL && length > 0 ? "; " : "",
                     error != NULL && length > 0 ? error : "");
        return NULL;
    }
    /* Another copy of ours, or this one, would call itself for ever. */
    if (dlsym(handle, "lampreyGetStats") != NULL) {
        lamprey_warn("%s=%s names Lamprey itself; it has to name the plugin that Lamprey's stands "
                     "in front of",
                     setting, name);
        dlclose(handle);
        return NULL;
    }
    return handle;
}

const void *lamprey_chain_find(void *handle, const char *prefix, int newest, int oldest,
                               int *version)
{
    char symbol[64];
    const void *table = NULL;

    for (int v = newest; v >= oldest; v--) {
        snprintf(symbol, sizeof(symbol), "%s%d", prefix, v);
        table = dlsym(handle, symbol);
        if (table != NULL) {
            *version = v;
            return table;
        }
    }
    return NULL;
}
