/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "tools/doctor/place.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *doctor_join(char *buffer, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(buffer, size, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= size) {
        buffer[0] = '\0';
    }
    return buffer;
}

static void cut_last(char *path)
{
    char *slash = strrchr(path, '/');
    if (slash != NULL) {
        *slash = '\0';
    }
}

bool doctor_place_find(struct doctor_place *place)
{
    ssize_t length = readlink("/proc/self/exe", place->self, sizeof(place->self) - 1);
    if (length <= 0) {
        return false;
    }
    place->self[length] = '\0';
    memcpy(place->prefix, place->self, sizeof(place->prefix));
    cut_last(place->prefix);
    cut_last(place->prefix);
    doctor_join(place->lib, sizeof(place->lib), "%s/lib", place->prefix);
    return true;
}

const char *doctor_path(const char *path, char *buffer, size_t size)
{
    const char *root = getenv("LAMPREY_TEST_ROOT");
    return doctor_join(buffer, size, "%s%s", root != NULL ? root : "", path);
}
