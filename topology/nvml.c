/* SPDX-License-Identifier: Apache-2.0 */
#include "topology/nvml.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

_Static_assert(sizeof(struct lamprey_nvml_pci) == 68, "NVML's ABI");
_Static_assert(sizeof(struct lamprey_nvml_field) == 40, "NVML's ABI");
_Static_assert(sizeof(struct lamprey_nvml_fabric_v1) == 28, "NVML's ABI");
_Static_assert(sizeof(struct lamprey_nvml_fabric) == (LAMPREY_NVML_FABRIC_VERSION_3 & 0xffffff),
               "NVML's ABI");
_Static_assert(sizeof(struct lamprey_nvml_platform) == (LAMPREY_NVML_PLATFORM_VERSION_2 & 0xffffff),
               "NVML's ABI");
_Static_assert(offsetof(struct lamprey_nvml_fabric, summary) ==
                   (LAMPREY_NVML_FABRIC_VERSION_2 & 0xffffff),
               "NVML's ABI");

int lamprey_nvml_load(const char *library, struct lamprey_nvml *nvml,
                      const struct lamprey_reason *reason)
{
    struct lamprey_nvml table;
    const char *missing = NULL;
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        return lamprey_reason_give(reason, ENOENT, "no NVML: %s", dlerror());
    }

    /* Copied as bytes: ISO C has no cast from an object pointer to a function pointer. */
#define LOOK_UP(member, symbol, required, parameters)                                              \
    do {                                                                                           \
        void *address = dlsym(handle, #symbol);                                                    \
        memcpy(&table.member, &address, sizeof(address));                                          \
        if (address == NULL && (required) && missing == NULL) {                                    \
            missing = #symbol;                                                                     \
        }                                                                                          \
    } while (0);
    LAMPREY_NVML_FUNCTIONS(LOOK_UP)
#undef LOOK_UP

    if (missing != NULL) {
        dlclose(handle);
        return lamprey_reason_give(reason, ENOENT, "NVML (%s) lacks %s", library, missing);
    }
    *nvml = table;
    return 0;
}
