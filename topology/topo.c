/* SPDX-License-Identifier: Apache-2.0 */
/* lamprey-topo: shows the GPUs and NVLinks of this machine or of an hwloc XML file, and whether
 * ranks on them would be served; writes the XML by which a machine can be reproduced. */
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "topology/load.h"
#include "topology/ranks.h"
#include "topology/show.h"

enum { EXIT_USAGE = 2 };

static const char usage[] =
    "usage: lamprey topo [--xml FILE] [--json] [--svg FILE] [--export FILE]\n"
    "       lamprey topo [--json] --ranks FILE [--ranks FILE ...]\n"
    "Shows GPUs, NVLinks, bandwidth between GPUs and the fabric, and whether a communicator with\n"
    "one rank on each GPU would be served.\n"
    "  --xml FILE     read the machine from an hwloc XML file: not this one\n"
    "  --export FILE  write the machine as hwloc XML, with what NVML says of its links\n"
    "  --svg FILE     write a picture of the machine\n"
    "  --json         print JSON\n"
    "  --ranks FILE   explain the decision for ranks in place of a machine. FILE is an hwloc XML\n"
    "                 file (one host, a rank on each GPU) or a list with a line each:\n"
    "                   machine FILE [gpus=0,2] [times=18] [host=NAME]\n"
    "                   rank pci=0000:18:00.0 [host=NAME] [kind=unknown|none|direct|switch]\n"
    "                        [links=18] [mbps=26562] [peers=PCI,PCI] [sm=9.0] [mig=1] [state=3]\n"
    "                        [status=0] [cluster=HEX32] [clique=7] [health=0xaa] [share=1]\n"
    "                        [off=1]\n"
    "Prints text unless it is told to write a file. Exit status: 0 done, 1 failed, 2 bad usage.\n";

struct arguments {
    const char *xml;
    const char *export;
    const char *svg;
    bool json;
    char **rank_files; /* of main's argv */
    int nrank_files;
};

static int complain(const char *text)
{
    fprintf(stderr, "lamprey-topo: %s\n", text);
    return EXIT_FAILURE;
}

/* Whether all of it went out. */
static int finish(FILE *out, const char *name)
{
    bool failed = ferror(out) != 0;
    failed = (out == stdout ? fflush(out) : fclose(out)) != 0 || failed;
    if (failed) {
        fprintf(stderr, "lamprey-topo: cannot write %s: %s\n", name, strerror(errno));
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

static int write_picture(const char *path, const struct lamprey_machine *machine,
                         const struct lamprey_verdict *verdict)
{
    FILE *out = fopen(path, "we");
    if (out == NULL) {
        fprintf(stderr, "lamprey-topo: cannot write %s: %s\n", path, strerror(errno));
        return EXIT_FAILURE;
    }
    int result = lamprey_show_machine_svg(out, machine, verdict);
    int status = finish(out, path);
    return result != 0 ? complain(strerror(result)) : status;
}

static int show_machine(const struct arguments *arguments, const struct lamprey_machine *machine,
                        const char *note)
{
    struct lamprey_verdict verdict;
    if (lamprey_verdict_of_machine(machine, &verdict) != 0) {
        return complain("out of memory");
    }
    if (arguments->svg != NULL && write_picture(arguments->svg, machine, &verdict) != 0) {
        return EXIT_FAILURE;
    }
    if (arguments->json) {
        lamprey_show_machine_json(stdout, machine, note, &verdict);
    } else if (arguments->svg == NULL && arguments->export == NULL) {
        lamprey_show_machine_text(stdout, machine, note, &verdict);
    }
    return finish(stdout, "the output");
}

static int run_machine(const struct arguments *arguments)
{
    char note_text[512] = "";
    char reason_text[512] = "";
    const struct lamprey_reason note = {.text = note_text, .size = sizeof(note_text)};
    const struct lamprey_reason reason = {.text = reason_text, .size = sizeof(reason_text)};
    struct lamprey_machine *machine = NULL;
    int result = lamprey_load(arguments->xml, LAMPREY_LOAD_NVML, arguments->export, &machine, &note,
                              &reason);
    if (result != 0) {
        return complain(reason_text);
    }
    if (arguments->export != NULL && note_text[0] != '\0') {
        fprintf(stderr, "lamprey-topo: %s says nothing of NVLinks: %s\n", arguments->export,
                note_text);
    }
    int status = show_machine(arguments, machine, note_text);
    lamprey_machine_destroy(machine);
    return status;
}

static int run_ranks(const struct arguments *arguments)
{
    char reason_text[512] = "";
    const struct lamprey_reason reason = {.text = reason_text, .size = sizeof(reason_text)};
    struct lamprey_rank_list list = {0};
    struct lamprey_verdict verdict;
    int status = EXIT_SUCCESS;
    for (int i = 0; status == EXIT_SUCCESS && i < arguments->nrank_files; i++) {
        if (lamprey_ranks_read(arguments->rank_files[i], &list, &reason) != 0) {
            status = complain(reason_text);
        }
    }
    if (status == EXIT_SUCCESS && list.n == 0) {
        status = complain("the files name no rank");
    }
    if (status == EXIT_SUCCESS && lamprey_verdict_give(list.ranks, list.n, &verdict) != 0) {
        status = complain("out of memory");
    }
    if (status == EXIT_SUCCESS) {
        if (arguments->json) {
            lamprey_show_ranks_json(stdout, list.ranks, &verdict);
        } else {
            lamprey_show_ranks_text(stdout, list.ranks, &verdict);
        }
        status = finish(stdout, "the output");
    }
    free(list.ranks);
    return status;
}

static int refuse(void)
{
    fputs(usage, stderr);
    return EXIT_USAGE;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"xml", required_argument, NULL, 'x'},
        {"export", required_argument, NULL, 'e'},
        {"svg", required_argument, NULL, 's'},
        {"json", no_argument, NULL, 'j'},
        {"ranks", required_argument, NULL, 'r'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    /* The plugin's, parts of which are in here. */
    unsetenv("LAMPREY_STATS");
    struct arguments arguments = {.rank_files = calloc((size_t)argc, sizeof(char *))};
    if (arguments.rank_files == NULL) {
        return complain("out of memory");
    }
    int status = -1;
    for (int option; status < 0 && (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'x':
            arguments.xml = optarg;
            break;
        case 'e':
            arguments.export = optarg;
            break;
        case 's':
            arguments.svg = optarg;
            break;
        case 'j':
            arguments.json = true;
            break;
        case 'r':
            arguments.rank_files[arguments.nrank_files++] = optarg;
            break;
        case 'h':
            fputs(usage, stdout);
            status = EXIT_SUCCESS;
            break;
        default:
            status = refuse();
        }
    }
    bool of_machine = arguments.xml != NULL || arguments.export != NULL || arguments.svg != NULL;
    if (status < 0) {
        status = optind != argc || (of_machine && arguments.nrank_files > 0) ? refuse()
                 : arguments.nrank_files > 0                                 ? run_ranks(&arguments)
                                             : run_machine(&arguments);
    }
    free(arguments.rank_files);
    return status;
}
