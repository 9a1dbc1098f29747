/* SPDX-License-Identifier: Apache-2.0 */
/* An object with the mark of a copy of the library, to ask first_copy.c from inside it. */
#include "plugin/first_copy.h"

__attribute__((visibility("default"))) int lampreyGetStats(void *comm, void *stats);
__attribute__((visibility("default"))) int firstCopy(void);

int lampreyGetStats(void *comm, void *stats)
{
    return comm == stats;
}

int firstCopy(void)
{
    return lamprey_first_copy();
}
