/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded together with a libnccl.so.2, it takes the room around its code. The last of the list
 * is started first: before anybody redirects functions. */
#define _GNU_SOURCE
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/crowd.h"

struct span {
    uintptr_t low;
    uintptr_t high;
};

static int find_code(struct dl_phdr_info *info, size_t size, void *context)
{
    struct span *span = context;

    (void)size;
    if (strstr(info->dlpi_name, "libnccl.so") == NULL) {
        return 0;
    }
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && (segment->p_flags & PF_X) != 0) {
            span->low = info->dlpi_addr + segment->p_vaddr;
            span->high = span->low + segment->p_memsz;
        }
    }
    return 1;
}

__attribute__((constructor)) static void crowd(void)
{
    struct lamprey_test_crowded crowded;
    struct span span = {0, 0};

    if (dl_iterate_phdr(find_code, &span) == 0 || span.high == 0 ||
        lamprey_test_crowd(&crowded, span.low, span.high, LAMPREY_TEST_JUMP_REACH) != LAMPREY_OK) {
        fprintf(stderr, "crowd_nccl: no libnccl.so to crowd\n");
        exit(1);
    }
}
