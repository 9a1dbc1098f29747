/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a program with Lamprey and counts what became of its calls. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "plugin/stats.h"
#include "tools/doctor/checks.h"
#include "tools/doctor/report.h"
#include "tools/doctor/variables.h"

#define CHECK "run"

enum {
    MAX_TEXTS = 16,
    PATIENCE_MS = 1000, /* for processes that the program has left behind */
};

static const char *const counter_names[LAMPREY_COUNTS] = {
#define COUNTER_NAME(field) #field,
    LAMPREY_COUNTERS(COUNTER_NAME)
#undef COUNTER_NAME
};

static const struct {
    const char *counter;
    const char *text;
} explanations[] = {
    {"fallback_communicator", "on communicators that aren't served"},
    {"fallback_type", "of data types that aren't served"},
    {"fallback_operator", "with operators that aren't served"},
    {"fallback_size", "larger than the limit (LAMPREY_MAX_BYTES)"},
    {"fallback_empty", "without elements"},
    {"fallback_closed", "on communicators that are finalized, revoked or aborted"},
};

/* Different texts, the first MAX_TEXTS. */
struct texts {
    char *text[MAX_TEXTS];
    size_t n;
};

struct outcome {
    uint64_t counters[LAMPREY_COUNTS];
    size_t processes;
    struct texts reasons; /* why communicators were left to NCCL */
    struct texts ways;    /* by which the library came into processes */
    bool quiet;           /* the log was asked for by us: its lines aren't shown */
};

static void add_text(struct texts *texts, const char *text)
{
    for (size_t i = 0; i < texts->n; i++) {
        if (strcmp(texts->text[i], text) == 0) {
            return;
        }
    }
    if (texts->n < MAX_TEXTS) {
        texts->text[texts->n++] = strdup(text);
    }
}

static void free_texts(struct texts *texts)
{
    for (size_t i = 0; i < texts->n; i++) {
        free(texts->text[i]);
    }
}

static void add_counters(struct outcome *outcome, const char *line)
{
    outcome->processes++;
    for (size_t i = 0; i < LAMPREY_COUNTS; i++) {
        char key[64];
        snprintf(key, sizeof(key), " %s=", counter_names[i]);
        const char *at = strstr(line, key);
        outcome->counters[i] += at != NULL ? strtoull(at + strlen(key), NULL, 10) : 0;
    }
}

/* What stands behind the words in a line of Lamprey's log. */
static const char *behind(const char *line, const char *words)
{
    const char *lamprey = strstr(line, "Lamprey");
    const char *at = lamprey != NULL ? strstr(lamprey, words) : NULL;
    return at != NULL ? at + strlen(words) : NULL;
}

/* Whether the line was meant for the doctor alone. line has no end of line. */
static bool take_line(struct outcome *outcome, const char *line)
{
    const char *reason = behind(line, " is left to NCCL: ");
    const char *way = behind(line, ", through the ");
    if (strncmp(line, "lamprey stats: ", 15) == 0) {
        add_counters(outcome, line);
        return true;
    }
    if (reason != NULL) {
        add_text(&outcome->reasons, reason);
    } else if (way != NULL) {
        add_text(&outcome->ways, way);
    }
    return outcome->quiet && strstr(line, " Lamprey INFO ") != NULL;
}

/* Lines of a log file. */
static void take_file(struct outcome *outcome, const char *path)
{
    char *line = NULL;
    size_t size = 0;
    FILE *file = fopen(path, "re");
    while (file != NULL && getline(&line, &size, file) >= 0) {
        line[strcspn(line, "\n")] = '\0';
        take_line(outcome, line);
    }
    if (file != NULL) {
        fclose(file);
    }
    free(line);
}

/* Reads NCCL's logs, and removes them with their folder. */
static void take_logs(struct outcome *outcome, const char *folder)
{
    DIR *directory = opendir(folder);
    for (struct dirent *entry = NULL; directory != NULL && (entry = readdir(directory)) != NULL;) {
        char path[PATH_MAX];
        doctor_join(path, sizeof(path), "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.') {
            take_file(outcome, path);
            unlink(path);
        }
    }
    if (directory != NULL) {
        closedir(directory);
    }
    rmdir(folder);
}

/* Passes standard error on, line by line, until all of its writers are gone, or the program is and
 * what it left behind is silent. */
static void pass_errors(struct outcome *outcome, int end, pid_t child, int *status)
{
    char *line = NULL;
    size_t length = 0;
    size_t room = 0;
    bool ended = false;
    for (;;) {
        struct pollfd readable = {.fd = end, .events = POLLIN};
        int ready = poll(&readable, 1, PATIENCE_MS);
        ended = ended || waitpid(child, status, WNOHANG) == child;
        if ((ready == 0 && ended) || (ready < 0 && errno != EINTR)) {
            break;
        }
        if (ready <= 0) {
            continue;
        }
        if (room - length < 4096) {
            room = length + 65536;
            char *more = realloc(line, room);
            if (more == NULL) {
                break;
            }
            line = more;
        }
        ssize_t got = read(end, line + length, room - length - 1);
        if (got <= 0) {
            break;
        }
        length += (size_t)got;
        line[length] = '\0';
        char *start = line;
        for (char *stop = NULL; (stop = memchr(start, '\n', (size_t)(line + length - start)));
             start = stop + 1) {
            *stop = '\0';
            if (!take_line(outcome, start)) {
                fprintf(stderr, "%s\n", start);
            }
        }
        length -= (size_t)(start - line);
        memmove(line, start, length);
    }
    if (length > 0) {
        fwrite(line, 1, length, stderr);
    }
    free(line);
    if (!ended) {
        waitpid(child, status, 0);
    }
}

static void become(const struct doctor_place *place, char *const *command, bool switched_on,
                   const char *logs)
{
    char launcher[PATH_MAX];
    char log_file[PATH_MAX];
    size_t n = 0;
    while (command[n] != NULL) {
        n++;
    }
    char **arguments = calloc(n + 4, sizeof(*arguments));
    if (arguments == NULL) {
        _exit(126);
    }
    size_t first = 0;
    if (!switched_on) {
        doctor_join(launcher, sizeof(launcher), "%s/bin/lamprey", place->prefix);
        arguments[first++] = launcher;
        arguments[first++] = "run";
        arguments[first++] = "--";
    }
    memcpy(arguments + first, command, n * sizeof(*arguments));
    setenv("LAMPREY_STATS", "1", 1);
    if (logs != NULL) {
        setenv("NCCL_DEBUG", "INFO", 1);
        setenv("NCCL_DEBUG_FILE", doctor_join(log_file, sizeof(log_file), "%s/%%p", logs), 0);
    }
    execvp(arguments[0], arguments);
    fprintf(stderr, "lamprey doctor: %s: %s\n", arguments[0], strerror(errno));
    _exit(127);
}

static const char *plural(uint64_t n)
{
    return n == 1 ? "" : "s";
}

static void say_outcome(const struct outcome *outcome)
{
    const uint64_t *counters = outcome->counters;
    uint64_t served = counters[LAMPREY_COUNT_served];
    if (outcome->processes == 0) {
        doctor_say(DOCTOR_WRONG, CHECK,
                   "does it use NCCL, and do variables reach its processes (mpirun -x, srun, Ray)?",
                   "no process of the program loaded Lamprey, or none ended by itself");
        return;
    }
    doctor_say(served > 0 ? DOCTOR_OK : DOCTOR_WRONG, CHECK,
               served > 0 ? NULL : "the lines below say what NCCL got instead, and why",
               "%llu all-reduce%s served in %zu process%s, %llu of them captured",
               (unsigned long long)served, plural(served), outcome->processes,
               outcome->processes == 1 ? "" : "es",
               (unsigned long long)counters[LAMPREY_COUNT_served_captured]);
    for (size_t i = 0; i < LAMPREY_COUNTS; i++) {
        if (strncmp(counter_names[i], "fallback_", 9) != 0 || counters[i] == 0) {
            continue;
        }
        const char *text = counter_names[i];
        for (size_t j = 0; j < sizeof(explanations) / sizeof(*explanations); j++) {
            if (strcmp(explanations[j].counter, counter_names[i]) == 0) {
                text = explanations[j].text;
            }
        }
        doctor_say(DOCTOR_OK, CHECK, NULL, "%llu left to NCCL: %s", (unsigned long long)counters[i],
                   text);
    }
    for (size_t i = 0; i < outcome->ways.n; i++) {
        doctor_say(DOCTOR_OK, CHECK, NULL, "Lamprey came in through the %s", outcome->ways.text[i]);
    }
    for (size_t i = 0; i < outcome->reasons.n; i++) {
        doctor_say(DOCTOR_NOTE, CHECK, "see README, Troubleshooting",
                   "a communicator is left to NCCL: %s", outcome->reasons.text[i]);
    }
    if (counters[LAMPREY_COUNT_failed] > 0) {
        doctor_say(DOCTOR_WRONG, CHECK, "run it with NCCL_DEBUG=INFO and report what it says",
                   "%llu calls failed after they had started",
                   (unsigned long long)counters[LAMPREY_COUNT_failed]);
    }
}

void doctor_check_command(const struct doctor_place *place, char *const *command, bool switched_on)
{
    struct outcome outcome = {0};
    char folder[] = "/tmp/lamprey-doctor-XXXXXX";
    int ends[2];
    int status = 0;
    /* Reasons are in the log. Where the user has set it up, it is left alone. */
    const char *logs = doctor_variable("NCCL_DEBUG") == NULL ? mkdtemp(folder) : NULL;
    outcome.quiet = logs != NULL;
    fflush(stdout);
    pid_t child = pipe(ends) == 0 ? fork() : -1;
    if (child < 0) {
        doctor_say(DOCTOR_WRONG, CHECK, "free some memory or processes",
                   "no process can be started: %s", strerror(errno));
        return;
    }
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        become(place, command, switched_on, logs);
    }
    close(ends[1]);
    pass_errors(&outcome, ends[0], child, &status);
    close(ends[0]);
    if (logs != NULL) {
        take_logs(&outcome, logs);
    }
    if (WIFSIGNALED(status)) {
        doctor_say(DOCTOR_WRONG, CHECK, "does it run without Lamprey?", "%s ended by signal %d",
                   command[0], WTERMSIG(status));
    } else if (WEXITSTATUS(status) != 0) {
        doctor_say(DOCTOR_WRONG, CHECK, "does it run without Lamprey?", "%s ended with status %d",
                   command[0], WEXITSTATUS(status));
    }
    say_outcome(&outcome);
    free_texts(&outcome.reasons);
    free_texts(&outcome.ways);
}
