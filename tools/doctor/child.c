/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "tools/doctor/child.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/doctor/report.h"

enum { NOT_FOUND = 3, NOT_EXECUTED = 127 };

static void become(char *const *arguments, int output)
{
    int null = open("/dev/null", O_RDWR);
    dup2(null, STDIN_FILENO);
    dup2(output, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    execvp(arguments[0], arguments);
    _exit(NOT_EXECUTED);
}

int doctor_run_quietly(char *const *arguments, char *output, size_t size)
{
    int ends[2];
    output[0] = '\0';
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return -1;
    }
    pid_t child = fork();
    if (child == 0) {
        become(arguments, ends[1]);
    }
    close(ends[1]);
    size_t length = 0;
    char rest[256];
    for (ssize_t got = 1; child > 0 && got > 0;) {
        bool room = length + 1 < size;
        got = read(ends[0], room ? output + length : rest, room ? size - 1 - length : sizeof(rest));
        if (got < 0 && errno == EINTR) {
            got = 1;
        } else if (got > 0 && room) {
            length += (size_t)got;
        }
    }
    output[length] = '\0';
    close(ends[0]);
    int status = 0;
    if (child <= 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
        return -1;
    }
    return WEXITSTATUS(status);
}

static void real_path(const char *path, char *real, size_t size)
{
    char *resolved = realpath(path, NULL);
    snprintf(real, size, "%s", resolved != NULL ? resolved : path);
    free(resolved);
}

int doctor_probe(const char *name)
{
    /* NCCL and its plugins may print; what is asked for goes where nobody else writes. */
    int answer = dup(STDOUT_FILENO);
    dup2(STDERR_FILENO, STDOUT_FILENO);
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        const char *error = dlerror();
        dprintf(answer, "%s", error != NULL ? error : "no reason given");
        return NOT_FOUND;
    }
    struct link_map *map = NULL;
    char path[PATH_MAX] = "";
    int version = 0;
    if (dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0) {
        real_path(map->l_name, path, sizeof(path));
    }
    static const char *const symbols[] = {"lampreyGetVersion", "ncclGetVersion"};
    int (*get)(int *) = NULL;
    for (size_t i = 0; get == NULL && i < sizeof(symbols) / sizeof(*symbols); i++) {
        get = (int (*)(int *))(uintptr_t)dlsym(handle, symbols[i]);
    }
    if (get != NULL && get(&version) != 0) {
        version = 0;
    }
    dprintf(answer, "%d %s", version, path);
    /* Whatever was loaded, nothing of it runs any more. */
    _exit(0);
}

void doctor_find_library(const char *self, const char *launcher, const char *name,
                         struct doctor_library *library)
{
    char output[PATH_MAX + 32];
    char *direct[] = {(char *)self, "--probe", (char *)name, NULL};
    char *launched[] = {(char *)launcher, "run", (char *)self, "--probe", (char *)name, NULL};
    memset(library, 0, sizeof(*library));
    int status = doctor_run_quietly(launcher != NULL ? launched : direct, output, sizeof(output));
    char *blank = strchr(output, ' ');
    if (status == 0 && blank != NULL) {
        library->found = true;
        library->version = atoi(output);
        snprintf(library->path, sizeof(library->path), "%s", blank + 1);
    } else if (status == NOT_FOUND) {
        snprintf(library->error, sizeof(library->error), "%.500s", output);
    } else {
        snprintf(library->error, sizeof(library->error), "loading %.200s ends the program", name);
    }
}

bool doctor_apart(bool (*check)(const void *context), const void *context, const char *name)
{
    int status = 0;
    doctor_count(DOCTOR_OK); /* the counters must be there before they can be shared */
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        bool result = check(context);
        fflush(stdout);
        _exit(result);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) {
        doctor_say(DOCTOR_WRONG, name, "free some memory or processes",
                   "no process can be started");
        return false;
    }
    if (WIFSIGNALED(status)) {
        doctor_say(DOCTOR_WRONG, name, "look at the libraries and the driver of this check",
                   "looking at it ended by signal %d", WTERMSIG(status));
        return false;
    }
    return WEXITSTATUS(status) == 1;
}
