/* SPDX-License-Identifier: Apache-2.0 */
/* Which NVLink domain, if any, the ranks of a communicator share: a pure function of their records.
 */
#ifndef LAMPREY_TOPOLOGY_DOMAIN_H
#define LAMPREY_TOPOLOGY_DOMAIN_H

#include <stddef.h>
#include <stdint.h>

#include "topology/topology.h"

#ifdef __cplusplus
extern "C" {
#endif

enum lamprey_domain {
    LAMPREY_DOMAIN_NONE,
    LAMPREY_DOMAIN_HOST,   /* one host, every pair of GPUs linked: memory travels as descriptors */
    LAMPREY_DOMAIN_FABRIC, /* one partition of one NVLink cluster: memory travels as fabric handles
                            */
};

/* What one rank says of itself; travels between ranks as it is. Fixed size, no padding, and zero
 * where nothing is known, so that equal ranks send equal bytes. */
struct lamprey_domain_record {
    struct lamprey_gpu_links links;
    uint64_t pci_id;      /* lamprey_pci_id of the GPU */
    uint8_t host_id[16];  /* equal on the ranks of one host and on no others; all zero: unknown */
    uint8_t gpu_uuid[16]; /* CUDA's UUID of the GPU; all zero: unknown, then pci_id must do */
    uint32_t pid;         /* for the reason's text only */
    uint32_t share_gpu;   /* 1: this rank accepts another rank on its GPU (tests) */
    uint32_t fabric_off;  /* 1: this rank's user wants no memory across hosts */
    uint32_t reserved;
};

/* Decides over the records of all n ranks, in rank order. The same records give the same answer
 * and the same text on every rank; nothing else is looked at.
 *
 * HOST: equal host ids, and each pair is joined in both directions: both GPUs on switches of one
 *   partition, or each in the other's list of peers. A GPU on switches whose fabric is known not to
 *   be up or not to be healthy joins nobody.
 * FABRIC: equal cluster UUIDs, not zero, and equal cliques; registration complete and successful,
 * no part of the health mask bad, nobody's user against it. Looked at only where HOST is refused:
 * ranks of one host have no use for it. NONE: everything else.
 * Always so with MIG, with a record that makes no sense, and with one GPU used twice unless all
 * records accept it; ranks that do share a GPU count as joined. One rank alone is HOST.
 *
 * reason, when reason_size > 0, is always terminated: empty unless the answer is NONE, then one
 * line that names the first ranks at fault. */
enum lamprey_domain lamprey_domain_decide(const struct lamprey_domain_record *records, size_t n,
                                          char *reason, size_t reason_size);

/* A short English name, never NULL. */
const char *lamprey_domain_name(enum lamprey_domain domain);

#ifdef __cplusplus
}
#endif

#endif
