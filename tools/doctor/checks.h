/* SPDX-License-Identifier: Apache-2.0 */
/* The checks, in the order in which a served call needs what they look at. Each says what it finds
 * by doctor_say. */
#ifndef LAMPREY_TOOLS_DOCTOR_CHECKS_H
#define LAMPREY_TOOLS_DOCTOR_CHECKS_H

#include <stdbool.h>

#include "tools/doctor/place.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The installation: its files, and whether they belong together. */
void doctor_check_tree(const struct doctor_place *place);

/* Driver, NVML, GPUs, NVLink, copies between GPUs, IMEX, shared memory. */
void doctor_check_machine(const struct doctor_place *place);

/* Memory across hosts, for GPUs of a cluster. */
void doctor_check_imex(void);

/* NCCL, the ways in which Lamprey is switched on, and what keeps it out. command: the program's
 * arguments, or NULL. Returns whether this environment switches Lamprey on. */
bool doctor_check_nccl(const struct doctor_place *place, char *const *command);

/* Runs the command with Lamprey: by lamprey run, unless switched_on. */
void doctor_check_command(const struct doctor_place *place, char *const *command, bool switched_on);

#ifdef __cplusplus
}
#endif

#endif
