/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin/first_copy.h"

#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <stdlib.h>

#include "plugin/image.h"

/* What marks a copy; exported by every version. */
#define MARK "lampreyGetStats"

struct walk {
    uintptr_t own_base;
    int earlier;
    struct lamprey_image first; /* where earlier */
};

static int visit(struct dl_phdr_info *info, size_t size, void *context)
{
    struct walk *walk = context;
    struct lamprey_image image;

    (void)size;
    if (info->dlpi_addr == walk->own_base) {
        return 1;
    }
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_DYNAMIC) {
            continue;
        }
        if (lamprey_image_find((const void *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr),
                               &image) == LAMPREY_OK &&
            lamprey_image_function(&image, MARK) != NULL) {
            walk->earlier = 1;
            walk->first = image;
            return 1;
        }
    }
    return 0;
}

static void look(struct walk *walk)
{
    struct lamprey_image own;

    if (lamprey_image_find((const void *)&lamprey_first_copy, &own) == LAMPREY_OK) {
        walk->own_base = own.base;
        dl_iterate_phdr(visit, walk);
    }
}

int lamprey_first_copy(void)
{
    static _Atomic int answer = -1;

    if (answer < 0) {
        struct walk walk = {0};
        look(&walk);
        answer = !walk.earlier;
    }
    return answer;
}

void *lamprey_first_copy_function(const char *name)
{
    struct walk walk = {0};

    look(&walk);
    return walk.earlier ? lamprey_image_function(&walk.first, name) : NULL;
}
