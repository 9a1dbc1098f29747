/* SPDX-License-Identifier: Apache-2.0 */
/* What NVML says of this machine's GPUs, as plain data. Calls that fail leave gaps. */
#ifndef LAMPREY_TOPOLOGY_PROBE_H
#define LAMPREY_TOPOLOGY_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "topology/nvml.h"
#include "topology/pci.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LAMPREY_PROBE_MAX_LINKS = 64 };

/* In the int64_t members below. */
#define LAMPREY_PROBE_UNKNOWN (-1)

/* An active link's other end, which is no CPU. */
struct lamprey_probe_link {
    int remote_type; /* LAMPREY_NVML_REMOTE_... */
    uint64_t remote; /* PCI id, or LAMPREY_PCI_UNKNOWN */
};

struct lamprey_probe_gpu {
    uint64_t pci_id;
    char uuid[96];  /* "" where unknown */
    char model[96]; /* "" where unknown */
    int64_t sm_major;
    int64_t sm_minor;
    int64_t mig;
    int64_t link_count;
    int64_t links_active;
    int64_t link_mbps;                                        /* known whenever links_active > 0 */
    struct lamprey_probe_link links[LAMPREY_PROBE_MAX_LINKS]; /* the active ones */
    int64_t fabric_state;
    int64_t fabric_status;
    int64_t fabric_clique;
    int64_t fabric_health; /* stays unknown with drivers that don't report it */
    uint8_t fabric_uuid[16];
    int64_t chassis; /* another number for every chassis, never 0 */
};

struct lamprey_probe {
    char driver[80]; /* "unknown" where NVML doesn't tell */
    size_t ngpus;
    struct lamprey_probe_gpu *gpus;
    uint8_t *p2p_refused; /* ngpus x ngpus: 1 where NVML rules peer access from row to column out */
};

/* Starts NVML, asks, and shuts it down again. Not thread-safe: NVML isn't everywhere.
 * The caller destroys the probe. EIO with a reason when NVML doesn't start or count its devices,
 * ENOMEM. GPUs that can't be opened are left out. */
int lamprey_probe_create(const struct lamprey_nvml *nvml, struct lamprey_probe **probe,
                         const struct lamprey_reason *reason);

void lamprey_probe_destroy(struct lamprey_probe *probe);

#ifdef __cplusplus
}
#endif

#endif
