/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/stats.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "plugin/config.h"
#include "plugin/lamprey.h"

struct lamprey_counters lamprey_process_counters;

static const struct {
    const char *name;
    size_t offset;
} fields[LAMPREY_COUNTS] = {
#define LAMPREY_FIELD(field) {#field, offsetof(struct lampreyStats, field)},
    LAMPREY_COUNTERS(LAMPREY_FIELD)
#undef LAMPREY_FIELD
};

_Static_assert(sizeof(struct lampreyStats) == sizeof(size_t) + LAMPREY_COUNTS * sizeof(uint64_t),
               "every field has a counter");

void lamprey_counters_read(const struct lamprey_counters *counters, struct lampreyStats *stats)
{
    for (int i = 0; i < LAMPREY_COUNTS; i++) {
        if (fields[i].offset + sizeof(uint64_t) <= stats->size) {
            uint64_t value = atomic_load_explicit(&counters->value[i], memory_order_relaxed);
            memcpy((char *)stats + fields[i].offset, &value, sizeof value);
        }
    }
}

/* At exit CUDA may be gone already: only host memory is read here. */
__attribute__((destructor)) static void print_at_exit(void)
{
    if (!lamprey_config_get()->stats) {
        return;
    }
    char line[1024];
    int length = snprintf(line, sizeof line, "lamprey stats: pid=%d", (int)getpid());
    for (int i = 0; i < LAMPREY_COUNTS; i++) {
        length += snprintf(line + length, sizeof line - (size_t)length, " %s=%llu", fields[i].name,
                           (unsigned long long)atomic_load(&lamprey_process_counters.value[i]));
    }
    fprintf(stderr, "%s\n", line);
}
