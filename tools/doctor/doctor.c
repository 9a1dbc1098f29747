/* SPDX-License-Identifier: Apache-2.0 */
/* lamprey-doctor: looks at everything that stands between a program and a served call. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/doctor/checks.h"
#include "tools/doctor/child.h"
#include "tools/doctor/report.h"
#include "tools/doctor/variables.h"

enum { EXIT_USAGE = 2 };

static const char usage[] =
    "usage: lamprey doctor [-- PROGRAM [ARGUMENT...]]\n"
    "Checks everything between a program and a served call: the installation, driver, NVML, GPUs,\n"
    "NVLink, a copy between every two GPUs, IMEX, shared memory, NCCL, how Lamprey is switched on\n"
    "and by what, and the settings that keep it out. A line for each: ok, note (calls are served\n"
    "all the same), or WRONG (they aren't), and what to do.\n"
    "With a program, runs it under Lamprey and says how many of its all-reduces were served, and\n"
    "why others were not.\n"
    "Exit status: 0 if nothing is wrong, 1 if something is, 2 for bad usage.\n";

struct visit {
    struct doctor_place place;
    char *const *command;
};

static bool look_at_machine(const void *context)
{
    const struct visit *visit = context;
    doctor_check_machine(&visit->place);
    return true;
}

static bool look_at_nccl(const void *context)
{
    const struct visit *visit = context;
    return doctor_check_nccl(&visit->place, visit->command);
}

int main(int argc, char **argv)
{
    struct visit visit = {.command = NULL};
    if (argc == 3 && strcmp(argv[1], "--probe") == 0) {
        return doctor_probe(argv[2]);
    }
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(usage, stdout);
        return EXIT_SUCCESS;
    }
    if (argc > 1) {
        if (strcmp(argv[1], "--") != 0 || argc == 2) {
            fputs(usage, stderr);
            return EXIT_USAGE;
        }
        visit.command = argv + 2;
    }
    /* The plugin's, parts of which are in here; the program gets it anew. */
    unsetenv("LAMPREY_STATS");
    if (!doctor_place_find(&visit.place)) {
        fprintf(stderr, "lamprey-doctor: /proc is not mounted\n");
        return EXIT_FAILURE;
    }
    doctor_variables_load();
    doctor_check_tree(&visit.place);
    doctor_apart(look_at_machine, &visit, "machine");
    bool switched_on = doctor_apart(look_at_nccl, &visit, "nccl");
    if (visit.command != NULL) {
        doctor_check_command(&visit.place, visit.command, switched_on);
    }
    size_t wrong = doctor_count(DOCTOR_WRONG);
    size_t notes = doctor_count(DOCTOR_NOTE);
    printf("%zu wrong, %zu note%s\n", wrong, notes, notes == 1 ? "" : "s");
    return wrong == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
