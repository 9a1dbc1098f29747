/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "plugin/memory.h"
#include "tools/doctor/checks.h"
#include "tools/doctor/report.h"

static bool file_has(const char *path, const char *word)
{
    char line[256];
    bool found = false;
    FILE *file = fopen(path, "re");
    while (file != NULL && !found && fgets(line, sizeof(line), file) != NULL) {
        found = strstr(line, word) != NULL;
    }
    if (file != NULL) {
        fclose(file);
    }
    return found;
}

/* The first channel that this user may open; "" if there is none. */
static void find_channel(const char *folder, char *path, size_t size)
{
    DIR *directory = opendir(folder);
    path[0] = '\0';
    for (struct dirent *entry = NULL; directory != NULL && (entry = readdir(directory)) != NULL;) {
        if (strncmp(entry->d_name, "channel", 7) != 0) {
            continue;
        }
        doctor_join(path, size, "%s/%s", folder, entry->d_name);
        int channel = open(path, O_RDWR | O_CLOEXEC);
        if (channel >= 0) {
            close(channel);
            break;
        }
        path[0] = '\0';
    }
    if (directory != NULL) {
        closedir(directory);
    }
}

/* By the plugin's own way, as far as one host can try it: no attribute of the driver tells. */
static enum lamprey_status try_memory(void)
{
    struct lamprey_device *device = NULL;
    struct lamprey_memory made = {0};
    struct lamprey_memory mapped = {0};
    union lamprey_memory_name name;
    bool pushed = false;
    enum lamprey_status status = lamprey_device_get(0, &device);
    if (!status) {
        status = lamprey_device_enter(device, &pushed);
    }
    if (status) {
        return status;
    }
    status = lamprey_memory_create(device, 1, LAMPREY_BY_FABRIC, &made);
    if (!status) {
        status = lamprey_memory_export(device, &made, &name);
    }
    if (!status) {
        status = lamprey_memory_import(device, LAMPREY_BY_FABRIC, &name, made.bytes, &mapped);
    }
    lamprey_memory_destroy(device, &mapped);
    lamprey_memory_destroy(device, &made);
    lamprey_device_leave(device, pushed);
    return status;
}

/* Failures are notes: the ranks of one host are served all the same. */
void doctor_check_imex(void)
{
    static const char cost[] = "communicators over several hosts are left to NCCL";
    char devices[PATH_MAX];
    char folder[PATH_MAX];
    char channel[PATH_MAX];
    enum lamprey_status status = try_memory();
    doctor_path("/proc/devices", devices, sizeof(devices));
    doctor_path("/dev/nvidia-caps-imex-channels", folder, sizeof(folder));
    find_channel(folder, channel, sizeof(channel));
    if (!status) {
        doctor_say(DOCTOR_OK, "imex", NULL, "memory that other hosts can map is made and mapped");
    } else if (!file_has(devices, "nvidia-caps-imex-channels")) {
        doctor_say(DOCTOR_NOTE, "imex", "load a driver with IMEX support",
                   "%s does not list nvidia-caps-imex-channels: %s", devices, cost);
    } else if (channel[0] == '\0') {
        doctor_say(
            DOCTOR_NOTE, "imex",
            "have the administrator or the container toolkit make channel 0, the same on all "
            "hosts",
            "no channel in %s can be opened: %s", folder, cost);
    } else {
        doctor_say(DOCTOR_NOTE, "imex",
                   "start nvidia-imex on all hosts; nvidia-imex-ctl -N shows which are joined",
                   "%s can be opened, but the driver makes no memory for other hosts (%s): %s",
                   channel, lamprey_status_name(status), cost);
    }
}
