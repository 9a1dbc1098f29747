/* SPDX-License-Identifier: Apache-2.0 */
/* Other programs' answers: the loader's and Python's, asked in children, so that nothing of what
 * they load stays here and nothing can crash the doctor. */
#ifndef LAMPREY_TOOLS_DOCTOR_CHILD_H
#define LAMPREY_TOOLS_DOCTOR_CHILD_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Runs arguments[0], found on PATH, without its standard error. output gets what it printed, cut to
 * what fits and terminated. Returns its exit status, or -1 where it did not end by itself. */
int doctor_run_quietly(char *const *arguments, char *output, size_t size);

/* What the loader finds by a library's name. */
struct doctor_library {
    bool found;
    char path[PATH_MAX]; /* real path, or "" */
    int version;         /* ncclGetVersion's or lampreyGetVersion's; 0: neither */
    char error[512];     /* the loader's, where not found */
};

/* Asks a child, by its own program self --probe; with launcher not NULL through "launcher run",
 * which sets what lamprey run sets. */
void doctor_find_library(const char *self, const char *launcher, const char *name,
                         struct doctor_library *library);

/* The child's part: prints what doctor_find_library reads. Exit status. */
int doctor_probe(const char *name);

/* Runs a check in a child, which keeps nothing of it: no GPU's memory, no library. Returns what the
 * check returns, or says that it ended by a signal, with what by name, and returns false. */
bool doctor_apart(bool (*check)(const void *context), const void *context, const char *name);

#ifdef __cplusplus
}
#endif

#endif
