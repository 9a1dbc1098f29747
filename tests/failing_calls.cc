// SPDX-License-Identifier: Apache-2.0
#include "tests/failing_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

namespace {

using lamprey_test::failing_call;

std::atomic<failing_call> failing{failing_call::none};
std::atomic<int> failing_nth{0};
std::atomic<int> calls{0};

// Sets errno where it does.
bool fails(failing_call call, int error)
{
    if (failing != call) {
        return false;
    }
    const int nth = ++calls;
    if (failing_nth != 0 && failing_nth != nth) {
        return false;
    }
    errno = error;
    return true;
}

} // namespace

void lamprey_test::fail_call(failing_call call, int nth)
{
    failing_nth = nth;
    calls = 0;
    failing = call;
}

extern "C" {

int accept4(int socket, sockaddr *address, socklen_t *size, int flags)
{
    return fails(failing_call::accept4, EMFILE)
               ? -1
               : (int)syscall(SYS_accept4, socket, address, size, flags);
}

ssize_t getrandom(void *bytes, size_t count, unsigned flags)
{
    return fails(failing_call::getrandom, ENOSYS) ? -1
                                                  : syscall(SYS_getrandom, bytes, count, flags);
}

#ifndef __SANITIZE_THREAD__ // whose own runtime begins with it
void *mmap(void *address, size_t bytes, int protection, int flags, int file, off_t offset) noexcept
{
    if ((protection & PROT_EXEC) != 0 && (flags & MAP_ANONYMOUS) != 0 &&
        fails(failing_call::mmap_to_execute, EACCES)) {
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, file, offset);
}
#endif

int socket(int domain, int type, int protocol) noexcept
{
    return (type & SOCK_SEQPACKET) == SOCK_SEQPACKET && fails(failing_call::packet_socket, EMFILE)
               ? -1
               : (int)syscall(SYS_socket, domain, type, protocol);
}

int stat(const char *path, struct stat *result) noexcept
{
    return strcmp(path, "/proc/self/ns/net") == 0 && fails(failing_call::stat_of_network, ENOENT)
               ? -1
               : fstatat(AT_FDCWD, path, result, 0);
}

} // extern "C"
