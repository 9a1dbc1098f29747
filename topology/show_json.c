/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "topology/pci.h"
#include "topology/show.h"

/* Length of the UTF-8 character at text; 0 where there is none: such bytes come from files, and go
 * out as the replacement character, so that the whole stays valid. */
static size_t utf8_length(const unsigned char *text)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = *text < 0x80             ? 1
                    : (*text & 0xe0) == 0xc0 ? 2
                    : (*text & 0xf0) == 0xe0 ? 3
                    : (*text & 0xf8) == 0xf0 ? 4
                                             : 0;
    uint32_t character = length > 1 ? *text & (0x7fu >> length) : *text;
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
        character = character << 6 | (text[i] & 0x3f);
    }
    bool surrogate = character >= 0xd800 && character < 0xe000;
    return character < smallest[length] || character > 0x10ffff || surrogate ? 0 : length;
}

static void put_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (const unsigned char *at = (const unsigned char *)text; *at != '\0';) {
        size_t length = utf8_length(at);
        if (length == 0) {
            fputs("\\ufffd", out);
            length = 1;
        } else if (*at == '"' || *at == '\\') {
            fprintf(out, "\\%c", *at);
        } else if (*at < 0x20 || *at == 0x7f) {
            fprintf(out, "\\u%04x", *at);
        } else {
            fwrite(at, 1, length, out);
        }
        at += length;
    }
    fputc('"', out);
}

static void put_text(FILE *out, const char *name, const char *text)
{
    fprintf(out, "\"%s\": ", name);
    if (text[0] != '\0') {
        put_string(out, text);
    } else {
        fputs("null", out);
    }
}

static void put_pci(FILE *out, uint64_t id)
{
    char text[LAMPREY_PCI_TEXT];
    put_string(out, lamprey_pci_text(id, text));
}

static void put_links(FILE *out, const struct lamprey_gpu_links *links)
{
    static const char *const kinds[] = {"unknown", "none", "direct", "switch"};
    fprintf(out, "\"nvlink\": {\"kind\": \"%s\", \"active\": %u, \"link_mbps\": %u, \"peers\": [",
            kinds[links->kind], links->links_active, links->link_mbps);
    for (uint32_t i = 0; i < links->peer_count; i++) {
        fputs(i > 0 ? ", " : "", out);
        put_pci(out, links->peers[i]);
    }
    fprintf(out, "]}, \"fabric\": {\"state\": %u, \"status\": %u, \"cluster\": \"",
            links->fabric_state, links->fabric_status);
    for (size_t i = 0; i < sizeof(links->fabric_uuid); i++) {
        fprintf(out, "%02x", links->fabric_uuid[i]);
    }
    fprintf(out, "\", \"clique\": %u, \"health\": %u, \"chassis\": %u}, \"mig\": %s",
            links->fabric_clique, links->fabric_health, links->chassis,
            links->mig != 0 ? "true" : "false");
}

static void put_verdict(FILE *out, const struct lamprey_verdict *verdict)
{
    fprintf(out, "  \"decision\": {\"ranks\": %zu, \"domain\": \"%s\", ", verdict->nranks,
            lamprey_domain_name(verdict->domain));
    put_text(out, "domain_reason", verdict->domain_reason);
    fprintf(out, ", \"served\": %s, \"max_bytes\": %" PRIu64 ", ",
            verdict->served ? "true" : "false", verdict->max_bytes);
    put_text(out, "reason", verdict->reason);
    fputs("}\n", out);
}

static void put_gpu(FILE *out, const struct lamprey_machine_gpu *gpu)
{
    fputs("    {\"pci\": ", out);
    put_pci(out, gpu->pci_id);
    fputs(", ", out);
    put_text(out, "uuid", gpu->uuid);
    fputs(", ", out);
    put_text(out, "model", gpu->model);
    fputs(", ", out);
    put_text(out, "sm", gpu->sm);
    if (gpu->numa >= 0) {
        fprintf(out, ", \"numa\": %d, ", gpu->numa);
    } else {
        fputs(", \"numa\": null, ", out);
    }
    put_links(out, &gpu->links);
    fputs("}", out);
}

static void put_pairs(FILE *out, const struct lamprey_machine *machine)
{
    static const char *const kinds[] = {
        [LAMPREY_PAIR_UNKNOWN] = "unknown", [LAMPREY_PAIR_SELF] = "self",
        [LAMPREY_PAIR_DIRECT] = "direct",   [LAMPREY_PAIR_SWITCH] = "switch",
        [LAMPREY_PAIR_PCIE] = "none",
    };
    size_t n = machine->ngpus;
    for (size_t i = 0; i < n; i++) {
        fprintf(out, "%s    [", i > 0 ? ",\n" : "");
        for (size_t j = 0; j < n; j++) {
            const struct lamprey_machine_pair *pair = &machine->pairs[i * n + j];
            fprintf(out, "%s{\"kind\": \"%s\", \"mbps\": %u}", j > 0 ? ", " : "", kinds[pair->kind],
                    pair->mbps);
        }
        fputs("]", out);
    }
    fputs(n > 0 ? "\n" : "", out);
}

void lamprey_show_machine_json(FILE *out, const struct lamprey_machine *machine, const char *note,
                               const struct lamprey_verdict *verdict)
{
    fputs("{\n  ", out);
    put_text(out, "probe", machine->probe);
    fputs(",\n  ", out);
    put_text(out, "note", note);
    fputs(",\n  \"gpus\": [\n", out);
    for (size_t i = 0; i < machine->ngpus; i++) {
        fputs(i > 0 ? ",\n" : "", out);
        put_gpu(out, &machine->gpus[i]);
    }
    fputs(machine->ngpus > 0 ? "\n  ],\n  \"pairs\": [\n" : "  ],\n  \"pairs\": [\n", out);
    put_pairs(out, machine);
    fputs("  ],\n", out);
    put_verdict(out, verdict);
    fputs("}\n", out);
}

void lamprey_show_ranks_json(FILE *out, const struct lamprey_rank *ranks,
                             const struct lamprey_verdict *verdict)
{
    fputs("{\n  \"ranks\": [\n", out);
    for (size_t i = 0; i < verdict->nranks; i++) {
        fprintf(out, "%s    {", i > 0 ? ",\n" : "");
        put_text(out, "host", ranks[i].host);
        fputs(", \"pci\": ", out);
        put_pci(out, ranks[i].record.pci_id);
        fputs(", ", out);
        put_text(out, "sm", ranks[i].sm);
        fputs(", ", out);
        put_links(out, &ranks[i].record.links);
        fputs("}", out);
    }
    fputs("\n  ],\n", out);
    put_verdict(out, verdict);
    fputs("}\n", out);
}
