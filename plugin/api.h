/* SPDX-License-Identifier: Apache-2.0 */
/* What the functions of lamprey.h share. */
#ifndef LAMPREY_PLUGIN_API_H
#define LAMPREY_PLUGIN_API_H

#include <nccl.h>

/* At the start of a call: the thread has no error. */
void lamprey_api_begin(void);

/* Sets the text of lampreyGetLastError; returns result. */
__attribute__((format(printf, 2, 3))) ncclResult_t lamprey_api_fail(ncclResult_t result,
                                                                    const char *format, ...);

#endif
