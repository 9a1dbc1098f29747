/* SPDX-License-Identifier: Apache-2.0 */
/* Writes what NVML says into the hwloc topology, in the form of attributes.h. */
#ifndef LAMPREY_TOPOLOGY_ANNOTATE_H
#define LAMPREY_TOPOLOGY_ANNOTATE_H

#include <hwloc.h>
#include <stdbool.h>

#include "topology/nvml.h"
#include "topology/reason.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether the topology is of this machine and not annotated yet: else NVML isn't to be asked. */
bool lamprey_annotate_wanted(hwloc_topology_t tree);

/* Probes and writes. 0, or an errno number with a reason and the topology as it was (EIO when NVML
 * doesn't start) or, when hwloc refuses an addition, partly annotated and without the mark. */
int lamprey_annotate(hwloc_topology_t tree, const struct lamprey_nvml *nvml,
                     const struct lamprey_reason *reason);

#ifdef __cplusplus
}
#endif

#endif
