/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/doctor/report.h"

#include <stdarg.h>
#include <stdio.h>

static size_t counts[DOCTOR_WRONG + 1];

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
    counts[grade]++;
}

size_t doctor_count(enum doctor_grade grade)
{
    return counts[grade];
}
