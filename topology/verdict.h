/* SPDX-License-Identifier: Apache-2.0 */
/* What the plugin would say of a communicator: its own decision, over records made here. */
#ifndef LAMPREY_TOPOLOGY_VERDICT_H
#define LAMPREY_TOPOLOGY_VERDICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "topology/domain.h"
#include "topology/read.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lamprey_rank {
    struct lamprey_domain_record record;
    char sm[16];   /* "9.0"; "" where unknown */
    char host[64]; /* a name, for people */
};

struct lamprey_verdict {
    size_t nranks;
    enum lamprey_domain domain;
    char domain_reason[320]; /* "" unless domain is NONE */
    bool served;
    uint64_t max_bytes; /* the largest message served, with default settings; 0 unless served */
    char reason[320];   /* "" when served */
};

/* The rank on a machine's GPU; hosts of equal number are one. */
void lamprey_rank_on(const struct lamprey_machine_gpu *gpu, uint32_t host,
                     struct lamprey_rank *rank);

/* ENOMEM, else 0. */
int lamprey_verdict_give(const struct lamprey_rank *ranks, size_t n,
                         struct lamprey_verdict *verdict);

/* As if one rank sat on each GPU of a machine that has some. */
int lamprey_verdict_of_machine(const struct lamprey_machine *machine,
                               struct lamprey_verdict *verdict);

#ifdef __cplusplus
}
#endif

#endif
