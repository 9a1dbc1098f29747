/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded, it refuses writes to /proc/self/mem, as some kernels do. QEMU before 8.1 needs that:
 * it doesn't see that such a write changes code that it has translated. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>

int open(const char *path, int flags, ...)
{
    int (*next)(const char *path, int flags, ...) =
        (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    if (strcmp(path, "/proc/self/mem") == 0 && (flags & O_ACCMODE) != O_RDONLY) {
        errno = EPERM;
        return -1;
    }
    return next(path, flags, mode);
}
