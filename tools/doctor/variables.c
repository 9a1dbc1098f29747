/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "tools/doctor/variables.h"

#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/doctor/place.h"

enum { MAX_FROM_FILES = 256 };

static struct {
    char *name;
    char *file;
} from_files[MAX_FROM_FILES];
static size_t nfrom_files;

static void take_line(char *line, const char *path)
{
    line += strspn(line, " \t");
    line[strcspn(line, "\r\n")] = '\0';
    char *equals = strchr(line, '=');
    if (line[0] == '#' || equals == NULL || equals == line) {
        return;
    }
    *equals = '\0';
    if (getenv(line) == NULL && nfrom_files < MAX_FROM_FILES) {
        setenv(line, equals + 1, 0);
        from_files[nfrom_files].name = strdup(line);
        from_files[nfrom_files].file = strdup(path);
        nfrom_files++;
    }
}

static void read_file(const char *path)
{
    char *line = NULL;
    size_t size = 0;
    FILE *file = fopen(path, "re");
    while (file != NULL && getline(&line, &size, file) >= 0) {
        take_line(line, path);
    }
    if (file != NULL) {
        fclose(file);
    }
    free(line);
}

void doctor_variables_load(void)
{
    char path[PATH_MAX];
    const char *named = getenv("NCCL_CONF_FILE");
    const struct passwd *user = getpwuid(getuid());
    if (named != NULL && *named != '\0') {
        read_file(named);
    } else if (user != NULL) {
        char home[PATH_MAX];
        doctor_join(home, sizeof(home), "%s/.nccl.conf", user->pw_dir);
        read_file(doctor_path(home, path, sizeof(path)));
    }
    read_file(doctor_path("/etc/nccl.conf", path, sizeof(path)));
}

const char *doctor_variable(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && *value != '\0' ? value : NULL;
}

const char *doctor_variable_source(const char *name)
{
    for (size_t i = 0; i < nfrom_files; i++) {
        if (strcmp(from_files[i].name, name) == 0) {
            return from_files[i].file;
        }
    }
    return "the environment";
}
