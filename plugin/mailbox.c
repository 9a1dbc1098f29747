/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin/mailbox.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "plugin/log.h"

#define MAGIC 0x4c4d5059u
#define SLICE_MS 50 /* how often a wait looks at the abort flag */

struct message {
    uint32_t magic;
    uint32_t rank;
};

static socklen_t name_of(const uint8_t token[16], struct sockaddr_un *address)
{
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    char *name = address->sun_path + 1; /* a leading zero byte makes the name abstract */
    int length = snprintf(name, sizeof address->sun_path - 1, "lamprey-");
    for (int i = 0; i < 16; i++) {
        length += snprintf(name + length, 3, "%02x", token[i]);
    }
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

static enum lamprey_status check_user(int socket)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.uid != geteuid()) {
        lamprey_warn("a Unix socket's other end belongs to another user; dropped");
        return LAMPREY_ERROR_SYSTEM;
    }
    return LAMPREY_OK;
}

enum lamprey_status lamprey_mailbox_open(struct lamprey_mailbox *mailbox, int backlog)
{
    struct sockaddr_un address;
    mailbox->listener = -1;
    if (getrandom(mailbox->token, sizeof mailbox->token, 0) != (ssize_t)sizeof mailbox->token) {
        return LAMPREY_ERROR_SYSTEM;
    }
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener < 0) {
        lamprey_warn("socket failed: %s", strerror(errno));
        return LAMPREY_ERROR_SYSTEM;
    }
    socklen_t size = name_of(mailbox->token, &address);
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, backlog) != 0) {
        lamprey_warn("a Unix socket can't listen: %s", strerror(errno));
        close(listener);
        return LAMPREY_ERROR_SYSTEM;
    }
    mailbox->listener = listener;
    return LAMPREY_OK;
}

void lamprey_mailbox_close(struct lamprey_mailbox *mailbox)
{
    if (mailbox->listener >= 0) {
        close(mailbox->listener);
        mailbox->listener = -1;
    }
}

static enum lamprey_status send_message(int socket, uint32_t rank, int descriptor)
{
    struct message message = {MAGIC, rank};
    struct iovec data = {&message, sizeof message};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr header = {.msg_iov = &data,
                            .msg_iovlen = 1,
                            .msg_control = control.space,
                            .msg_controllen = sizeof control.space};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(rights), &descriptor, sizeof descriptor);
    if (sendmsg(socket, &header, MSG_NOSIGNAL) != (ssize_t)sizeof message) {
        lamprey_warn("a descriptor can't be sent: %s", strerror(errno));
        return LAMPREY_ERROR_SYSTEM;
    }
    return LAMPREY_OK;
}

enum lamprey_status lamprey_mailbox_send(const uint8_t token[16], uint32_t rank, int descriptor)
{
    struct sockaddr_un address;
    socklen_t size = name_of(token, &address);
    int channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (channel < 0) {
        lamprey_warn("socket failed: %s", strerror(errno));
        return LAMPREY_ERROR_SYSTEM;
    }
    /* The backlog holds a whole communicator, so connect doesn't block; should it all the same,
     * this bounds it. */
    const struct timeval limit = {.tv_sec = 5};
    setsockopt(channel, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    enum lamprey_status status = LAMPREY_ERROR_SYSTEM;
    if (connect(channel, (struct sockaddr *)&address, size) != 0) {
        lamprey_warn("a peer's Unix socket can't be reached: %s", strerror(errno));
    } else {
        status = check_user(channel);
    }
    if (!status) {
        status = send_message(channel, rank, descriptor);
    }
    close(channel);
    return status;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static enum lamprey_status wait_readable(int descriptor, int64_t deadline,
                                         const atomic_bool *aborted)
{
    for (;;) {
        if (atomic_load(aborted)) {
            return LAMPREY_ERROR_ABORTED;
        }
        int64_t left = deadline - now_ms();
        if (left <= 0) {
            return LAMPREY_ERROR_TIMEOUT;
        }
        struct pollfd wanted = {.fd = descriptor, .events = POLLIN};
        int ready = poll(&wanted, 1, (int)(left < SLICE_MS ? left : SLICE_MS));
        if (ready > 0) {
            return LAMPREY_OK;
        }
        if (ready < 0 && errno != EINTR) {
            return LAMPREY_ERROR_SYSTEM;
        }
    }
}

static enum lamprey_status receive_message(int channel, uint32_t *rank, int *descriptor)
{
    struct message message;
    struct iovec data = {&message, sizeof message};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr header = {.msg_iov = &data,
                            .msg_iovlen = 1,
                            .msg_control = control.space,
                            .msg_controllen = sizeof control.space};
    ssize_t length = recvmsg(channel, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    int received = -1;
    for (struct cmsghdr *part = length >= 0 ? CMSG_FIRSTHDR(&header) : NULL; part;
         part = CMSG_NXTHDR(&header, part)) {
        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS &&
            part->cmsg_len == CMSG_LEN(sizeof(int))) {
            memcpy(&received, CMSG_DATA(part), sizeof received);
        }
    }
    if (length != (ssize_t)sizeof message || message.magic != MAGIC || received < 0) {
        if (received >= 0) {
            close(received);
        }
        return LAMPREY_ERROR_INVALID;
    }
    *rank = message.rank;
    *descriptor = received;
    return LAMPREY_OK;
}

enum lamprey_status lamprey_mailbox_receive(const struct lamprey_mailbox *mailbox, int timeout_ms,
                                            const atomic_bool *aborted, uint32_t *rank,
                                            int *descriptor)
{
    const int64_t deadline = now_ms() + timeout_ms;
    for (;;) {
        enum lamprey_status status = wait_readable(mailbox->listener, deadline, aborted);
        if (status) {
            return status;
        }
        int channel = accept4(mailbox->listener, NULL, NULL, SOCK_CLOEXEC);
        if (channel < 0 && errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) {
            lamprey_warn("accept failed: %s", strerror(errno));
            return LAMPREY_ERROR_SYSTEM;
        }
        if (channel < 0) {
            continue; /* the sender is gone again */
        }
        status = check_user(channel);
        if (!status) {
            status = wait_readable(channel, deadline, aborted);
        }
        if (!status) {
            status = receive_message(channel, rank, descriptor);
        }
        close(channel);
        if (status == LAMPREY_OK || status == LAMPREY_ERROR_ABORTED ||
            status == LAMPREY_ERROR_TIMEOUT) {
            return status;
        }
    }
}
