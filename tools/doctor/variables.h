/* SPDX-License-Identifier: Apache-2.0 */
/* Environment variables as NCCL sees them: what the environment lacks comes from the user's
 * configuration file, and what both lack from the machine's. */
#ifndef LAMPREY_TOOLS_DOCTOR_VARIABLES_H
#define LAMPREY_TOOLS_DOCTOR_VARIABLES_H

#ifdef __cplusplus
extern "C" {
#endif

/* Reads the files into this process's environment, as NCCL does. */
void doctor_variables_load(void);

/* NULL where the variable is unset or empty. */
const char *doctor_variable(const char *name);

/* "the environment", or the file that sets it. */
const char *doctor_variable_source(const char *name);

#ifdef __cplusplus
}
#endif

#endif
