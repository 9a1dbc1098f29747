/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/config.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "plugin/log.h"

extern char **environ;

enum kind {
    KIND_NUMBER, /* min..max, suffixes K and M */
    KIND_CHOICE, /* one of choices, its index is the value */
    KIND_TEXT,
};

struct row {
    struct lamprey_setting setting;
    enum kind kind;
    size_t offset;
    int64_t min;
    int64_t max;
    const char *choices[5];
};

#define NUMBER(name, default_text, field, min, max, help)                                          \
    {                                                                                              \
        {name, default_text, help}, KIND_NUMBER, offsetof(struct lamprey_config, field), min, max, \
        {                                                                                          \
            NULL                                                                                   \
        }                                                                                          \
    }
#define CHOICE(name, default_text, field, help, ...)                                               \
    {                                                                                              \
        {name, default_text, help}, KIND_CHOICE, offsetof(struct lamprey_config, field), 0, 0,     \
        {                                                                                          \
            __VA_ARGS__, NULL                                                                      \
        }                                                                                          \
    }
#define TEXT(name, field, help)                                                                    \
    {                                                                                              \
        {name, "", help}, KIND_TEXT, offsetof(struct lamprey_config, field), 0, 0,                 \
        {                                                                                          \
            NULL                                                                                   \
        }                                                                                          \
    }

static const struct row rows[] = {
    NUMBER("LAMPREY_DISABLE", "0", disable, 0, 1,
           "1: serve nothing; the rank says so to its peers, and NCCL serves all of them"),
    NUMBER("LAMPREY_MAX_BYTES", "-1", max_bytes, -1, 64 << 20,
           "Largest message served, in bytes (suffix K or M); -1: by world size. Must be equal on "
           "all ranks"),
    NUMBER("LAMPREY_MAX_CTAS", "128", max_ctas, 1, 1024,
           "Most CTAs a kernel uses; less where the GPU holds fewer. Must be equal on all ranks"),
    CHOICE(
        "LAMPREY_ALGORITHM", "auto", algorithm,
        "auto (by size and ranks); one_shot (every rank sends everything to all); two_shot (every "
        "rank reduces its share and sends it to all). Must be equal on all ranks",
        "auto", "one_shot", "two_shot"),
    CHOICE("LAMPREY_PDL", "wait", pdl,
           "Programmatic dependent launch: off; wait (start early, wait for the stream's earlier "
           "work before anything "
           "else); signal (also let the next kernel start early: only where every neighbour waits "
           "before it reads)",
           "off", "wait", "signal"),
    CHOICE("LAMPREY_HOOK", "auto", hook,
           "How NCCL's functions are redirected: text (their first bytes); got (callers' slots, "
           "misses some callers); "
           "auto (text; where code can't be written, got, and then nothing is served)",
           "auto", "text", "got"),
    NUMBER("LAMPREY_TIMEOUT", "0", timeout, 0, 86400,
           "Seconds that a call waits for a peer before ncclCommGetAsyncError reports "
           "ncclRemoteError; 0: for ever, as NCCL does"),
    NUMBER(
        "LAMPREY_CHECK", "0", check, 0, 1,
        "1 on any rank: compare the count, type and operator of every all-reduce over the ranks "
        "before it starts; where they differ, ncclCommGetAsyncError reports ncclInvalidUsage and "
        "the log says how. Slower: for finding such errors"),
    NUMBER("LAMPREY_STATS", "0", stats, 0, 1,
           "1: print the counters to stderr when the process ends"),
    NUMBER("LAMPREY_SHARE_GPU", "0", share_gpu, 0, 1,
           "1: serve communicators that have several ranks on one GPU (for tests)"),
    TEXT("LAMPREY_TOPOLOGY", topology, "An hwloc XML file that stands for this machine"),
    TEXT("LAMPREY_TUNER_PLUGIN", tuner_plugin,
         "A tuner plugin to chain to, named as for NCCL_TUNER_PLUGIN"),
    TEXT("LAMPREY_ENV_PLUGIN", env_plugin,
         "An env plugin to chain to, named as for NCCL_ENV_PLUGIN"),
};

#define ROWS (sizeof rows / sizeof rows[0])

static bool parse_number(const char *text, int64_t min, int64_t max, int64_t *value)
{
    char *end = NULL;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (end == text || errno) {
        return false;
    }
    int shift = *end == 'K' || *end == 'k' ? 10 : *end == 'M' || *end == 'm' ? 20 : 0;
    end += shift != 0;
    if (*end || number > INT64_MAX >> shift || number < INT64_MIN >> shift) {
        return false;
    }
    number *= 1LL << shift;
    if (number < min || number > max) {
        return false;
    }
    *value = number;
    return true;
}

static bool parse_choice(const char *text, const char *const *choices, int64_t *value)
{
    for (int64_t i = 0; choices[i]; i++) {
        if (strcasecmp(text, choices[i]) == 0) {
            *value = i;
            return true;
        }
    }
    return false;
}

static bool parse_row(const struct row *row, const char *text, struct lamprey_config *config)
{
    void *field = (char *)config + row->offset;
    switch (row->kind) {
    case KIND_NUMBER:
        return parse_number(text, row->min, row->max, field);
    case KIND_CHOICE:
        return parse_choice(text, row->choices, field);
    case KIND_TEXT:
        *(const char **)field = *text ? text : NULL;
        return true;
    }
    return false;
}

static const struct row *find_row(const char *name, size_t length)
{
    for (size_t i = 0; i < ROWS; i++) {
        if (strlen(rows[i].setting.name) == length &&
            memcmp(rows[i].setting.name, name, length) == 0) {
            return &rows[i];
        }
    }
    return NULL;
}

int lamprey_config_parse(const char *const *environment, struct lamprey_config *config)
{
    static const char prefix[] = "LAMPREY_";
    static const char *const reserved[] = {"LAMPREY_EMULATOR", "LAMPREY_TEST"};
    int warnings = 0;
    memset(config, 0, sizeof *config);
    for (size_t i = 0; i < ROWS; i++) {
        parse_row(&rows[i], rows[i].setting.default_text, config);
    }
    for (; *environment; environment++) {
        const char *name = *environment;
        const char *equals = strchr(name, '=');
        if (!equals || strncmp(name, prefix, sizeof prefix - 1) != 0 ||
            strncmp(name, reserved[0], strlen(reserved[0])) == 0 ||
            strncmp(name, reserved[1], strlen(reserved[1])) == 0) {
            continue;
        }
        const struct row *row = find_row(name, (size_t)(equals - name));
        if (!row) {
            lamprey_warn("unknown setting %.*s ignored", (int)(equals - name), name);
            warnings++;
        } else if (!parse_row(row, equals + 1, config)) {
            lamprey_warn("%s=%s makes no sense; using the default %s", row->setting.name,
                         equals + 1, row->setting.default_text);
            warnings++;
        }
    }
    return warnings;
}

static struct lamprey_config current;

static void read_environment(void)
{
    static const char *const empty[] = {NULL};
    lamprey_config_parse(environ ? (const char *const *)environ : empty, &current);
    /* The environment's strings may go away. */
    current.topology = current.topology ? strdup(current.topology) : NULL;
    current.tuner_plugin = current.tuner_plugin ? strdup(current.tuner_plugin) : NULL;
    current.env_plugin = current.env_plugin ? strdup(current.env_plugin) : NULL;
}

const struct lamprey_config *lamprey_config_get(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_environment);
    return &current;
}

const struct lamprey_setting *lamprey_config_row(size_t index)
{
    return index < ROWS ? &rows[index].setting : NULL;
}
