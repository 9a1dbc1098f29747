/* SPDX-License-Identifier: Apache-2.0 */
/* What the plugin asks of liblamprey-topology.so, which it opens by full path at set-up.
 * hwloc stays behind this interface: no hwloc type shows. */
#ifndef LAMPREY_TOPOLOGY_TOPOLOGY_H
#define LAMPREY_TOPOLOGY_TOPOLOGY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LAMPREY_TOPOLOGY_VERSION 2
#define LAMPREY_TOPOLOGY_MAX_PEERS 18

enum lamprey_nvlink_kind {
    LAMPREY_NVLINK_UNKNOWN, /* nobody could tell: not served */
    LAMPREY_NVLINK_NONE,
    LAMPREY_NVLINK_DIRECT, /* links end at other GPUs: only those in peers are reached */
    LAMPREY_NVLINK_SWITCH, /* links end at NVSwitches: every GPU that is on them too is reached */
};

/* One GPU as the records of a communicator carry it. Fixed size, no padding, zero where unknown. */
struct lamprey_gpu_links {
    uint32_t kind; /* enum lamprey_nvlink_kind */
    uint32_t links_active;
    uint32_t link_mbps;     /* one link, one direction, MB/s */
    uint32_t mig;           /* 1: MIG mode is on, no NVLink route */
    uint32_t fabric_state;  /* NVML: 0 not supported, 1 not started, 2 in progress, 3 completed */
    uint32_t fabric_status; /* meaningful in state 3; 0 = success */
    uint32_t fabric_clique;
    uint32_t fabric_health; /* NVML's mask, see domain.c; 0xaa and 0x1aa are healthy */
    uint8_t fabric_uuid[16];
    uint32_t peer_count;
    uint32_t chassis;                           /* differs between chassis; 0: unknown */
    uint64_t peers[LAMPREY_TOPOLOGY_MAX_PEERS]; /* lamprey_pci_id of directly linked GPUs */
};

/* domain:bus:device.function as one number: domain << 16 | bus << 8 | device << 3 | function. */
static inline uint64_t lamprey_pci_id(uint32_t domain, uint32_t bus, uint32_t device,
                                      uint32_t function)
{
    return (uint64_t)domain << 16 | (uint64_t)(bus & 0xff) << 8 | (device & 0x1f) << 3 |
           (function & 7);
}

/* lampreyTopologyDescribe, the one symbol of liblamprey-topology.so. Asked for this version and
 * sizeof(struct lamprey_gpu_links), it fills links for the GPU at pci_id of this machine (xml_path
 * NULL) or of the machine in an hwloc XML file.
 *
 * Returns 0, or an errno-style number with reason (terminated) saying what was missing: EINVAL
 * wrong version or size, ENODEV no such GPU, EIO the XML or hwloc failed. NVML missing isn't an
 * error: kind is then UNKNOWN. Thread-safe; keeps the topology loaded in between; starts no driver
 * beyond NVML. */
typedef int (*lamprey_topology_describe)(uint32_t version, const char *xml_path, uint64_t pci_id,
                                         struct lamprey_gpu_links *links, size_t links_size,
                                         char *reason, size_t reason_size);

#ifdef __cplusplus
}
#endif

#endif
