/* SPDX-License-Identifier: Apache-2.0 */
/* Which NCCL programs load, and whether it lets Lamprey in. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/config.h"
#include "plugin/driver.h"
#include "plugin/identity.h"
#include "plugin/nccl.h"
#include "tools/doctor/checks.h"
#include "tools/doctor/child.h"
#include "tools/doctor/report.h"
#include "tools/doctor/variables.h"

extern char **environ;

/* ncclGetVersion's codes. */
enum {
    NCCL_ANY = 0,
    NCCL_OLDEST = 22105,
    NCCL_PROFILERS = 22600,
    NCCL_SPOILS_PATHS = 22703,
    NCCL_ENV_PLUGINS = 22807,
    NCCL_UNKNOWN = 1 << 30, /* taken for the newest */
};

/* A file that NCCL opens, by which Lamprey may come in. */
struct door {
    const char *variable; /* that asks for it */
    const char *prefix;   /* of the file's name, "libnccl-tuner"; NULL: the loader opens it */
    int since;
};

static const struct door named_doors[] = {
    {"NCCL_TUNER_PLUGIN", "libnccl-tuner", NCCL_OLDEST},
    {"NCCL_ENV_PLUGIN", "libnccl-env", NCCL_ENV_PLUGINS},
    {"NCCL_PROFILER_PLUGIN", "libnccl-profiler", NCCL_PROFILERS},
    {"NCCL_NET_PLUGIN", "libnccl-net", NCCL_ANY},
    {"LD_PRELOAD", NULL, NCCL_ANY},
};
enum { NAMED_DOORS = sizeof(named_doors) / sizeof(*named_doors) };

static const char *release(int version, char text[16])
{
    snprintf(text, 16, "%d.%d.%d", version / 10000, version % 10000 / 100, version % 100);
    return text;
}

/* The item of a comma or blank separated list that names Lamprey. */
static bool names_lamprey(const char *list, char *item, size_t size)
{
    const char *rest = list;
    while (rest != NULL && *rest != '\0') {
        size_t length = strcspn(rest, ", :\t");
        doctor_join(item, size, "%.*s", (int)length, rest);
        const char *slash = strrchr(item, '/');
        const char *base = slash != NULL ? slash + 1 : item;
        if (strcmp(base, "liblamprey.so") == 0 || strcmp(item, "lamprey") == 0 ||
            (strncmp(base, "libnccl-", 8) == 0 && strstr(base, "-lamprey.so") != NULL)) {
            return true;
        }
        rest += length + strspn(rest + length, ", :\t");
    }
    return false;
}

/* What a path that the loader found is to us. */
enum owner { OURS, OTHER_LAMPREY, OTHERS };

static bool file_mentions_lamprey(const char *path)
{
    char command_output[8];
    char *arguments[] = {"grep", "-qs", "liblamprey\\.so\\|lampreyGetVersion", (char *)path, NULL};
    return doctor_run_quietly(arguments, command_output, sizeof(command_output)) == 0;
}

static enum owner owner_of(const struct doctor_place *place, const char *path)
{
    char *own = realpath(place->lib, NULL);
    const char *slash = strrchr(path, '/');
    bool ours = own != NULL && slash != NULL && strlen(own) == (size_t)(slash - path) &&
                strncmp(own, path, strlen(own)) == 0;
    free(own);
    return ours ? OURS : file_mentions_lamprey(path) ? OTHER_LAMPREY : OTHERS;
}

static void warn_of_other_lamprey(const char *path)
{
    doctor_say(DOCTOR_NOTE, "switch",
               "keep one Lamprey on the loader's path, or use its own doctor",
               "another installation of Lamprey comes first: %s", path);
}

/* Python's wheel comes before what the loader would find. */
static bool find_wheel(char *const *command, char *interpreter, size_t interpreter_size, char *path,
                       size_t size)
{
    static const char script[] = "import importlib.util as u, os\n"
                                 "s = u.find_spec('nvidia')\n"
                                 "for p in (s.submodule_search_locations or []) if s else []:\n"
                                 "    f = os.path.join(p, 'nccl', 'lib', 'libnccl.so.2')\n"
                                 "    if os.path.exists(f):\n"
                                 "        print(f)\n"
                                 "        break\n";
    const char *program = command != NULL ? command[0] : "";
    const char *slash = strrchr(program, '/');
    const char *base = slash != NULL ? slash + 1 : program;
    doctor_join(interpreter, interpreter_size, "%s",
                strncmp(base, "python", 6) == 0 ? program : "python3");
    char *arguments[] = {interpreter, "-c", (char *)script, NULL};
    int status = doctor_run_quietly(arguments, path, size);
    path[strcspn(path, "\n")] = '\0';
    return status == 0 && path[0] != '\0';
}

/* Says what that NCCL is; its version, or NCCL_UNKNOWN. */
static int judge_nccl(const struct doctor_library *library, const char *who)
{
    char text[16];
    if (!library->found || library->version == 0) {
        doctor_say(DOCTOR_WRONG, "nccl", "install NCCL again",
                   "%s gets an NCCL that can't be used: %s", who,
                   library->found ? "it does not tell its version" : library->error);
        return NCCL_UNKNOWN;
    }
    bool too_old = library->version < NCCL_OLDEST;
    doctor_say(too_old ? DOCTOR_WRONG : DOCTOR_OK, "nccl",
               too_old ? "update NCCL: 2.21.5 is the oldest that is served" : NULL,
               "%s gets NCCL %s, %s", who, release(library->version, text), library->path);
    return library->version;
}

static int check_version(const struct doctor_place *place, const char *launcher,
                         char *const *command)
{
    struct doctor_library library;
    char interpreter[PATH_MAX];
    char wheel[PATH_MAX];
    int version = NCCL_UNKNOWN;
    bool has_wheel = find_wheel(command, interpreter, sizeof(interpreter), wheel, sizeof(wheel));
    doctor_find_library(place->self, launcher, "libnccl.so.2", &library);
    bool absent = !library.found && strncmp(library.error, "libnccl.so.2: cannot open", 25) == 0;
    if (!absent) {
        version = judge_nccl(&library, has_wheel ? "any program but Python's" : "a program");
    }
    if (has_wheel) {
        doctor_find_library(place->self, launcher, wheel, &library);
        int own = judge_nccl(&library, interpreter);
        version = own < version || version == NCCL_UNKNOWN ? own : version;
    }
    if (absent && !has_wheel) {
        doctor_say(DOCTOR_NOTE, "nccl",
                   "nothing to do for programs that hold NCCL in themselves; else install it",
                   "neither the loader nor %s finds a libnccl.so.2", interpreter);
    }
    return version;
}

/* One door that a variable of NCCL's own asks for. */
static bool check_named_door(const struct doctor_place *place, const struct door *door,
                             const char *item, int version)
{
    struct doctor_library library;
    char file[PATH_MAX];
    char text[16];
    const char *source = doctor_variable_source(door->variable);
    if (door->prefix == NULL || strstr(item, ".so") != NULL) {
        doctor_join(file, sizeof(file), "%s", item);
    } else {
        doctor_join(file, sizeof(file), "%s-%s.so", door->prefix, item);
    }
    doctor_find_library(place->self, NULL, file, &library);
    if (!library.found) {
        doctor_say(DOCTOR_WRONG, "switch",
                   "put Lamprey's lib folder on LD_LIBRARY_PATH, or give the file's full path",
                   "%s=%s (%s): %s", door->variable, item, source, library.error);
        return false;
    }
    if (version < door->since) {
        doctor_say(DOCTOR_WRONG, "switch", "use NCCL_PLUGIN=lamprey, or update NCCL",
                   "%s=%s (%s) needs NCCL %s or newer", door->variable, item, source,
                   release(door->since, text));
        return false;
    }
    if (version == NCCL_SPOILS_PATHS && strchr(item, '/') != NULL && door->prefix != NULL) {
        doctor_say(DOCTOR_WRONG, "switch",
                   "use the name lamprey, with the folder on LD_LIBRARY_PATH",
                   "%s=%s (%s): NCCL 2.27.3 spoils paths", door->variable, item, source);
        return false;
    }
    if (owner_of(place, library.path) != OURS) {
        warn_of_other_lamprey(library.path);
    }
    doctor_say(DOCTOR_OK, "switch", NULL, "%s=%s (%s) leads to %s", door->variable, item, source,
               library.path);
    return true;
}

/* A file of a default name, which NCCL opens where no variable names another. */
static bool check_default_door(const struct doctor_place *place, const char *launcher,
                               const char *file, const char *taken_by, char *why, size_t size)
{
    struct doctor_library library;
    const char *taken = doctor_variable(taken_by);
    if (taken != NULL) {
        doctor_join(why, size, "%s=%s (%s) takes the place of %s", taken_by, taken,
                    doctor_variable_source(taken_by), file);
        return false;
    }
    doctor_find_library(place->self, launcher, file, &library);
    if (!library.found) {
        doctor_join(why, size, "%s is not found (%s)", file, library.error);
        return false;
    }
    enum owner owner = owner_of(place, library.path);
    if (owner == OTHERS) {
        doctor_join(why, size, "another %s is found first: %s", file, library.path);
        return false;
    }
    if (owner == OTHER_LAMPREY) {
        warn_of_other_lamprey(library.path);
    }
    doctor_join(why, size, "%s", library.path);
    return true;
}

/* NCCL_PLUGIN is Lamprey's own variable: the files of the default names read it. */
static void check_default_doors(const struct doctor_place *place, const char *launcher, int version)
{
    char by_tuner[PATH_MAX + 256];
    char by_env[PATH_MAX + 256];
    char text[16];
    bool tuner = check_default_door(place, launcher, "libnccl-tuner.so", "NCCL_TUNER_PLUGIN",
                                    by_tuner, sizeof(by_tuner));
    bool env = check_default_door(place, launcher, "libnccl-env.so", "NCCL_ENV_PLUGIN", by_env,
                                  sizeof(by_env));
    char who[PATH_MAX + 32];
    if (launcher != NULL) {
        doctor_join(who, sizeof(who), "lamprey run");
    } else {
        doctor_join(who, sizeof(who), "NCCL_PLUGIN=%s (%s)", doctor_variable("NCCL_PLUGIN"),
                    doctor_variable_source("NCCL_PLUGIN"));
    }
    if (tuner || (env && version >= NCCL_ENV_PLUGINS)) {
        doctor_say(DOCTOR_OK, "switch", NULL, "%s leads to %s", who, tuner ? by_tuner : by_env);
        return;
    }
    if (env || doctor_variable("NCCL_TUNER_PLUGIN") != NULL) {
        doctor_say(DOCTOR_WRONG, "switch",
                   "let NCCL open Lamprey as tuner (NCCL_TUNER_PLUGIN=lamprey, and yours in "
                   "LAMPREY_TUNER_PLUGIN), or use LD_PRELOAD",
                   "%s: %s; %s, which NCCL %s and newer opens", who, by_tuner, by_env,
                   release(NCCL_ENV_PLUGINS, text));
    } else {
        doctor_say(DOCTOR_WRONG, "switch",
                   "put Lamprey's lib folder on LD_LIBRARY_PATH, as lamprey env does", "%s: %s; %s",
                   who, by_tuner, by_env);
    }
}

/* By any variable; says nothing. */
static bool is_switched_on(void)
{
    char item[PATH_MAX];
    bool on = names_lamprey(doctor_variable("NCCL_PLUGIN"), item, sizeof(item));
    for (size_t i = 0; i < NAMED_DOORS; i++) {
        on = on || names_lamprey(doctor_variable(named_doors[i].variable), item, sizeof(item));
    }
    return on;
}

static void check_doors(const struct doctor_place *place, const char *launcher,
                        char *const *command, int version)
{
    char item[PATH_MAX];
    bool open = false;
    if (launcher != NULL && command == NULL) {
        doctor_say(DOCTOR_NOTE, "switch",
                   "start programs by lamprey run, or eval \"$(lamprey env)\"",
                   "nothing in this environment switches Lamprey on");
    }
    for (size_t i = 0; i < NAMED_DOORS; i++) {
        if (names_lamprey(doctor_variable(named_doors[i].variable), item, sizeof(item))) {
            open = check_named_door(place, &named_doors[i], item, version) || open;
        }
    }
    if (!open &&
        (launcher != NULL || names_lamprey(doctor_variable("NCCL_PLUGIN"), item, sizeof(item)))) {
        check_default_doors(place, launcher, version);
    }
}

/* The plugin's own judgement of the user's settings. */
static void check_settings(void)
{
    static const struct lamprey_nccl no_nccl;
    struct lamprey_config config;
    char reason[160] = "";
    int bad = lamprey_config_parse((const char *const *)environ, &config);
    if (bad > 0) {
        doctor_say(DOCTOR_NOTE, "settings", "see lamprey settings",
                   "%d of Lamprey's settings make no sense (named above): not used", bad);
    }
    lamprey_identity_stand_down(&no_nccl, reason, sizeof(reason));
    if (reason[0] != '\0' && strcmp(reason, lamprey_driver_missing()) == 0) {
        doctor_say(DOCTOR_WRONG, "driver", "see the driver's check above",
                   "Lamprey stands aside: %s", reason);
    } else if (reason[0] != '\0') {
        doctor_say(DOCTOR_WRONG, "settings", "unset it, or mend it, where calls are to be served",
                   "Lamprey stands aside: %s", reason);
    } else if (bad == 0) {
        doctor_say(DOCTOR_OK, "settings", NULL, "nothing asks Lamprey to stand aside");
    }
}

bool doctor_check_nccl(const struct doctor_place *place, char *const *command)
{
    char launcher[PATH_MAX];
    bool switched_on = is_switched_on();
    doctor_join(launcher, sizeof(launcher), "%s/bin/lamprey", place->prefix);
    const char *through = switched_on ? NULL : launcher;
    int version = check_version(place, through, command);
    check_doors(place, through, command, version);
    check_settings();
    return switched_on;
}
