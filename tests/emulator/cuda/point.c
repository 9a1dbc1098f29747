/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/emulator/cuda/emulator.h"

#include <limits.h>
#include <stdlib.h>
#include <time.h>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

struct emulator_point *emulator_point_create(void)
{
    struct emulator_point *point = calloc(1, sizeof(*point));
    if (point != NULL) {
        atomic_init(&point->references, 1);
    }
    return point;
}

struct emulator_point *emulator_point_hold(struct emulator_point *point)
{
    atomic_fetch_add_explicit(&point->references, 1, memory_order_relaxed);
    return point;
}

void emulator_point_drop(struct emulator_point *point)
{
    if (point != NULL &&
        atomic_fetch_sub_explicit(&point->references, 1, memory_order_acq_rel) == 1) {
        free(point);
    }
}

void emulator_point_signal(struct emulator_point *point)
{
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    point->time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    atomic_store_explicit(&point->done, 1, memory_order_release);
    syscall(SYS_futex, &point->done, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void emulator_point_wait(struct emulator_point *point)
{
    while (atomic_load_explicit(&point->done, memory_order_acquire) == 0) {
        syscall(SYS_futex, &point->done, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    }
}

bool emulator_point_reached(const struct emulator_point *point)
{
    return atomic_load_explicit(&point->done, memory_order_acquire) != 0;
}
