/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin/lamprey.h"
#include "tools/doctor/checks.h"
#include "tools/doctor/child.h"
#include "tools/doctor/report.h"

#define CHECK "install"
#define INSTALL_AGAIN "install again: tools/install PREFIX"

static bool same_file(const char *a, const char *b)
{
    struct stat stat_a;
    struct stat stat_b;
    return stat(a, &stat_a) == 0 && stat(b, &stat_b) == 0 && stat_a.st_dev == stat_b.st_dev &&
           stat_a.st_ino == stat_b.st_ino;
}

static bool files_are_there(const struct doctor_place *place)
{
    static const char *const files[] = {
        "liblamprey.so",          "liblamprey-topology.so", "libnccl-env.so",
        "lamprey/libhwloc.so.15", "../bin/lamprey",         "../bin/lamprey-topo",
    };
    static const char *const doors[] = {"tuner", "env", "profiler", "net"};
    char library[PATH_MAX];
    char path[PATH_MAX];
    bool complete = true;
    for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++) {
        doctor_join(path, sizeof(path), "%s/%s", place->lib, files[i]);
        if (access(path, R_OK) != 0) {
            doctor_say(DOCTOR_WRONG, CHECK, INSTALL_AGAIN, "%s is missing", path);
            complete = false;
        }
    }
    doctor_join(library, sizeof(library), "%s/liblamprey.so", place->lib);
    for (size_t i = 0; complete && i < sizeof(doors) / sizeof(*doors); i++) {
        doctor_join(path, sizeof(path), "%s/libnccl-%s-lamprey.so", place->lib, doors[i]);
        if (!same_file(path, library)) {
            doctor_say(DOCTOR_WRONG, CHECK, INSTALL_AGAIN, "%s does not lead to liblamprey.so",
                       path);
            complete = false;
        }
    }
    doctor_join(path, sizeof(path), "%s/libnccl-tuner.so", place->lib);
    if (complete && access(path, R_OK) != 0) {
        doctor_say(DOCTOR_NOTE, CHECK,
                   "with NCCL older than 2.28.7 install without --without-tuner, or use LD_PRELOAD",
                   "%s is left out: NCCL_PLUGIN works with NCCL 2.28.7 or newer only", path);
    }
    return complete;
}

void doctor_check_tree(const struct doctor_place *place)
{
    struct doctor_library library;
    char path[PATH_MAX];
    if (!files_are_there(place)) {
        return;
    }
    doctor_join(path, sizeof(path), "%s/liblamprey.so", place->lib);
    doctor_find_library(place->self, NULL, path, &library);
    if (!library.found) {
        doctor_say(DOCTOR_WRONG, CHECK,
                   "use a build for this machine: see README, Supported hardware",
                   "liblamprey.so can't be loaded: %s", library.error);
    } else if (library.version != LAMPREY_VERSION_CODE) {
        doctor_say(DOCTOR_WRONG, CHECK, INSTALL_AGAIN,
                   "%s has version code %d, this doctor is of %d: two releases are mixed", path,
                   library.version, LAMPREY_VERSION_CODE);
    } else {
        doctor_say(DOCTOR_OK, CHECK, NULL, "Lamprey %d.%d.%d in %s", LAMPREY_MAJOR, LAMPREY_MINOR,
                   LAMPREY_PATCH, place->prefix);
    }
}
