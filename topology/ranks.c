/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "topology/ranks.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "topology/load.h"
#include "topology/pci.h"

#define BLANKS " \t\r\n"

/* One list being read. */
struct source {
    const char *path;
    size_t line;
    struct lamprey_rank_list *list;
    const struct lamprey_reason *reason;
};

__attribute__((format(printf, 2, 3))) static int fail(const struct source *source,
                                                      const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    return lamprey_reason_give(source->reason, EIO, "%s, line %zu: %s", source->path, source->line,
                               text);
}

static bool read_number(const char *text, uint32_t *value)
{
    char *end = NULL;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 0);
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0 || number > UINT32_MAX) {
        return false;
    }
    *value = (uint32_t)number;
    return true;
}

/* The host of that name: one that has ranks already, or a new one. */
static uint32_t host_of(struct lamprey_rank_list *list, const char *name)
{
    for (size_t i = 0; i < list->n; i++) {
        if (strcmp(list->ranks[i].host, name) == 0) {
            uint32_t host = 0;
            memcpy(&host, list->ranks[i].record.host_id + 1, sizeof(host));
            return host;
        }
    }
    return ++list->hosts;
}

static bool host_is_known(const struct lamprey_rank_list *list, const char *name)
{
    for (size_t i = 0; i < list->n; i++) {
        if (strcmp(list->ranks[i].host, name) == 0) {
            return true;
        }
    }
    return false;
}

/* A name for one more host: that of the file, with a number from the second one on. */
static void name_host(const struct lamprey_rank_list *list, const char *path, char *name,
                      size_t size)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    const char *dot = strrchr(base, '.');
    int length = dot != NULL && dot > base ? (int)(dot - base) : (int)strlen(base);
    length = length < (int)size - 16 ? length : (int)size - 16;
    snprintf(name, size, "%.*s", length, base);
    for (unsigned number = 2; host_is_known(list, name); number++) {
        snprintf(name, size, "%.*s#%u", length, base, number);
    }
}

static int append(struct lamprey_rank_list *list, const struct lamprey_rank *rank,
                  const struct lamprey_reason *reason)
{
    struct lamprey_rank *more = realloc(list->ranks, (list->n + 1) * sizeof(*more));
    if (more == NULL) {
        return lamprey_reason_give(reason, ENOMEM, "out of memory for %zu ranks", list->n + 1);
    }
    list->ranks = more;
    list->ranks[list->n++] = *rank;
    return 0;
}

static int append_gpu(struct lamprey_rank_list *list, const struct lamprey_machine *machine,
                      size_t gpu, const char *name, const struct lamprey_reason *reason)
{
    struct lamprey_rank rank;
    lamprey_rank_on(&machine->gpus[gpu], host_of(list, name), &rank);
    snprintf(rank.host, sizeof(rank.host), "%s", name);
    return append(list, &rank, reason);
}

/* gpus NULL: all of them. */
static int append_machine(const struct source *source, const struct lamprey_machine *machine,
                          const char *gpus, const char *name)
{
    int result = 0;
    if (gpus == NULL) {
        for (size_t i = 0; result == 0 && i < machine->ngpus; i++) {
            result = append_gpu(source->list, machine, i, name, source->reason);
        }
        return result;
    }
    char copy[512];
    char *rest = NULL;
    snprintf(copy, sizeof(copy), "%s", gpus);
    for (char *word = strtok_r(copy, ",", &rest); result == 0 && word != NULL;
         word = strtok_r(NULL, ",", &rest)) {
        uint32_t gpu = 0;
        if (!read_number(word, &gpu) || gpu >= machine->ngpus) {
            return fail(source, "gpus=%s: there is no GPU \"%s\" among %zu", gpus, word,
                        machine->ngpus);
        }
        result = append_gpu(source->list, machine, gpu, name, source->reason);
    }
    return result;
}

static const char *value_of(const char *word, const char *key)
{
    size_t length = strlen(key);
    return strncmp(word, key, length) == 0 && word[length] == '=' ? word + length + 1 : NULL;
}

static int read_host(const struct source *source, const char *value, char *name, size_t size)
{
    if (*value == '\0' || (size_t)snprintf(name, size, "%s", value) >= size) {
        return fail(source, "host=%s: a name of 1 to %zu characters is needed", value, size - 1);
    }
    return 0;
}

static int read_machine(const struct source *source, char *rest)
{
    const char *file = strtok_r(NULL, BLANKS, &rest);
    const char *gpus = NULL;
    const char *value = NULL;
    char name[sizeof(((struct lamprey_rank *)0)->host)] = "";
    uint32_t times = 1;
    if (file == NULL) {
        return fail(source, "machine needs an XML file");
    }
    for (const char *word = NULL; (word = strtok_r(NULL, BLANKS, &rest)) != NULL;) {
        int result = 0;
        if ((value = value_of(word, "gpus")) != NULL) {
            gpus = value;
        } else if ((value = value_of(word, "host")) != NULL) {
            result = read_host(source, value, name, sizeof(name));
        } else if ((value = value_of(word, "times")) == NULL || !read_number(value, &times) ||
                   times == 0 || times > 4096) {
            return fail(source, "\"%s\" is none of gpus=I,J, times=1..4096, host=NAME", word);
        }
        if (result != 0) {
            return result;
        }
    }
    if (times > 1 && name[0] != '\0') {
        return fail(source, "times=%u hosts can't have one name, %s", times, name);
    }

    char path[PATH_MAX];
    const char *slash = strrchr(source->path, '/');
    int folder = file[0] != '/' && slash != NULL ? (int)(slash + 1 - source->path) : 0;
    snprintf(path, sizeof(path), "%.*s%s", folder, source->path, file);
    struct lamprey_machine *machine = NULL;
    int result = lamprey_load_file(path, &machine, source->reason);
    for (uint32_t i = 0; result == 0 && i < times; i++) {
        char own_name[sizeof(name)];
        if (name[0] != '\0') {
            memcpy(own_name, name, sizeof(name));
        } else {
            name_host(source->list, file, own_name, sizeof(own_name));
        }
        result = append_machine(source, machine, gpus, own_name);
    }
    lamprey_machine_destroy(machine);
    return result;
}

static bool read_kind(const char *text, uint32_t *kind)
{
    static const char *const words[] = {
        [LAMPREY_NVLINK_UNKNOWN] = "unknown",
        [LAMPREY_NVLINK_NONE] = "none",
        [LAMPREY_NVLINK_DIRECT] = "direct",
        [LAMPREY_NVLINK_SWITCH] = "switch",
    };
    for (uint32_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
        if (strcmp(text, words[i]) == 0) {
            *kind = i;
            return true;
        }
    }
    return false;
}

static bool read_cluster(const char *text, uint8_t cluster[16])
{
    if (strlen(text) != 32 || strspn(text, "0123456789abcdefABCDEF") != 32) {
        return false;
    }
    for (size_t i = 0; i < 16; i++) {
        const char byte[3] = {text[2 * i], text[2 * i + 1], '\0'};
        cluster[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return true;
}

static bool read_peers(const char *text, struct lamprey_gpu_links *links)
{
    links->peer_count = 0;
    for (const char *next = text; *next != '\0';) {
        if (links->peer_count == LAMPREY_TOPOLOGY_MAX_PEERS ||
            !lamprey_pci_parse(next, &links->peers[links->peer_count], &next) ||
            (*next != ',' && *next != '\0')) {
            return false;
        }
        links->peer_count++;
        next += *next == ',';
    }
    return true;
}

static bool read_sm(const char *text, char *sm, size_t size)
{
    unsigned major = 0;
    unsigned minor = 0;
    char end = '\0';
    return sscanf(text, "%2u.%1u%c", &major, &minor, &end) == 2 &&
           (size_t)snprintf(sm, size, "%s", text) < size;
}

/* One word of a rank's line; false: it makes no sense. */
static bool take_word(struct lamprey_rank *rank, const char *word, bool *has_pci)
{
    struct lamprey_gpu_links *links = &rank->record.links;
    const struct {
        const char *key;
        uint32_t *value;
    } numbers[] = {
        {"links", &links->links_active},
        {"mbps", &links->link_mbps},
        {"mig", &links->mig},
        {"state", &links->fabric_state},
        {"status", &links->fabric_status},
        {"clique", &links->fabric_clique},
        {"health", &links->fabric_health},
        {"share", &rank->record.share_gpu},
        {"off", &rank->record.fabric_off},
    };
    const char *value = NULL;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
        if ((value = value_of(word, numbers[i].key)) != NULL) {
            return read_number(value, numbers[i].value);
        }
    }
    if ((value = value_of(word, "pci")) != NULL) {
        *has_pci = true;
        return lamprey_pci_parse(value, &rank->record.pci_id, NULL);
    }
    if ((value = value_of(word, "kind")) != NULL) {
        return read_kind(value, &links->kind);
    }
    if ((value = value_of(word, "cluster")) != NULL) {
        return read_cluster(value, links->fabric_uuid);
    }
    if ((value = value_of(word, "peers")) != NULL) {
        return read_peers(value, links);
    }
    if ((value = value_of(word, "sm")) != NULL) {
        return read_sm(value, rank->sm, sizeof(rank->sm));
    }
    return false;
}

static int read_rank(const struct source *source, char *rest)
{
    struct lamprey_machine_gpu nothing = {0};
    struct lamprey_rank rank;
    char name[sizeof(rank.host)] = "host";
    bool has_pci = false;
    lamprey_rank_on(&nothing, 0, &rank);
    for (const char *word = NULL; (word = strtok_r(NULL, BLANKS, &rest)) != NULL;) {
        const char *host = value_of(word, "host");
        if (host != NULL) {
            int result = read_host(source, host, name, sizeof(name));
            if (result != 0) {
                return result;
            }
        } else if (!take_word(&rank, word, &has_pci)) {
            return fail(source, "\"%s\" makes no sense for a rank", word);
        }
    }
    if (!has_pci) {
        return fail(source, "the rank has no pci=");
    }
    uint32_t host = host_of(source->list, name);
    memcpy(rank.record.host_id + 1, &host, sizeof(host));
    memcpy(rank.host, name, sizeof(name));
    return append(source->list, &rank, source->reason);
}

static int read_line(const struct source *source, char *line)
{
    char *comment = strchr(line, '#');
    char *rest = NULL;
    /* A host's name may hold one, as the names that are given here do. */
    if (comment != NULL && (comment == line || isspace((unsigned char)comment[-1]))) {
        *comment = '\0';
    }
    const char *word = strtok_r(line, BLANKS, &rest);
    if (word == NULL) {
        return 0;
    }
    if (strcmp(word, "machine") == 0) {
        return read_machine(source, rest);
    }
    if (strcmp(word, "rank") == 0) {
        return read_rank(source, rest);
    }
    return fail(source, "\"%s\" is neither machine nor rank", word);
}

static int read_list(FILE *file, struct source *source)
{
    char *line = NULL;
    size_t size = 0;
    int result = 0;
    while (result == 0 && getline(&line, &size, file) >= 0) {
        source->line++;
        result = read_line(source, line);
    }
    free(line);
    return result;
}

static int read_xml(struct source *source)
{
    struct lamprey_machine *machine = NULL;
    int result = lamprey_load_file(source->path, &machine, source->reason);
    if (result == 0) {
        char name[sizeof(((struct lamprey_rank *)0)->host)];
        name_host(source->list, source->path, name, sizeof(name));
        result = append_machine(source, machine, NULL, name);
    }
    lamprey_machine_destroy(machine);
    return result;
}

int lamprey_ranks_read(const char *path, struct lamprey_rank_list *list,
                       const struct lamprey_reason *reason)
{
    struct source source = {.path = path, .list = list, .reason = reason};
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return lamprey_reason_give(reason, EIO, "cannot read %s: %s", path, strerror(errno));
    }
    int first = 0;
    do {
        first = fgetc(file);
    } while (first != EOF && isspace(first));
    rewind(file);
    int result = first == '<' ? read_xml(&source) : read_list(file, &source);
    if (result == 0 && ferror(file)) {
        result = lamprey_reason_give(reason, EIO, "cannot read %s: %s", path, strerror(errno));
    }
    fclose(file);
    return result;
}
