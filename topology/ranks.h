/* SPDX-License-Identifier: Apache-2.0 */
/* The ranks of a communicator, from files. A file is an hwloc XML: one host with a rank on each of
 * its GPUs; or a list, a line each:
 *
 *   machine FILE [gpus=0,2] [times=18] [host=NAME]
 *     ranks on the GPUs of an XML file, which lies relative to the list: all of them, or those of
 *     the given indices, in that order. times: on as many hosts as that.
 *   rank pci=0000:18:00.0 [host=NAME] [kind=switch] [links=18] [mbps=26562] [peers=PCI,PCI]
 *        [sm=9.0] [mig=1] [state=3] [status=0] [cluster=HEX32] [clique=7] [health=0xaa] [share=1]
 *        [off=1]
 *     one rank. kind: unknown, none, direct or switch; share: its GPU, with other ranks; off: it
 *     keeps to its host, as with NCCL_MNNVL_ENABLE=0; the others as NVML gives them.
 *
 * # begins a comment. Ranks whose host has one name are on one host; without names machines are
 * hosts of their own, and rank lines are all on one. */
#ifndef LAMPREY_TOPOLOGY_RANKS_H
#define LAMPREY_TOPOLOGY_RANKS_H

#include <stddef.h>

#include "topology/reason.h"
#include "topology/verdict.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lamprey_rank_list {
    struct lamprey_rank *ranks;
    size_t n;
    uint32_t hosts; /* different ones so far */
};

/* Appends the ranks of a file to the list, which begins as all zero; the caller frees its ranks.
 * EIO or ENOMEM with a reason that names file and line; the list may then hold some of them. */
int lamprey_ranks_read(const char *path, struct lamprey_rank_list *list,
                       const struct lamprey_reason *reason);

#ifdef __cplusplus
}
#endif

#endif
