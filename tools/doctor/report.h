/* SPDX-License-Identifier: Apache-2.0 */
/* What every check does with its findings: one line each, and for what is not well a second one
 * that says what to do. */
#ifndef LAMPREY_TOOLS_DOCTOR_REPORT_H
#define LAMPREY_TOOLS_DOCTOR_REPORT_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum doctor_grade {
    DOCTOR_OK,
    DOCTOR_NOTE,  /* worth knowing; calls are served all the same */
    DOCTOR_WRONG, /* calls won't be served */
};

/* remedy: what to do; NULL with DOCTOR_OK only. */
__attribute__((format(printf, 4, 5))) void doctor_say(enum doctor_grade grade, const char *check,
                                                      const char *remedy, const char *format, ...);

/* How many findings of that grade were said, here and in children. */
size_t doctor_count(enum doctor_grade grade);

#ifdef __cplusplus
}
#endif

#endif
