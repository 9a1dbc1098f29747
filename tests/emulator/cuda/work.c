/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/emulator/cuda/emulator.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

bool emulator_work_copy(struct emulator_work *to, const struct emulator_work *from)
{
    *to = *from;
    if (from->kind == EMULATOR_WORK_KERNEL && from->kernel.parameter_bytes > 0) {
        to->kernel.parameters = malloc(from->kernel.parameter_bytes);
        if (to->kernel.parameters == NULL) {
            return false;
        }
        memcpy(to->kernel.parameters, from->kernel.parameters, from->kernel.parameter_bytes);
    } else if (from->kind == EMULATOR_WORK_COPY && from->copy.staged != NULL) {
        to->copy.staged = malloc(from->copy.bytes);
        if (to->copy.staged == NULL) {
            return false;
        }
        memcpy(to->copy.staged, from->copy.staged, from->copy.bytes);
        to->copy.from = to->copy.staged;
    } else if (from->kind == EMULATOR_WORK_RECORD || from->kind == EMULATOR_WORK_WAIT) {
        emulator_object_hold(&to->event.event->object);
    }
    return true;
}

void emulator_work_drop(struct emulator_work *work)
{
    if (work->kind == EMULATOR_WORK_KERNEL) {
        free(work->kernel.parameters);
    } else if (work->kind == EMULATOR_WORK_COPY) {
        free(work->copy.staged);
    } else if (work->kind == EMULATOR_WORK_RECORD || work->kind == EMULATOR_WORK_WAIT) {
        emulator_object_drop(&work->event.event->object);
    }
    work->kind = EMULATOR_WORK_EMPTY;
}

static void fill(char *to, uint32_t value, unsigned width, size_t count)
{
    if (width == 1) {
        memset(to, (int)(value & 0xff), count);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        memcpy(to + i * width, &value, width); /* little-endian hosts: the low bytes come first */
    }
}

static bool value_matches(uint64_t seen, uint64_t wanted, unsigned flags, unsigned width)
{
    uint64_t mask = width == 4 ? UINT32_MAX : UINT64_MAX;
    uint64_t difference = (seen - wanted) & mask;
    switch (flags & 3) {
    case CU_STREAM_WAIT_VALUE_GEQ:
        return (difference >> (width * 8 - 1)) == 0;
    case CU_STREAM_WAIT_VALUE_EQ:
        return difference == 0;
    case CU_STREAM_WAIT_VALUE_AND:
        return (seen & wanted & mask) != 0;
    default:
        return ((~(seen | wanted)) & mask) != 0;
    }
}

static uint64_t load_word(void *address, unsigned width)
{
    if (width == 4) {
        return atomic_load((_Atomic uint32_t *)address);
    }
    return atomic_load((_Atomic uint64_t *)address);
}

void emulator_work_run(struct emulator_work *work)
{
    switch (work->kind) {
    case EMULATOR_WORK_KERNEL: {
        void *parameters[1] = {work->kernel.parameters};
        lamprey_host_kernel_run(work->kernel.kernel, &work->kernel.launch, parameters);
        break;
    }
    case EMULATOR_WORK_COPY:
        for (size_t row = 0; row < work->copy.rows; row++) {
            memmove(work->copy.to + row * work->copy.to_pitch,
                    work->copy.from + row * work->copy.from_pitch, work->copy.bytes);
        }
        break;
    case EMULATOR_WORK_SET:
        for (size_t row = 0; row < work->set.rows; row++) {
            fill(work->set.to + row * work->set.pitch, work->set.value, work->set.width,
                 work->set.count);
        }
        break;
    case EMULATOR_WORK_HOST: {
        bool before = emulator_in_callback(true);
        work->host.function(work->host.data);
        emulator_in_callback(before);
        break;
    }
    case EMULATOR_WORK_WRITE_VALUE:
        if (work->word.width == 4) {
            atomic_store((_Atomic uint32_t *)work->word.address, (uint32_t)work->word.value);
        } else {
            atomic_store((_Atomic uint64_t *)work->word.address, work->word.value);
        }
        break;
    case EMULATOR_WORK_WAIT_VALUE:
        while (!value_matches(load_word(work->word.address, work->word.width), work->word.value,
                              work->word.flags, work->word.width)) {
            sched_yield();
        }
        break;
    case EMULATOR_WORK_EMPTY:
    case EMULATOR_WORK_RECORD:
    case EMULATOR_WORK_WAIT:
        break;
    }
}
