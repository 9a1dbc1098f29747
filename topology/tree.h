/* SPDX-License-Identifier: Apache-2.0 */
/* The hwloc topology of this machine or of an XML file, loaded with as few side effects as can be.
 */
#ifndef LAMPREY_TOPOLOGY_TREE_H
#define LAMPREY_TOPOLOGY_TREE_H

#include <hwloc.h>
#include <stddef.h>
#include <stdint.h>

#include "topology/reason.h"

#ifdef __cplusplus
extern "C" {
#endif

/* xml_path NULL: this machine. The caller calls hwloc_topology_destroy. EIO with a reason. */
int lamprey_tree_load(const char *xml_path, hwloc_topology_t *tree,
                      const struct lamprey_reason *reason);

/* One GPU of a topology: a PCI device, or the Misc object that stands for one. */
struct lamprey_tree_gpu {
    hwloc_obj_t object;
    uint64_t pci_id;
};

/* All NVIDIA GPUs in hwloc's order, PCI devices first; the caller frees gpus. ENOMEM, or EIO with a
 * reason where a Misc GPU has no PCI id. */
int lamprey_tree_gpus(hwloc_topology_t tree, struct lamprey_tree_gpu **gpus, size_t *ngpus,
                      const struct lamprey_reason *reason);

#ifdef __cplusplus
}
#endif

#endif
