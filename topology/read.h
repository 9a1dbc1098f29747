/* SPDX-License-Identifier: Apache-2.0 */
/* An annotated hwloc topology as plain tables: all that the rest of Lamprey sees of it. */
#ifndef LAMPREY_TOPOLOGY_READ_H
#define LAMPREY_TOPOLOGY_READ_H

#include <hwloc.h>
#include <stddef.h>
#include <stdint.h>

#include "topology/reason.h"
#include "topology/topology.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lamprey_machine_gpu {
    uint64_t pci_id;
    struct lamprey_gpu_links links;
    char uuid[96];  /* "" where unknown */
    char model[96]; /* "" where unknown */
    char sm[16];    /* "9.0"; "" where unknown */
    int numa;       /* os index of the one NUMA node it is near, or -1 */
};

enum lamprey_pair_kind {
    LAMPREY_PAIR_UNKNOWN, /* one of the two was not probed */
    LAMPREY_PAIR_SELF,
    LAMPREY_PAIR_DIRECT,
    LAMPREY_PAIR_SWITCH,
    LAMPREY_PAIR_PCIE, /* no NVLink, or peer access ruled out */
};

struct lamprey_machine_pair {
    enum lamprey_pair_kind kind;
    uint32_t mbps; /* over NVLink, one direction */
};

struct lamprey_machine {
    char probe[96]; /* who annotated the topology; "" if nobody did */
    size_t ngpus;
    struct lamprey_machine_gpu *gpus;
    struct lamprey_machine_pair *pairs; /* ngpus x ngpus */
};

/* Reads nothing but the topology. The caller destroys the machine. EIO with a reason when an
 * annotation is malformed or contradicts another one, ENOMEM. */
int lamprey_machine_create(hwloc_topology_t tree, struct lamprey_machine **machine,
                           const struct lamprey_reason *reason);

void lamprey_machine_destroy(struct lamprey_machine *machine);

/* The GPU of that PCI id; where there is none, the only one of that device, whatever its function
 * (CUDA reports none). NULL if there is no such GPU. */
const struct lamprey_machine_gpu *lamprey_machine_find(const struct lamprey_machine *machine,
                                                       uint64_t pci_id);

#ifdef __cplusplus
}
#endif

#endif
