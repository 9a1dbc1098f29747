/* SPDX-License-Identifier: Apache-2.0 */
/* lamprey-topo: prints the GPUs and NVLinks of this machine or of an hwloc XML file, and whether
 * ranks on all of them would be served; writes the XML by which a machine can be reproduced. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "topology/domain.h"
#include "topology/load.h"
#include "topology/pci.h"

enum { EXIT_USAGE = 2 };

static const char usage[] =
    "usage: lamprey-topo [--xml FILE | --export FILE]\n"
    "  --xml FILE     describe the machine in an hwloc XML file, not this one\n"
    "  --export FILE  write this machine, with what NVML says of its links, as hwloc XML\n";

static void describe_links(const struct lamprey_gpu_links *links, char *text, size_t size) {
    switch ((enum lamprey_nvlink_kind)links->kind) {
    case LAMPREY_NVLINK_UNKNOWN:
        snprintf(text, size, "unknown");
        return;
    case LAMPREY_NVLINK_NONE:
        snprintf(text, size, "none");
        return;
    case LAMPREY_NVLINK_DIRECT:
        snprintf(text, size, "%u x %u, %u peers", links->links_active, links->link_mbps,
                 links->peer_count);
        return;
    case LAMPREY_NVLINK_SWITCH:
        snprintf(text, size, "%u x %u, switch", links->links_active, links->link_mbps);
        return;
    }
}

static void describe_fabric(const struct lamprey_gpu_links *links, char *text, size_t size) {
    static const uint8_t no_cluster[16];
    static const char *const states[] = {"-", "not started", "in progress"};
    if (links->fabric_state < sizeof(states) / sizeof(*states)) {
        snprintf(text, size, "%s", states[links->fabric_state]);
    } else if (links->fabric_status != 0) {
        snprintf(text, size, "refused (%u)", links->fabric_status);
    } else if (memcmp(links->fabric_uuid, no_cluster, sizeof(no_cluster)) == 0) {
        snprintf(text, size, "this host");
    } else {
        const uint8_t *uuid = links->fabric_uuid;
        snprintf(text, size, "%02x%02x%02x%02x.. clique %u, health 0x%x", uuid[0], uuid[1], uuid[2],
                 uuid[3], links->fabric_clique, links->fabric_health);
    }
}

static void print_gpus(const struct lamprey_machine *machine) {
    printf("%-4s %-14s %-24s %-5s %-5s %-4s %-20s %s\n", "GPU", "PCI id", "model", "sm", "NUMA",
           "MIG", "NVLinks (MB/s)", "fabric");
    for (size_t i = 0; i < machine->ngpus; i++) {
        const struct lamprey_machine_gpu *gpu = &machine->gpus[i];
        char pci[LAMPREY_PCI_TEXT];
        char numa[16] = "-";
        char links[64] = "";
        char fabric[80] = "";
        if (gpu->numa >= 0) {
            snprintf(numa, sizeof(numa), "%d", gpu->numa);
        }
        describe_links(&gpu->links, links, sizeof(links));
        describe_fabric(&gpu->links, fabric, sizeof(fabric));
        printf("%-4zu %-14s %-24s %-5s %-5s %-4s %-20s %s\n", i, lamprey_pci_text(gpu->pci_id, pci),
               gpu->model[0] != '\0' ? gpu->model : "?", gpu->sm[0] != '\0' ? gpu->sm : "?", numa,
               gpu->links.mig != 0 ? "on" : "off", links, fabric);
    }
}

static void print_pairs(const struct lamprey_machine *machine) {
    static const char *const kinds[] = {
        [LAMPREY_PAIR_UNKNOWN] = "?", [LAMPREY_PAIR_SELF] = "-",  [LAMPREY_PAIR_DIRECT] = "d",
        [LAMPREY_PAIR_SWITCH] = "s",  [LAMPREY_PAIR_PCIE] = "no",
    };
    printf("\nNVLink between GPUs, MB/s in one direction (d: direct, s: by switches):\n%-4s", "");
    for (size_t i = 0; i < machine->ngpus; i++) {
        printf(" %9zu", i);
    }
    for (size_t i = 0; i < machine->ngpus; i++) {
        printf("\n%-4zu", i);
        for (size_t j = 0; j < machine->ngpus; j++) {
            const struct lamprey_machine_pair *pair = &machine->pairs[i * machine->ngpus + j];
            char cell[24];
            if (pair->mbps != 0) {
                snprintf(cell, sizeof(cell), "%u%s", pair->mbps, kinds[pair->kind]);
            } else {
                snprintf(cell, sizeof(cell), "%s", kinds[pair->kind]);
            }
            printf(" %9s", cell);
        }
    }
    printf("\n");
}

/* As if one rank sat on each GPU. */
static int print_decision(const struct lamprey_machine *machine) {
    struct lamprey_domain_record *records = calloc(machine->ngpus, sizeof(*records));
    if (records == NULL) {
        fprintf(stderr, "lamprey-topo: out of memory\n");
        return EXIT_FAILURE;
    }
    for (size_t i = 0; i < machine->ngpus; i++) {
        records[i].links = machine->gpus[i].links;
        records[i].pci_id = machine->gpus[i].pci_id;
        records[i].host_id[0] = 1;
    }
    char reason[256];
    enum lamprey_domain domain =
        lamprey_domain_decide(records, machine->ngpus, reason, sizeof(reason));
    printf("\nOne rank on each of the %zu GPUs: NVLink domain: %s%s%s\n", machine->ngpus,
           lamprey_domain_name(domain), reason[0] != '\0' ? ": " : "", reason);
    free(records);
    return EXIT_SUCCESS;
}

static int print_machine(const struct lamprey_machine *machine, const char *note) {
    printf("NVLink information: %s\n", machine->probe[0] != '\0' ? machine->probe
                                       : note[0] != '\0'
                                           ? note
                                           : "none: the topology carries no annotation");
    if (machine->ngpus == 0) {
        printf("No NVIDIA GPU.\n");
        return EXIT_SUCCESS;
    }
    print_gpus(machine);
    print_pairs(machine);
    return print_decision(machine);
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"xml", required_argument, NULL, 'x'},
        {"export", required_argument, NULL, 'e'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    const char *xml = NULL;
    const char *export = NULL;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'x':
            xml = optarg;
            break;
        case 'e':
            export = optarg;
            break;
        case 'h':
            fputs(usage, stdout);
            return EXIT_SUCCESS;
        default:
            fputs(usage, stderr);
            return EXIT_USAGE;
        }
    }
    if (optind != argc || (xml != NULL && export != NULL)) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }

    char note_text[512] = "";
    char reason_text[512] = "";
    const struct lamprey_reason note = {.text = note_text, .size = sizeof(note_text)};
    const struct lamprey_reason reason = {.text = reason_text, .size = sizeof(reason_text)};
    struct lamprey_machine *machine = NULL;
    int result = export != NULL ? lamprey_load_export(LAMPREY_LOAD_NVML, export, &note, &reason)
                 : xml != NULL  ? lamprey_load_file(xml, &machine, &reason)
                                : lamprey_load_live(LAMPREY_LOAD_NVML, &machine, &note, &reason);
    if (result != 0) {
        fprintf(stderr, "lamprey-topo: %s\n", reason_text);
        return EXIT_FAILURE;
    }
    if (export != NULL && note_text[0] != '\0') {
        fprintf(stderr, "lamprey-topo: %s says nothing of NVLinks: %s\n", export, note_text);
    }
    int status = machine != NULL ? print_machine(machine, note_text) : EXIT_SUCCESS;
    lamprey_machine_destroy(machine);
    return status;
}
