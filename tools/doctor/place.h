/* SPDX-License-Identifier: Apache-2.0 */
/* Where this doctor is installed, and where the machine's files are. */
#ifndef LAMPREY_TOOLS_DOCTOR_PLACE_H
#define LAMPREY_TOOLS_DOCTOR_PLACE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct doctor_place {
    char self[PATH_MAX];
    char prefix[PATH_MAX];
    char lib[PATH_MAX];
};

/* False: /proc doesn't tell. */
bool doctor_place_find(struct doctor_place *place);

/* A file of the machine. Tests put a folder in front of it: LAMPREY_TEST_ROOT. */
const char *doctor_path(const char *path, char *buffer, size_t size);

/* Formats into buffer what is shorter than it, else "". */
__attribute__((format(printf, 3, 4))) char *doctor_join(char *buffer, size_t size,
                                                        const char *format, ...);

#ifdef __cplusplus
}
#endif

#endif
