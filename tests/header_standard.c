/* SPDX-License-Identifier: Apache-2.0 */
/* lamprey.h alone, before any other header, in the standard that the build names; also as C++. */
#include "plugin/lamprey.h"

#include "tests/header_standard.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

void JOIN(lamprey_header_, STANDARD)(size_t *sizes)
{
    sizes[0] = sizeof(struct lampreyStats);
    sizes[1] = sizeof(struct lampreyWorkspaceArgs);
    sizes[2] = sizeof(struct lampreyFusedArgs);
    sizes[3] = sizeof(struct lampreyMoeReduceArgs);
    sizes[4] = sizeof(struct lampreyMoeFinalizeArgs);
    sizes[5] = sizeof(struct lampreyCustomArgs);
}
