/* SPDX-License-Identifier: Apache-2.0 */
/* How the parts of liblamprey-topology.so fail: they return an errno number, as the library's one
 * symbol does, and write down why. */
#ifndef LAMPREY_TOPOLOGY_REASON_H
#define LAMPREY_TOPOLOGY_REASON_H

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where a reason goes; size 0: nowhere. */
struct lamprey_reason {
    char *text;
    size_t size;
};

/* Writes the reason, cut to what fits and terminated, and returns code. */
__attribute__((format(printf, 3, 4))) static inline int
lamprey_reason_give(const struct lamprey_reason *reason, int code, const char *format, ...)
{
    if (reason->size > 0) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(reason->text, reason->size, format, arguments);
        va_end(arguments);
    }
    return code;
}

#ifdef __cplusplus
}
#endif

#endif
