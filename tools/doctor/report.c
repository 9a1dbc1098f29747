/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/doctor/report.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

/* Shared with children, which look at what may crash. */
static size_t *counts(void)
{
    static size_t alone[DOCTOR_WRONG + 1];
    static size_t *shared;
    if (shared == NULL) {
        shared =
            mmap(NULL, sizeof(alone), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        shared = shared != MAP_FAILED ? shared : alone;
    }
    return shared;
}

void doctor_say(enum doctor_grade grade, const char *check, const char *remedy, const char *format,
                ...)
{
    static const char *const names[] = {"ok", "note", "WRONG"};
    va_list arguments;
    printf("%-6s %-9s ", names[grade], check);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    if (remedy != NULL) {
        printf("%-6s %-9s -> %s\n", "", "", remedy);
    }
    fflush(stdout);
    counts()[grade]++;
}

size_t doctor_count(enum doctor_grade grade)
{
    return counts()[grade];
}
