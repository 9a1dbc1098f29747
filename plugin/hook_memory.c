/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin/hook_memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* From linux/membarrier.h, which old toolchains lack. */
enum {
    MEMBARRIER_SYNC_CORE = 1 << 5,
    MEMBARRIER_REGISTER_SYNC_CORE = 1 << 6,
};

/* The kernel's default for vm.mmap_min_addr; nothing of ours is that low. */
static const uintptr_t lowest_address = 65536;

/* What is left to the heap and to the main thread's stack to grow into. */
static const uintptr_t growth_bytes = (uintptr_t)1 << 30;

static uintptr_t page_bytes(void)
{
    return (uintptr_t)sysconf(_SC_PAGESIZE);
}

/* The whole file at once: the list may change between reads, and a line may be cut. */
static char *read_file(const char *path)
{
    size_t capacity = 1 << 16;
    size_t length = 0;
    char *text = malloc(capacity);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    while (text != NULL && file >= 0) {
        ssize_t got = read(file, text + length, capacity - length - 1);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            text[length] = '\0';
            close(file);
            return got == 0 ? text : (free(text), NULL);
        }
        length += (size_t)got;
        if (capacity - length < 4096) {
            char *larger = realloc(text, capacity * 2);
            if (larger == NULL) {
                break;
            }
            text = larger;
            capacity *= 2;
        }
    }
    if (file >= 0) {
        close(file);
    }
    free(text);
    return NULL;
}

static bool parse_mapping(const char *line, struct lamprey_hook_mapping *mapping)
{
    char flags[5];
    char name[16] = "";
    if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %*s %*s %*s %15[^\n]", &mapping->start,
               &mapping->end, flags, name) < 3) {
        return false;
    }
    mapping->protection = (flags[0] == 'r' ? PROT_READ : 0) | (flags[1] == 'w' ? PROT_WRITE : 0) |
                          (flags[2] == 'x' ? PROT_EXEC : 0);
    mapping->shared = flags[3] == 's';
    mapping->heap = strncmp(name, "[heap", 5) == 0;
    mapping->stack = strncmp(name, "[stack", 6) == 0;
    return true;
}

enum lamprey_status lamprey_hook_maps_read(struct lamprey_hook_maps *maps)
{
    char *text = read_file("/proc/self/maps");
    if (text == NULL) {
        return LAMPREY_ERROR_SYSTEM;
    }
    size_t lines = 0;
    for (const char *at = text; (at = strchr(at, '\n')) != NULL; at++) {
        lines++;
    }
    struct lamprey_hook_mapping *mappings = calloc(lines + 1, sizeof(*mappings));
    if (mappings == NULL) {
        free(text);
        return LAMPREY_ERROR_MEMORY;
    }
    size_t count = 0;
    for (char *line = text; line != NULL && *line != '\0' && count < lines;) {
        char *end = strchr(line, '\n');
        if (end != NULL) {
            *end++ = '\0';
        }
        count += parse_mapping(line, &mappings[count]);
        line = end;
    }
    free(text);
    maps->mappings = mappings;
    maps->count = count;
    return LAMPREY_OK;
}

void lamprey_hook_maps_free(struct lamprey_hook_maps *maps)
{
    free(maps->mappings);
    maps->mappings = NULL;
    maps->count = 0;
}

const struct lamprey_hook_mapping *lamprey_hook_maps_find(const struct lamprey_hook_maps *maps,
                                                          uintptr_t address)
{
    for (size_t i = 0; i < maps->count; i++) {
        if (address >= maps->mappings[i].start && address < maps->mappings[i].end) {
            return &maps->mappings[i];
        }
    }
    return NULL;
}

/* A place for size bytes in the gap before mapping index, as near to address as it goes; 0 if there
 * is none. */
static uintptr_t place_in_gap(const struct lamprey_hook_maps *maps, size_t index, uintptr_t address,
                              uintptr_t reach, size_t size)
{
    uintptr_t page = page_bytes();
    uintptr_t start = index == 0 ? lowest_address : maps->mappings[index - 1].end;
    uintptr_t end = maps->mappings[index].start;
    start += index > 0 && maps->mappings[index - 1].heap ? growth_bytes : 0;
    end -= maps->mappings[index].stack ? growth_bytes : 0;
    uintptr_t low = address > reach ? (address - reach + page - 1) & ~(page - 1) : 0;
    uintptr_t high = address + reach < address ? UINTPTR_MAX & ~(page - 1) : address + reach;
    start = start > low ? start : low;
    end = (end < high ? end : high) & ~(page - 1);
    if (end <= start || end - start < size) {
        return 0;
    }
    return start >= address ? start : end - size;
}

static uintptr_t distance(uintptr_t a, uintptr_t b)
{
    return a < b ? b - a : a - b;
}

enum lamprey_status lamprey_hook_maps_near(const struct lamprey_hook_maps *maps, uintptr_t address,
                                           uintptr_t reach, size_t size, uint8_t **pages,
                                           size_t *gaps)
{
    uintptr_t tried = 0; /* every place up to this distance has been taken meanwhile */
    *gaps = 0;
    for (;;) {
        uintptr_t best = 0;
        uintptr_t best_distance = UINTPTR_MAX;
        for (size_t i = 0; i < maps->count; i++) {
            uintptr_t place = place_in_gap(maps, i, address, reach, size);
            if (place != 0 && distance(place, address) > tried &&
                distance(place, address) < best_distance) {
                best = place;
                best_distance = distance(place, address);
            }
        }
        if (best == 0) {
            return LAMPREY_ERROR_MEMORY;
        }
        ++*gaps;
        tried = best_distance;
        void *got = mmap((void *)best, size, PROT_READ | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (got == (void *)best) {
            *pages = got;
            return LAMPREY_OK;
        }
        if (got == MAP_FAILED && (errno == EACCES || errno == EPERM)) {
            return LAMPREY_ERROR_UNSUPPORTED;
        }
        if (got != MAP_FAILED) { /* kernels before 4.17 take the address as a hint */
            munmap(got, size);
        }
    }
}

void lamprey_hook_memory_open(struct lamprey_hook_memory *memory)
{
    memory->call = "";
    memory->error = 0;
    memory->replace = false;
    memory->descriptor = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    if (memory->descriptor < 0) {
        memory->replace = true;
        memory->descriptor = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    }
}

void lamprey_hook_memory_close(struct lamprey_hook_memory *memory)
{
    if (memory->descriptor >= 0) {
        close(memory->descriptor);
    }
    memory->descriptor = -1;
}

static enum lamprey_status fail(struct lamprey_hook_memory *memory, const char *call)
{
    memory->call = call;
    memory->error = errno;
    return LAMPREY_ERROR_SYSTEM;
}

bool lamprey_hook_memory_read(struct lamprey_hook_memory *memory, const void *address, void *bytes,
                              size_t size)
{
    if (memory->descriptor >= 0) {
        return pread(memory->descriptor, bytes, size, (off_t)(uintptr_t)address) == (ssize_t)size;
    }
    struct lamprey_hook_maps maps;
    if (lamprey_hook_maps_read(&maps) != LAMPREY_OK) {
        return false;
    }
    const struct lamprey_hook_mapping *first = lamprey_hook_maps_find(&maps, (uintptr_t)address);
    bool readable = first != NULL && (first->protection & PROT_READ) != 0 &&
                    first->end - (uintptr_t)address >= size;
    lamprey_hook_maps_free(&maps);
    if (readable) {
        memcpy(bytes, address, size);
    }
    return readable;
}

/* Puts a changed copy in the page's place. The kernel swaps them under its own lock, so a thread
 * that executes there sees one or the other and never a hole or a page it may not execute. */
static enum lamprey_status replace_page(struct lamprey_hook_memory *memory, uint8_t *address,
                                        const void *bytes, size_t size)
{
    size_t page = page_bytes();
    uint8_t *old = (uint8_t *)((uintptr_t)address & ~(uintptr_t)(page - 1));
    uint8_t *copy = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) {
        return fail(memory, "mmap");
    }
    memcpy(copy, old, page);
    memcpy(copy + (address - old), bytes, size);
    if (mprotect(copy, page, PROT_READ | PROT_EXEC) != 0) {
        fail(memory, "mprotect to read and execute");
        munmap(copy, page);
        return LAMPREY_ERROR_SYSTEM;
    }
    if (mremap(copy, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, old) != old) {
        fail(memory, "mremap over the page");
        munmap(copy, page);
        return LAMPREY_ERROR_SYSTEM;
    }
    return LAMPREY_OK;
}

static enum lamprey_status write_forced(struct lamprey_hook_memory *memory, void *address,
                                        const void *bytes, size_t size)
{
    ssize_t done = pwrite(memory->descriptor, bytes, size, (off_t)(uintptr_t)address);
    if (done != (ssize_t)size) {
        return fail(memory, "write to /proc/self/mem");
    }
    return LAMPREY_OK;
}

enum lamprey_status lamprey_hook_memory_write(struct lamprey_hook_memory *memory, void *address,
                                              const void *bytes, size_t size)
{
    enum lamprey_status status = LAMPREY_ERROR_SYSTEM;
    if (!memory->replace) {
        status = write_forced(memory, address, bytes, size);
    }
    if (status != LAMPREY_OK) {
        status = replace_page(memory, address, bytes, size);
        memory->replace = memory->replace || status == LAMPREY_OK;
    }
    if (status != LAMPREY_OK) {
        return status;
    }
    __builtin___clear_cache((char *)address, (char *)address + size);
    if (memcmp(address, bytes, size) != 0) {
        errno = 0;
        return fail(memory, "reading back what was written");
    }
    return LAMPREY_OK;
}

enum lamprey_status lamprey_hook_memory_fill(struct lamprey_hook_memory *memory, void *pages,
                                             const void *bytes, size_t size)
{
    if (memory->replace || write_forced(memory, pages, bytes, size) != LAMPREY_OK) {
        if (mprotect(pages, size, PROT_READ | PROT_WRITE) != 0) {
            return fail(memory, "mprotect to read and write");
        }
        memcpy(pages, bytes, size);
        if (mprotect(pages, size, PROT_READ | PROT_EXEC) != 0) {
            return fail(memory, "mprotect to read and execute");
        }
    }
    __builtin___clear_cache((char *)pages, (char *)pages + size);
    return LAMPREY_OK;
}

static bool store_unprotected(void **slot, void *value)
{
    uintptr_t page = (uintptr_t)slot & ~(page_bytes() - 1);
    struct lamprey_hook_maps maps;
    if (lamprey_hook_maps_read(&maps) != LAMPREY_OK) {
        errno = EIO;
        return false;
    }
    const struct lamprey_hook_mapping *found = lamprey_hook_maps_find(&maps, (uintptr_t)slot);
    int protection = found == NULL ? PROT_NONE : found->protection;
    lamprey_hook_maps_free(&maps);
    if (protection == PROT_NONE || (protection & PROT_EXEC) != 0) {
        errno = EFAULT;
        return false;
    }
    bool writable = (protection & PROT_WRITE) != 0;
    if (!writable && mprotect((void *)page, page_bytes(), PROT_READ | PROT_WRITE) != 0) {
        return false;
    }
    __atomic_store_n(slot, value, __ATOMIC_RELEASE);
    return writable || mprotect((void *)page, page_bytes(), protection) == 0;
}

bool lamprey_hook_memory_store(struct lamprey_hook_memory *memory, void **slot, void *value)
{
    /* Forced writes don't care whether the loader is protecting the page at this moment. */
    if (!memory->replace && write_forced(memory, slot, &value, sizeof(value)) == LAMPREY_OK) {
        return true;
    }
    return store_unprotected(slot, value);
}

void lamprey_hook_threads_synchronise(void)
{
    /* Registering again is harmless. Where the kernel lacks the call, the caller's system calls
     * between two writes are all the delay there is, as in every other patcher. */
    if (syscall(SYS_membarrier, MEMBARRIER_REGISTER_SYNC_CORE, 0, 0) == 0) {
        syscall(SYS_membarrier, MEMBARRIER_SYNC_CORE, 0, 0);
    }
}

struct thread {
    pid_t id;
    int64_t start_ns; /* processor time when first seen */
    bool gone;
};

/* 'R', 'S', ... or 0 if the thread has ended. */
static char thread_state(pid_t id)
{
    char path[64];
    char text[512];
    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)id);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return 0;
    }
    ssize_t length = read(file, text, sizeof(text) - 1);
    close(file);
    text[length > 0 ? length : 0] = '\0';
    const char *name_end = strrchr(text, ')');
    return name_end != NULL && name_end[1] == ' ' ? name_end[2] : 0;
}

/* The kernel makes a thread's clock from its id; glibc offers that for pthread_t only. -1 once the
 * thread has ended; 0 where the clock can't be read, so that no time seems to pass. */
static int64_t thread_time_ns(pid_t id)
{
    struct timespec time;
    clockid_t clock = (clockid_t)(~(unsigned)id << 3 | 6);
    if (clock_gettime(clock, &time) == 0) {
        return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
    }
    return errno == EINVAL || errno == ESRCH ? -1 : 0;
}

static enum lamprey_status list_threads(struct thread **threads, size_t *count)
{
    pid_t self = (pid_t)syscall(SYS_gettid);
    size_t capacity = 0;
    DIR *directory = opendir("/proc/self/task");
    if (directory == NULL) {
        return LAMPREY_ERROR_SYSTEM;
    }
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        pid_t id = (pid_t)atoi(entry->d_name);
        if (id <= 0 || id == self) {
            continue;
        }
        if (*count == capacity) {
            capacity = capacity * 2 + 64;
            struct thread *larger = realloc(*threads, capacity * sizeof(**threads));
            if (larger == NULL) {
                closedir(directory);
                return LAMPREY_ERROR_MEMORY;
            }
            *threads = larger;
        }
        (*threads)[(*count)++] = (struct thread){id, thread_time_ns(id), false};
    }
    closedir(directory);
    return LAMPREY_OK;
}

static int64_t monotonic_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Long against a handful of instructions, also where one of them faults and the kernel clears a
 * huge page for it. */
static const int64_t settled_ns = 2000000;

static bool has_settled(const struct thread *thread)
{
    int64_t now = thread_time_ns(thread->id);
    if (now < 0 || now - thread->start_ns > settled_ns) {
        return true;
    }
    /* One that sleeps is in a system call, or has ended. One that was stopped, by a debugger say,
     * may be anywhere, and so may one in uninterruptible sleep: that may be a page fault. */
    char state = thread_state(thread->id);
    return state == 'S' || state == 'I' || state == 'Z' || state == 'X' || state == 0;
}

enum lamprey_status lamprey_hook_threads_settle(unsigned timeout_ms)
{
    struct thread *threads = NULL;
    size_t count = 0;
    enum lamprey_status status = list_threads(&threads, &count);
    const struct timespec pause = {0, 50000};
    size_t waiting = count;
    const int64_t deadline_ns = monotonic_ns() + (int64_t)timeout_ms * 1000000;
    while (status == LAMPREY_OK && waiting != 0) {
        waiting = 0;
        for (size_t i = 0; i < count; i++) {
            threads[i].gone = threads[i].gone || has_settled(&threads[i]);
            waiting += !threads[i].gone;
        }
        if (waiting != 0 && monotonic_ns() > deadline_ns) {
            status = LAMPREY_ERROR_TIMEOUT;
        } else if (waiting != 0) {
            nanosleep(&pause, NULL);
        }
    }
    free(threads);
    return status;
}
