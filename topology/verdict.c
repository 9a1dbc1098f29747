/* SPDX-License-Identifier: Apache-2.0 */
#include "topology/verdict.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/decide.h"

/* What a rank says that no topology tells: default settings, and a GPU with room for any grid. */
enum {
    MAX_BYTES_BY_WORLD_SIZE = -1,
    MAX_CTAS = 512,
    OLDEST_CAPABILITY = 80, /* of the kernels that are compiled */
};

static int capability_of(const char *sm)
{
    int major = 0;
    int minor = 0;
    return sscanf(sm, "%d.%d", &major, &minor) == 2 ? 10 * major + minor : 0;
}

/* GPUs of which it is unknown are taken for the others' kind: their links are what is refused. */
static int known_capability(const struct lamprey_rank *ranks, size_t n)
{
    int capability = 0;
    for (size_t i = 0; i < n && capability == 0; i++) {
        capability = capability_of(ranks[i].sm);
    }
    return capability;
}

static void fill_record(const struct lamprey_rank *rank, size_t index, size_t n, int otherwise,
                        struct lamprey_record *record)
{
    record->magic = LAMPREY_RECORD_MAGIC;
    record->version = LAMPREY_RECORD_VERSION;
    record->bytes = sizeof(*record);
    record->rank = (uint32_t)index;
    record->nranks = (uint32_t)n;
    record->capability = capability_of(rank->sm);
    record->capability = record->capability != 0 ? record->capability : otherwise;
    record->resident_ctas = UINT32_MAX;
    record->max_bytes = MAX_BYTES_BY_WORLD_SIZE;
    record->max_ctas = MAX_CTAS;
    record->domain = rank->record;
    if (record->capability != 0 && record->capability < OLDEST_CAPABILITY) {
        record->refuses = 1;
        snprintf(record->reason, sizeof(record->reason), "there are no kernels for sm_%d",
                 record->capability);
    }
}

void lamprey_rank_on(const struct lamprey_machine_gpu *gpu, uint32_t host,
                     struct lamprey_rank *rank)
{
    memset(rank, 0, sizeof(*rank));
    rank->record.links = gpu->links;
    rank->record.pci_id = gpu->pci_id;
    rank->record.host_id[0] = 1; /* zero is an unknown host */
    memcpy(rank->record.host_id + 1, &host, sizeof(host));
    memcpy(rank->sm, gpu->sm, sizeof(rank->sm));
}

int lamprey_verdict_give(const struct lamprey_rank *ranks, size_t n,
                         struct lamprey_verdict *verdict)
{
    struct lamprey_record *records = calloc(n + 1, sizeof(*records));
    struct lamprey_domain_record *domains = calloc(n + 1, sizeof(*domains));
    int result = ENOMEM;
    int capability = known_capability(ranks, n);
    if (records != NULL && domains != NULL && n <= INT_MAX) {
        for (size_t i = 0; i < n; i++) {
            fill_record(&ranks[i], i, n, capability, &records[i]);
            domains[i] = ranks[i].record;
        }
        memset(verdict, 0, sizeof(*verdict));
        verdict->nranks = n;
        verdict->domain = lamprey_domain_decide(domains, n, verdict->domain_reason,
                                                sizeof(verdict->domain_reason));
        struct lamprey_agreed agreed =
            lamprey_agree(records, (int)n, verdict->reason, sizeof(verdict->reason));
        verdict->served = agreed.served;
        verdict->max_bytes = agreed.max_bytes;
        result = 0;
    }
    free(records);
    free(domains);
    return result;
}

int lamprey_verdict_of_machine(const struct lamprey_machine *machine,
                               struct lamprey_verdict *verdict)
{
    struct lamprey_rank *ranks = calloc(machine->ngpus + 1, sizeof(*ranks));
    if (ranks == NULL) {
        return ENOMEM;
    }
    for (size_t i = 0; i < machine->ngpus; i++) {
        lamprey_rank_on(&machine->gpus[i], 1, &ranks[i]);
    }
    int result = lamprey_verdict_give(ranks, machine->ngpus, verdict);
    free(ranks);
    return result;
}
