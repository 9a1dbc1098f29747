/* SPDX-License-Identifier: Apache-2.0 */
/* Collectives as they run on a stream's thread: in rounds over the shared slots, one barrier a
 * round. Two slots a rank take turns, so a slot is written again only after every reader has passed
 * the next barrier. */
#include "tests/emulator/nccl/internal.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

static char *slot_of(ncclComm_t comm, int rank)
{
    return comm->segment->slots[comm->slot_parity & 1][rank];
}

static bool same_call(const struct emulated_signature *a, const struct emulated_signature *b)
{
    return a->sequence == b->sequence && a->count == b->count && a->kind == b->kind &&
           a->type == b->type && a->op == b->op && a->root == b->root;
}

/* After the first barrier of a collective: real ranks that disagree would hang or compute nonsense.
 */
static bool all_agree(ncclComm_t comm)
{
    struct emulated_signature *all = comm->segment->signatures[comm->slot_parity & 1];
    for (int rank = 1; rank < comm->nranks; rank++) {
        if (!same_call(&all[rank], &all[0])) {
            WARN("Ranks 0 and %d disagree: collective %lu is kind %u count %lu type %u op %u root "
                 "%u "
                 "on the one and %lu: %u %lu %u %u %u on the other",
                 rank, all[0].sequence, all[0].kind, all[0].count, all[0].type, all[0].op,
                 all[0].root, all[rank].sequence, all[rank].kind, all[rank].count, all[rank].type,
                 all[rank].op, all[rank].root);
            atomic_store(&comm->async_error, ncclInvalidUsage);
            return false;
        }
    }
    return true;
}

static void publish(ncclComm_t comm, const struct emulated_task *task, size_t offset, size_t bytes,
                    size_t total)
{
    char *slot = slot_of(comm, comm->rank);
    const char *send = task->send;
    if (task->kind == TASK_REDUCE_SCATTER) {
        for (int rank = 0; rank < comm->nranks; rank++) {
            memcpy(slot + (size_t)rank * bytes, send + (size_t)rank * total + offset, bytes);
        }
    } else if (task->kind != TASK_BROADCAST || comm->rank == task->root) {
        memcpy(slot, send + offset, bytes);
    }
}

static void consume(ncclComm_t comm, const struct emulated_task *task, size_t offset, size_t bytes,
                    size_t total)
{
    char *recv = task->recv;
    if (task->kind == TASK_BROADCAST) {
        memcpy(recv + offset, slot_of(comm, task->root), bytes);
        return;
    }
    if (task->kind == TASK_ALL_GATHER) {
        for (int rank = 0; rank < comm->nranks; rank++) {
            memcpy(recv + (size_t)rank * total + offset, slot_of(comm, rank), bytes);
        }
        return;
    }
    if (task->kind == TASK_REDUCE && comm->rank != task->root) {
        return;
    }
    const void *inputs[EMULATED_MAX_RANKS];
    for (int rank = 0; rank < comm->nranks; rank++) {
        size_t part = task->kind == TASK_REDUCE_SCATTER ? (size_t)comm->rank * bytes : 0;
        inputs[rank] = slot_of(comm, rank) + part;
    }
    emulated_reduce(recv + offset, inputs, comm->nranks, bytes / emulated_type_bytes(task->type),
                    task);
}

static void run_collective(ncclComm_t comm, const struct emulated_task *task)
{
    size_t element = emulated_type_bytes(task->type);
    size_t total = task->count * element;
    size_t parts = task->kind == TASK_REDUCE_SCATTER ? (size_t)comm->nranks : 1;
    size_t chunk = EMULATED_SLOT_BYTES / parts / element * element;
    struct emulated_signature mine = {.sequence = comm->sequence++,
                                      .count = task->count,
                                      .kind = task->kind,
                                      .type = task->type,
                                      .op = (uint32_t)task->op,
                                      .root = (uint32_t)task->root};
    for (size_t offset = 0; offset < total; offset += chunk) {
        size_t bytes = total - offset < chunk ? total - offset : chunk;
        publish(comm, task, offset, bytes, total);
        comm->segment->signatures[comm->slot_parity & 1][comm->rank] = mine;
        if (!emulated_barrier_wait(&comm->segment->stream, comm->nranks, &comm->abort) ||
            (offset == 0 && !all_agree(comm))) {
            return;
        }
        consume(comm, task, offset, bytes, total);
        comm->slot_parity++;
    }
}

/* One rank: what is reduced is the own data, which a pre-multiplied sum still scales. */
static void run_alone(const struct emulated_task *task)
{
    size_t bytes = task->count * emulated_type_bytes(task->type);
    const void *inputs[1] = {task->send};
    if (task->custom.used) {
        emulated_reduce(task->recv, inputs, 1, task->count, task);
    } else if (task->send != task->recv) {
        memmove(task->recv, task->send, bytes);
    }
}

struct transfer {
    const struct emulated_task *task;
    size_t done;
    size_t total;
};

static size_t ring_push(struct emulated_ring *ring, const char *data, size_t bytes)
{
    uint64_t written = atomic_load_explicit(&ring->written, memory_order_relaxed);
    uint64_t read = atomic_load_explicit(&ring->read, memory_order_acquire);
    size_t room = EMULATED_RING_BYTES - (size_t)(written - read);
    size_t at = (size_t)(written % EMULATED_RING_BYTES);
    size_t now = bytes < room ? bytes : room;
    now = now < EMULATED_RING_BYTES - at ? now : EMULATED_RING_BYTES - at;
    memcpy(ring->data + at, data, now);
    atomic_store_explicit(&ring->written, written + now, memory_order_release);
    return now;
}

static size_t ring_pull(struct emulated_ring *ring, char *data, size_t bytes)
{
    uint64_t read = atomic_load_explicit(&ring->read, memory_order_relaxed);
    uint64_t written = atomic_load_explicit(&ring->written, memory_order_acquire);
    size_t available = (size_t)(written - read);
    size_t at = (size_t)(read % EMULATED_RING_BYTES);
    size_t now = bytes < available ? bytes : available;
    now = now < EMULATED_RING_BYTES - at ? now : EMULATED_RING_BYTES - at;
    memcpy(data, ring->data + at, now);
    atomic_store_explicit(&ring->read, read + now, memory_order_release);
    return now;
}

static size_t move(ncclComm_t comm, struct transfer *transfer)
{
    const struct emulated_task *task = transfer->task;
    size_t left = transfer->total - transfer->done;
    if (task->kind == TASK_SEND) {
        return ring_push(&comm->segment->rings[comm->rank][task->root],
                         (const char *)task->send + transfer->done, left);
    }
    return ring_pull(&comm->segment->rings[task->root][comm->rank],
                     (char *)task->recv + transfer->done, left);
}

/* All sends and receives of a group advance together; those of one direction and peer one after the
 * other. */
static void run_transfers(ncclComm_t comm, const struct emulated_task *tasks, size_t count)
{
    struct transfer *transfers = calloc(count, sizeof(*transfers));
    if (transfers == NULL) {
        atomic_store(&comm->async_error, ncclSystemError);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        transfers[i].task = &tasks[i];
        transfers[i].total = tasks[i].count * emulated_type_bytes(tasks[i].type);
    }
    size_t unfinished = count;
    for (unsigned turns = 0; unfinished > 0 && atomic_load(&comm->abort) == 0;) {
        bool busy[2][EMULATED_MAX_RANKS] = {{false}};
        size_t moved = 0;
        unfinished = 0;
        for (size_t i = 0; i < count; i++) {
            struct transfer *transfer = &transfers[i];
            bool *taken = &busy[tasks[i].kind == TASK_SEND][tasks[i].root];
            if (transfer->done < transfer->total && !*taken) {
                size_t now = move(comm, transfer);
                transfer->done += now;
                moved += now;
            }
            if (transfer->done < transfer->total) {
                *taken = true;
                unfinished++;
            }
        }
        turns = moved > 0 ? 0 : turns + 1;
        if (moved == 0 && unfinished > 0) {
            emulated_pause(turns);
        }
    }
    free(transfers);
}

void emulated_execute(ncclComm_t comm, const struct emulated_task *tasks, size_t count)
{
    const int state = atomic_load(&comm->async_error);
    if (atomic_load(&comm->abort) != 0 || (state != ncclSuccess && state != ncclInProgress)) {
        return;
    }
    if (tasks[0].kind == TASK_SEND || tasks[0].kind == TASK_RECV) {
        run_transfers(comm, tasks, count);
    } else if (comm->nranks == 1) {
        run_alone(&tasks[0]);
    } else {
        run_collective(comm, &tasks[0]);
    }
}
