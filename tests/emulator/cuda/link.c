/* SPDX-License-Identifier: Apache-2.0 */
/* Broken NVLinks, for LAMPREY_EMULATOR_LINKS: stores to imported memory go to a file of their own,
 * from which a thread carries them over late, to the wrong place, or not at all. */
#define _GNU_SOURCE
#include "tests/emulator/cuda/emulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sys/mman.h>
#include <unistd.h>

#define UNIT sizeof(uint64_t) /* what a store is never torn inside of */

struct link {
    _Atomic uint64_t *from;
    _Atomic uint32_t *to;
    uint64_t *carried; /* what both ends began with, and then what was carried over last */
    size_t units;
    unsigned delay_ms;
    bool bent; /* neighbours change places */
};

/* Halves that are as they were stay: half a unit may hold something else at the other end. */
static void carry(const struct link *link, size_t unit)
{
    const uint64_t now = atomic_load(&link->from[unit]);
    const uint64_t changed = now ^ link->carried[unit];
    _Atomic uint32_t *to = &link->to[2 * (link->bent ? unit ^ 1 : unit)];
    if ((uint32_t)changed != 0) {
        atomic_store(&to[0], (uint32_t)now);
    }
    if (changed >> 32 != 0) {
        atomic_store(&to[1], (uint32_t)(now >> 32));
    }
    link->carried[unit] = now;
}

/* As long as the process lives: the allocation may go at any time, our mappings stay. */
static void *carry_all(void *argument)
{
    const struct link *link = argument;
    for (;;) {
        usleep(link->delay_ms * 1000);
        for (size_t unit = 0; unit < link->units; unit++) {
            carry(link, unit);
        }
    }
    return NULL;
}

static void *map(int file, size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return memory != MAP_FAILED ? memory : NULL;
}

static bool start(int near, int far, size_t bytes, unsigned delay_ms, bool bent)
{
    struct link *link = calloc(1, sizeof(*link));
    pthread_t thread;
    if (link == NULL) {
        return false;
    }
    *link = (struct link){
        .from = map(near, bytes),
        .to = map(far, bytes),
        .carried = malloc(bytes),
        .units = bytes / UNIT,
        .delay_ms = delay_ms,
        .bent = bent,
    };
    if (link->from == NULL || link->to == NULL || link->carried == NULL) {
        return false;
    }
    memcpy((void *)link->from, (const void *)link->to, bytes);
    memcpy(link->carried, (const void *)link->to, bytes);
    if (pthread_create(&thread, NULL, carry_all, link) != 0) {
        return false;
    }
    pthread_detach(thread);
    return true;
}

int emulator_link(int far, size_t bytes, CUdevice device)
{
    const char *kind = getenv("LAMPREY_EMULATOR_LINKS");
    unsigned late_ms = 0;
    if (kind == NULL) {
        return far;
    }
    const bool deaf = strcmp(kind, "deaf") == 0;
    const bool bent = strcmp(kind, "bent") == 0;
    if (!deaf && !bent && sscanf(kind, "late:%u", &late_ms) != 1) {
        fprintf(stderr, "emulator: LAMPREY_EMULATOR_LINKS: \"%s\" is not deaf, bent or late:ms\n",
                kind);
        return far;
    }
    int near = emulator_share_file(device, bytes);
    if (near >= 0 && !deaf && !start(near, far, bytes, bent ? 1 : late_ms, bent)) {
        close(near);
        near = -1;
    }
    close(far);
    return near;
}
