/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin/driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

#include "plugin/log.h"

static struct lamprey_driver table;
static bool loaded;
static char missing[160];

static void load(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(missing, sizeof missing, "no CUDA driver (%.120s)", dlerror());
        return;
    }
    PFN_cuGetProcAddress_v12000 resolve =
        (PFN_cuGetProcAddress_v12000)(uintptr_t)dlsym(library, "cuGetProcAddress_v2");
    PFN_cuDriverGetVersion_v2020 version =
        (PFN_cuDriverGetVersion_v2020)(uintptr_t)dlsym(library, "cuDriverGetVersion");
    if (!version || version(&table.version) != CUDA_SUCCESS) {
        snprintf(missing, sizeof missing, "the CUDA driver doesn't tell its version");
        return;
    }
    /* An older driver answers a request for a newer ABI with the newest that it has, so ask for
     * none that it can't know. Before 12.0 only the exported names are left; what has other ABIs in
     * store is needed for serving only. */
    const char *absent = NULL;
    const char *absent_for_joining = NULL;
#define LAMPREY_TEXT(symbol) #symbol
#define LAMPREY_EXPORTED_NAME(symbol)                                                              \
    LAMPREY_TEXT(symbol) /* with the header's suffix, such as _v2 */
#define LAMPREY_RESOLVE(member, symbol, abi_version, need)                                         \
    {                                                                                              \
        void *function = NULL;                                                                     \
        if (resolve && abi_version <= table.version) {                                             \
            resolve(#symbol, &function, abi_version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, NULL);     \
        } else if (!resolve && need == 1) {                                                        \
            function = dlsym(library, LAMPREY_EXPORTED_NAME(symbol));                              \
        }                                                                                          \
        table.member = (PFN_##symbol##_v##abi_version)(uintptr_t)function;                         \
        absent = need != 0 && !function ? #symbol : absent;                                        \
        absent_for_joining = need == 1 && !function ? #symbol : absent_for_joining;                \
    }
    LAMPREY_DRIVER_FUNCTIONS(LAMPREY_RESOLVE)
#undef LAMPREY_RESOLVE
    if (absent_for_joining) {
        snprintf(missing, sizeof missing, "the CUDA driver lacks %s", absent_for_joining);
        return;
    }
    loaded = true;
    if (absent) {
        snprintf(missing, sizeof missing, "the CUDA driver (%d.%d) lacks %s", table.version / 1000,
                 table.version % 1000 / 10, absent);
    }
}

static void load_once(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
}

const struct lamprey_driver *lamprey_driver_get(void)
{
    load_once();
    return loaded ? &table : NULL;
}

const char *lamprey_driver_missing(void)
{
    load_once();
    return missing;
}

enum lamprey_status lamprey_driver_check(CUresult result, const char *call)
{
    if (result == CUDA_SUCCESS) {
        return LAMPREY_OK;
    }
    const struct lamprey_driver *driver = lamprey_driver_get();
    const char *name = NULL;
    if (!driver || driver->GetErrorName(result, &name) != CUDA_SUCCESS || !name) {
        name = "unknown error";
    }
    lamprey_warn("%s failed: %s", call, name);
    switch (result) {
    case CUDA_ERROR_OUT_OF_MEMORY:
        return LAMPREY_ERROR_MEMORY;
    case CUDA_ERROR_NOT_PERMITTED:
        return LAMPREY_ERROR_PERMISSION;
    default:
        return LAMPREY_ERROR_DRIVER;
    }
}
