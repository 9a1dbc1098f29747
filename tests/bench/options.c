/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/bench/options.h"

#include <errno.h>
#include <getopt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/programs/reference.h"

#define DEFAULT_SIZES                                                                              \
    "256,512,1K,2K,4K,8K,16K,32K,64K,128K,256K,512K,1M,2M,4M,16M" /* 256 to 4 MiB, and 16 */

static const char usage[] =
    "usage: all_reduce_bench [OPTION]...\n"
    "Times ncclAllReduce with one rank a GPU; prints one JSON record per point.\n"
    "  --sizes=LIST            bytes of a message, suffix K or M\n"
    "                          (" DEFAULT_SIZES ")\n"
    "  --mode=LIST             of launch, graph, eager, host, decode (all of them)\n"
    "  --type=NAME             element type (bfloat16)\n"
    "  --op=NAME               sum, prod, max, min, avg (sum)\n"
    "  --ranks=N               (as many as there are GPUs, at most 8)\n"
    "  --threads, --processes  one process for all ranks, or one for each (processes)\n"
    "  --calls-per-graph=N     also the calls of an eager round (200)\n"
    "  --group=N               calls in a group, in graphs, eager and host (1: no group)\n"
    "  --rounds=N              measured replays (100)\n"
    "  --user-bytes=N          what a user kernel of --mode=decode writes (16M)\n"
    "  --registered            buffers registered as symmetric windows\n"
    "  --label=TEXT            the records' \"peer\" (nccl)\n"
    "  --deadline=SECONDS      (300)\n"
    "  --version               print NCCL's version only\n";

const char *bench_mode_name(enum bench_mode mode)
{
    static const char *const names[BENCH_MODES] = {"launch", "graph", "eager", "host", "decode"};
    return names[mode];
}

_Noreturn static void refuse(const char *option, const char *value, const char *why)
{
    fprintf(stderr, "all_reduce_bench: --%s=%s: %s\n", option, value, why);
    exit(2);
}

/* The positive number at text, with K or M; *end is what follows. value is the whole option. */
static size_t read_bytes(const char *option, const char *value, const char *text, char **end)
{
    errno = 0;
    unsigned long long number = strtoull(text, end, 10);
    unsigned shift = **end == 'K' ? 10 : **end == 'M' ? 20 : 0;
    *end += shift != 0;
    if (errno != 0 || *end == text || text[0] == '-' || number == 0 ||
        number > (UINT64_C(1) << 32 >> shift)) {
        refuse(option, value, "not a number of bytes up to 4096M, such as 256, 8K or 4M");
    }
    return (size_t)number << shift;
}

static int read_count(const char *option, const char *text)
{
    char *end = NULL;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 1 || value > 1000000) {
        refuse(option, text, "not a number from 1 to 1000000");
    }
    return (int)value;
}

static void read_sizes(struct bench_options *options, const char *list)
{
    const char *text = list;
    options->size_count = 0;
    for (;;) {
        char *end = NULL;
        if (options->size_count == BENCH_MAX_SIZES) {
            refuse("sizes", list, "too many");
        }
        options->sizes[options->size_count++] = read_bytes("sizes", list, text, &end);
        if (*end == '\0') {
            return;
        }
        if (*end != ',') {
            refuse("sizes", list, "not a list such as 256,8K,4M");
        }
        text = end + 1;
    }
}

static void read_modes(struct bench_options *options, const char *list)
{
    memset(options->modes, 0, sizeof options->modes);
    for (const char *text = list;;) {
        size_t length = strcspn(text, ",");
        int mode = 0;
        while (mode < BENCH_MODES && (strlen(bench_mode_name(mode)) != length ||
                                      strncmp(bench_mode_name(mode), text, length) != 0)) {
            mode++;
        }
        if (mode == BENCH_MODES) {
            refuse("mode", list, "not a list of launch, graph, eager, host, decode");
        }
        options->modes[mode] = true;
        if (text[length] == '\0') {
            return;
        }
        text += length + 1;
    }
}

static ncclDataType_t read_type(const char *name)
{
    for (int type = 0; type < (int)ncclNumTypes; type++) {
        if (strcmp(reference_type_name(type), name) == 0) {
            return type;
        }
    }
    refuse("type", name, "not an element type, such as bfloat16");
}

static ncclRedOp_t read_op(const char *name)
{
    for (int op = 0; op < (int)ncclNumOps; op++) {
        if (strcmp(reference_op_name(op), name) == 0) {
            return op;
        }
    }
    refuse("op", name, "not one of sum, prod, max, min, avg");
}

/* It goes into JSON and file names as it is. */
static const char *read_label(const char *label)
{
    size_t plain =
        strspn(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_");
    if (label[0] == '\0' || label[plain] != '\0') {
        refuse("label", label, "only letters, digits, '.', '-' and '_'");
    }
    return label;
}

static void check_sizes(struct bench_options *options)
{
    size_t element = reference_type_size(options->type);
    for (size_t i = 0; i < options->size_count; i++) {
        if (options->sizes[i] % element != 0) {
            char text[32];
            snprintf(text, sizeof text, "%zu", options->sizes[i]);
            refuse("sizes", text, "not a whole number of elements");
        }
        if (options->sizes[i] > options->largest) {
            options->largest = options->sizes[i];
        }
    }
}

enum choice {
    SIZES = 1,
    MODE,
    TYPE,
    OP,
    RANKS,
    THREADS,
    PROCESSES,
    CALLS,
    GROUP,
    ROUNDS,
    USER_BYTES,
    REGISTERED,
    LABEL,
    DEADLINE,
    VERSION,
    HELP
};

static const struct option names[] = {
    {"sizes", required_argument, NULL, SIZES},
    {"mode", required_argument, NULL, MODE},
    {"type", required_argument, NULL, TYPE},
    {"op", required_argument, NULL, OP},
    {"ranks", required_argument, NULL, RANKS},
    {"threads", no_argument, NULL, THREADS},
    {"processes", no_argument, NULL, PROCESSES},
    {"calls-per-graph", required_argument, NULL, CALLS},
    {"group", required_argument, NULL, GROUP},
    {"rounds", required_argument, NULL, ROUNDS},
    {"user-bytes", required_argument, NULL, USER_BYTES},
    {"registered", no_argument, NULL, REGISTERED},
    {"label", required_argument, NULL, LABEL},
    {"deadline", required_argument, NULL, DEADLINE},
    {"version", no_argument, NULL, VERSION},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

static void read_option(struct bench_options *options, int option)
{
    char *end = NULL;
    switch (option) {
    case SIZES:
        read_sizes(options, optarg);
        break;
    case MODE:
        read_modes(options, optarg);
        break;
    case TYPE:
        options->type = read_type(optarg);
        break;
    case OP:
        options->op = read_op(optarg);
        break;
    case RANKS:
        options->ranks = read_count("ranks", optarg);
        break;
    case THREADS:
        options->threads = true;
        break;
    case PROCESSES:
        options->threads = false;
        break;
    case CALLS:
        options->calls = read_count("calls-per-graph", optarg);
        break;
    case GROUP:
        options->group = read_count("group", optarg);
        break;
    case ROUNDS:
        options->rounds = read_count("rounds", optarg);
        break;
    case USER_BYTES:
        options->user_bytes = read_bytes("user-bytes", optarg, optarg, &end);
        if (*end != '\0' || options->user_bytes % 4 != 0) {
            refuse("user-bytes", optarg, "not a multiple of 4 bytes");
        }
        break;
    case REGISTERED:
        options->registered = true;
        break;
    case LABEL:
        options->label = read_label(optarg);
        break;
    case DEADLINE:
        options->deadline_s = read_count("deadline", optarg);
        break;
    case VERSION:
        options->version_only = true;
        break;
    case HELP:
        fputs(usage, stdout);
        exit(0);
    default: /* getopt has said which */
        fputs(usage, stderr);
        exit(2);
    }
}

void bench_options_read(struct bench_options *options, int argc, char **argv)
{
    *options = (struct bench_options){
        .type = ncclBfloat16,
        .op = ncclSum,
        .calls = 200,
        .group = 1,
        .rounds = 100,
        .user_bytes = (size_t)16 << 20,
        .label = "nccl",
        .deadline_s = 300,
    };
    memset(options->modes, true, sizeof options->modes);
    read_sizes(options, DEFAULT_SIZES);
    for (int option = 0; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        read_option(options, option);
    }
    if (optind < argc) {
        fprintf(stderr, "all_reduce_bench: %s: not an option\n%s", argv[optind], usage);
        exit(2);
    }
    check_sizes(options);
}
