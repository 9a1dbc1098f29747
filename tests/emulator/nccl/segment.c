/* SPDX-License-Identifier: Apache-2.0 */
/* Rendezvous: the process that made the unique id holds an anonymous memory file and hands it, over
 * a socket with an unguessable abstract name, to every rank that asks. So nothing has a name in a
 * file system and nothing can be left behind, whoever dies. */
#define _GNU_SOURCE
#include "tests/emulator/nccl/internal.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define ID_MAGIC UINT64_C(0x4c414d50454d5531)
#define SPIN_TURNS 200

struct id_content {
    uint64_t magic;
    char name[64];
};

struct root {
    int listener;
    int memory;
    sem_t *started; /* the starter's, for as long as it waits */
};

void emulated_pause(unsigned turns)
{
    if (turns < SPIN_TURNS) {
        sched_yield();
        return;
    }
    struct timespec nap = {0, turns < 10 * SPIN_TURNS ? 50000 : 500000};
    nanosleep(&nap, NULL);
}

bool emulated_barrier_wait(struct emulated_barrier *barrier, int nranks, const atomic_int *abort)
{
    uint32_t generation = atomic_load(&barrier->generation);
    if (atomic_fetch_add(&barrier->arrived, 1) + 1 == (uint32_t)nranks) {
        atomic_store(&barrier->arrived, 0);
        atomic_fetch_add(&barrier->generation, 1);
        syscall(SYS_futex, &barrier->generation, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        return true;
    }
    for (unsigned turns = 0; atomic_load(&barrier->generation) == generation; turns++) {
        if (atomic_load(abort) != 0) {
            return false;
        }
        if (turns < SPIN_TURNS / 4) {
            sched_yield();
            continue;
        }
        struct timespec limit = {0, 2000000}; /* the abort word is looked at this often */
        syscall(SYS_futex, &barrier->generation, FUTEX_WAIT, generation, &limit, NULL, 0);
    }
    return true;
}

static socklen_t make_address(const char *name, struct sockaddr_un *address)
{
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    size_t length = strlen(name);
    memcpy(address->sun_path + 1, name, length);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

static bool send_descriptor(int socket, int descriptor)
{
    char byte = 0;
    struct iovec part = {&byte, 1};
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
    return sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

static int receive_descriptor(int socket)
{
    char byte = 0;
    struct iovec part = {&byte, 1};
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    ssize_t got = 0;
    do {
        got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    struct cmsghdr *header = got == 1 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header == NULL || header->cmsg_type != SCM_RIGHTS) {
        return -1;
    }
    int descriptor = -1;
    memcpy(&descriptor, CMSG_DATA(header), sizeof(int));
    return descriptor;
}

static void *root_main(void *argument)
{
    struct root *root = argument;
    sem_post(root->started);
    int wanted = -1;
    for (int served = 0; wanted < 0 || served < wanted;) {
        int peer = accept4(root->listener, NULL, NULL, SOCK_CLOEXEC);
        if (peer < 0) {
            if (errno == EINTR || errno == ECONNABORTED) {
                continue;
            }
            break;
        }
        int nranks = 0;
        if (recv(peer, &nranks, sizeof(nranks), MSG_WAITALL) == (ssize_t)sizeof(nranks) &&
            send_descriptor(peer, root->memory)) {
            wanted = wanted < 0 ? nranks : wanted;
            served++;
        }
        close(peer);
    }
    close(root->listener);
    close(root->memory);
    free(root);
    return NULL;
}

/* Returns once the thread is past its start: the caller may fork its ranks at once, and a thread that
 * starts is inside AddressSanitizer's allocator, whose locks the child would find taken for ever. */
static bool start_root(struct root *root)
{
    sem_t started;
    sem_init(&started, 0, 0);
    root->started = &started;
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    int error = pthread_create(&thread, NULL, root_main, root);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0) {
        pthread_detach(thread);
        while (sem_wait(&started) != 0) {
        }
    }
    sem_destroy(&started);
    return error == 0;
}

ncclResult_t emulated_segment_serve(ncclUniqueId *id)
{
    uint8_t random[16];
    struct id_content content = {.magic = ID_MAGIC};
    _Static_assert(sizeof(content) <= sizeof(*id), "the id holds it");
    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random)) {
        return ncclSystemError;
    }
    int length = snprintf(content.name, sizeof(content.name), "emulated-nccl-");
    for (size_t i = 0; i < sizeof(random); i++) {
        length += snprintf(content.name + length, sizeof(content.name) - (size_t)length, "%02x",
                           random[i]);
    }
    struct root *root = calloc(1, sizeof(*root));
    if (root == NULL) {
        return ncclSystemError;
    }
    struct sockaddr_un address;
    socklen_t address_bytes = make_address(content.name, &address);
    root->memory = memfd_create("emulated-nccl", MFD_CLOEXEC);
    root->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (root->memory < 0 || root->listener < 0 ||
        ftruncate(root->memory, (off_t)sizeof(struct emulated_segment)) != 0 ||
        bind(root->listener, (struct sockaddr *)&address, address_bytes) != 0 ||
        listen(root->listener, 2 * EMULATED_MAX_RANKS) != 0 || !start_root(root)) {
        WARN("Could not serve a unique id: %s", strerror(errno));
        close(root->listener);
        close(root->memory);
        free(root);
        return ncclSystemError;
    }
    memset(id, 0, sizeof(*id));
    memcpy(id, &content, sizeof(content));
    return ncclSuccess;
}

static int fetch_memory(const char *name, int nranks)
{
    struct sockaddr_un address;
    socklen_t bytes = make_address(name, &address);
    int peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int memory = -1;
    if (peer >= 0 && connect(peer, (struct sockaddr *)&address, bytes) == 0 &&
        send(peer, &nranks, sizeof(nranks), MSG_NOSIGNAL) == (ssize_t)sizeof(nranks)) {
        memory = receive_descriptor(peer);
    }
    if (peer >= 0) {
        close(peer);
    }
    return memory;
}

ncclResult_t emulated_segment_join(const ncclUniqueId *id, int rank, int nranks,
                                   struct emulated_segment **result)
{
    struct id_content content;
    memcpy(&content, id, sizeof(content));
    if (content.magic != ID_MAGIC || memchr(content.name, 0, sizeof(content.name)) == NULL) {
        WARN("The unique id was not made by ncclGetUniqueId");
        return ncclInvalidArgument;
    }
    int memory = fetch_memory(content.name, nranks);
    if (memory < 0) {
        WARN("Nobody serves the unique id any more: %s", strerror(errno));
        return ncclSystemError;
    }
    struct emulated_segment *segment =
        mmap(NULL, sizeof(*segment), PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    close(memory);
    if (segment == MAP_FAILED) {
        return ncclSystemError;
    }
    uint32_t expected = 0;
    if (!atomic_compare_exchange_strong(&segment->nranks, &expected, (uint32_t)nranks) &&
        expected != (uint32_t)nranks) {
        WARN("Rank %d was given %d ranks, others %u", rank, nranks, expected);
        emulated_segment_leave(segment);
        return ncclInvalidArgument;
    }
    if (atomic_exchange(&segment->claimed[rank], 1) != 0) {
        WARN("Rank %d is taken twice", rank);
        emulated_segment_leave(segment);
        return ncclInvalidUsage;
    }
    *result = segment;
    return ncclSuccess;
}

void emulated_segment_leave(struct emulated_segment *segment)
{
    if (segment != NULL) {
        munmap(segment, sizeof(*segment));
    }
}
