/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <string.h>

#include "topology/pci.h"
#include "topology/show.h"

const char *lamprey_show_links(const struct lamprey_gpu_links *links, char text[LAMPREY_SHOW_TEXT])
{
    switch ((enum lamprey_nvlink_kind)links->kind) {
    case LAMPREY_NVLINK_NONE:
        snprintf(text, LAMPREY_SHOW_TEXT, "none");
        return text;
    case LAMPREY_NVLINK_DIRECT:
        snprintf(text, LAMPREY_SHOW_TEXT, "%u x %u, %u peers", links->links_active,
                 links->link_mbps, links->peer_count);
        return text;
    case LAMPREY_NVLINK_SWITCH:
        snprintf(text, LAMPREY_SHOW_TEXT, "%u x %u, switch", links->links_active, links->link_mbps);
        return text;
    case LAMPREY_NVLINK_UNKNOWN:
        break;
    }
    snprintf(text, LAMPREY_SHOW_TEXT, "unknown");
    return text;
}

const char *lamprey_show_fabric(const struct lamprey_gpu_links *links, char text[LAMPREY_SHOW_TEXT])
{
    static const uint8_t no_cluster[16];
    static const char *const states[] = {"-", "not started", "in progress"};
    if (links->fabric_state < sizeof(states) / sizeof(*states)) {
        snprintf(text, LAMPREY_SHOW_TEXT, "%s", states[links->fabric_state]);
    } else if (links->fabric_status != 0) {
        snprintf(text, LAMPREY_SHOW_TEXT, "refused (%u)", links->fabric_status);
    } else if (memcmp(links->fabric_uuid, no_cluster, sizeof(no_cluster)) == 0) {
        snprintf(text, LAMPREY_SHOW_TEXT, "this host");
    } else {
        const uint8_t *uuid = links->fabric_uuid;
        snprintf(text, LAMPREY_SHOW_TEXT, "%02x%02x%02x%02x.. clique %u, health 0x%x", uuid[0],
                 uuid[1], uuid[2], uuid[3], links->fabric_clique, links->fabric_health);
    }
    return text;
}

static const char *known(const char *text)
{
    return text[0] != '\0' ? text : "?";
}

static void show_gpus(FILE *out, const struct lamprey_machine *machine)
{
    fprintf(out, "%-4s %-14s %-24s %-5s %-5s %-4s %-20s %s\n", "GPU", "PCI id", "model", "sm",
            "NUMA", "MIG", "NVLinks (MB/s)", "fabric");
    for (size_t i = 0; i < machine->ngpus; i++) {
        const struct lamprey_machine_gpu *gpu = &machine->gpus[i];
        char pci[LAMPREY_PCI_TEXT];
        char links[LAMPREY_SHOW_TEXT];
        char fabric[LAMPREY_SHOW_TEXT];
        char numa[16] = "-";
        if (gpu->numa >= 0) {
            snprintf(numa, sizeof(numa), "%d", gpu->numa);
        }
        fprintf(out, "%-4zu %-14s %-24s %-5s %-5s %-4s %-20s %s\n", i,
                lamprey_pci_text(gpu->pci_id, pci), known(gpu->model), known(gpu->sm), numa,
                gpu->links.mig != 0 ? "on" : "off", lamprey_show_links(&gpu->links, links),
                lamprey_show_fabric(&gpu->links, fabric));
    }
}

static void show_pairs(FILE *out, const struct lamprey_machine *machine)
{
    static const char *const kinds[] = {
        [LAMPREY_PAIR_UNKNOWN] = "?", [LAMPREY_PAIR_SELF] = "-",  [LAMPREY_PAIR_DIRECT] = "d",
        [LAMPREY_PAIR_SWITCH] = "s",  [LAMPREY_PAIR_PCIE] = "no",
    };
    fprintf(out, "\nNVLink between GPUs, MB/s in one direction (d: direct, s: by switches):\n%-4s",
            "");
    for (size_t i = 0; i < machine->ngpus; i++) {
        fprintf(out, " %9zu", i);
    }
    for (size_t i = 0; i < machine->ngpus; i++) {
        fprintf(out, "\n%-4zu", i);
        for (size_t j = 0; j < machine->ngpus; j++) {
            const struct lamprey_machine_pair *pair = &machine->pairs[i * machine->ngpus + j];
            char cell[24];
            if (pair->mbps != 0) {
                snprintf(cell, sizeof(cell), "%u%s", pair->mbps, kinds[pair->kind]);
            } else {
                snprintf(cell, sizeof(cell), "%s", kinds[pair->kind]);
            }
            fprintf(out, " %9s", cell);
        }
    }
    fprintf(out, "\n");
}

static void show_verdict(FILE *out, const struct lamprey_verdict *verdict)
{
    fprintf(out, "NVLink domain: %s%s%s\n", lamprey_domain_name(verdict->domain),
            verdict->domain_reason[0] != '\0' ? ": " : "", verdict->domain_reason);
    if (verdict->served) {
        fprintf(out, "Served: yes, messages up to %" PRIu64 " KiB%s\n", verdict->max_bytes >> 10,
                verdict->domain == LAMPREY_DOMAIN_FABRIC ? ", where all hosts have one IMEX channel"
                                                         : "");
    } else if (strcmp(verdict->reason, verdict->domain_reason) == 0) {
        fprintf(out, "Served: no\n");
    } else {
        fprintf(out, "Served: no: %s\n", verdict->reason);
    }
}

void lamprey_show_machine_text(FILE *out, const struct lamprey_machine *machine, const char *note,
                               const struct lamprey_verdict *verdict)
{
    fprintf(out, "NVLink information: %s\n",
            machine->probe[0] != '\0' ? machine->probe
            : note[0] != '\0'         ? note
                                      : "none: the topology carries no annotation");
    if (machine->ngpus == 0) {
        fprintf(out, "No NVIDIA GPU.\n");
        return;
    }
    show_gpus(out, machine);
    show_pairs(out, machine);
    fprintf(out, "\nOne rank on each of the %zu GPUs: ", machine->ngpus);
    show_verdict(out, verdict);
}

void lamprey_show_ranks_text(FILE *out, const struct lamprey_rank *ranks,
                             const struct lamprey_verdict *verdict)
{
    fprintf(out, "%-5s %-24s %-14s %-5s %-20s %s\n", "rank", "host", "GPU", "sm", "NVLinks (MB/s)",
            "fabric");
    for (size_t i = 0; i < verdict->nranks; i++) {
        const struct lamprey_domain_record *record = &ranks[i].record;
        char pci[LAMPREY_PCI_TEXT];
        char links[LAMPREY_SHOW_TEXT];
        char fabric[LAMPREY_SHOW_TEXT];
        fprintf(out, "%-5zu %-24s %-14s %-5s %-20s %s%s\n", i, ranks[i].host,
                lamprey_pci_text(record->pci_id, pci), known(ranks[i].sm),
                lamprey_show_links(&record->links, links),
                lamprey_show_fabric(&record->links, fabric),
                record->links.mig != 0 ? ", MIG on" : "");
    }
    fprintf(out, "\n%zu ranks: ", verdict->nranks);
    show_verdict(out, verdict);
}
