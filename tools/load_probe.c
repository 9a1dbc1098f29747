/* SPDX-License-Identifier: Apache-2.0 */
/* Loads libraries as NCCL loads plugins, and prints every object that this brought into the process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>

static int print_object(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size;
    (void)unused;
    if (info->dlpi_name[0] == '/') {
        printf("%s\n", info->dlpi_name);
    }
    return 0;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (dlopen(argv[i], RTLD_NOW | RTLD_LOCAL) == NULL) {
            fprintf(stderr, "load_probe: %s\n", dlerror());
            return 1;
        }
    }
    dl_iterate_phdr(print_object, NULL);
    return 0;
}
