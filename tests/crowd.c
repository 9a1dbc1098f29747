/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "tests/crowd.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "plugin/hook_memory.h"

/* What a jump's reach is measured to is not exactly the address. */
static const uintptr_t margin = (uintptr_t)1 << 20;
static const uintptr_t page_mask = 4095;

enum lamprey_status lamprey_test_crowd(struct lamprey_test_crowded *crowded, uintptr_t low,
                                       uintptr_t high, uintptr_t reach)
{
    /* Asked for more than the user's half, ThreadSanitizer maps at 0 instead. */
    const uintptr_t top = (UINTPTR_MAX >> 17) & ~page_mask;
    const uintptr_t first = low > reach + margin ? (low - reach - margin) & ~page_mask : 0;
    const uintptr_t last = high + reach + margin < top ? high + reach + margin : top;
    struct lamprey_hook_maps maps;
    enum lamprey_status status = lamprey_hook_maps_read(&maps);
    if (status != LAMPREY_OK) {
        return status;
    }
    crowded->count = 0;
    crowded->gaps = calloc(maps.count + 1, sizeof(*crowded->gaps));
    for (size_t i = 0; i <= maps.count && crowded->gaps != NULL; i++) {
        uintptr_t start = i == 0 ? 65536 : maps.mappings[i - 1].end;
        uintptr_t end = i == maps.count ? top : maps.mappings[i].start;
        start = start > first ? start : first;
        end = (end < last ? end : last) & ~page_mask;
        if (end <= start) {
            continue;
        }
        void *got = mmap((void *)start, end - start, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
        if (got != MAP_FAILED) {
            crowded->gaps[crowded->count].start = got;
            crowded->gaps[crowded->count++].bytes = end - start;
        }
    }
    lamprey_hook_maps_free(&maps);
    return crowded->gaps != NULL ? LAMPREY_OK : LAMPREY_ERROR_MEMORY;
}

void lamprey_test_uncrowd(struct lamprey_test_crowded *crowded)
{
    for (size_t i = 0; i < crowded->count; i++) {
        munmap(crowded->gaps[i].start, crowded->gaps[i].bytes);
    }
    free(crowded->gaps);
    crowded->gaps = NULL;
    crowded->count = 0;
}
