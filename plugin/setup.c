/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/setup.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/config.h"
#include "plugin/identity.h"
#include "plugin/join.h"
#include "plugin/log.h"

#define MAILBOX_TIMEOUT_MS                                                                         \
    10000 /* every rank is past the vote that comes before, so nobody is late by much */

/* The ranks have just met, so they come within moments of each other. Shorter than the exchange's
 * patience: those that wait in the vote must not call this rank missing. */
#define STORES_TIMEOUT_MS 5000

struct setup {
    struct lamprey_comm *comm;
    struct lamprey_join join;
    char reason[256];
};

/* False with setup->reason: some rank refuses. */
static enum lamprey_status take_vote(struct setup *setup, struct lamprey_vote *vote, bool *passed)
{
    *passed = false;
    struct lamprey_join *join = &setup->join;
    vote->magic = LAMPREY_RECORD_MAGIC;
    if (join->exchange.nonblocking && !vote->refuses) {
        lamprey_vote_refuse(vote, "the communicator is non-blocking");
    }
    enum lamprey_status status =
        lamprey_exchange_gather(&join->exchange, vote, sizeof *vote, join->votes);
    if (!status) {
        *passed = lamprey_votes_pass(join->votes, setup->comm->nranks, setup->reason,
                                     sizeof setup->reason);
    }
    return status;
}

/* The whole way from records to the last vote. agreed->served tells the outcome, setup->reason why
 * not. */
static enum lamprey_status negotiate(struct setup *setup, struct lamprey_agreed *agreed)
{
    struct lamprey_comm *comm = setup->comm;
    struct lamprey_join *join = &setup->join;
    struct lamprey_record own;
    struct lamprey_vote vote = {0};
    bool passed = false;
    lamprey_join_describe(join, &own);
    enum lamprey_status status =
        lamprey_exchange_gather(&join->exchange, &own, sizeof own, join->records);
    if (status) {
        return status;
    }
    *agreed = lamprey_agree(join->records, comm->nranks, setup->reason, sizeof setup->reason);
    if (!agreed->served) {
        return LAMPREY_OK;
    }
    agreed->served = false;
    lamprey_join_offer(join, agreed->lanes, agreed->slot_cells,
                       agreed->across_hosts ? LAMPREY_BY_FABRIC : LAMPREY_BY_DESCRIPTOR, &vote);
    status = take_vote(setup, &vote, &passed);
    if (status || !passed) {
        return status;
    }
    memset(&vote, 0, sizeof vote);
    lamprey_join_map(join, MAILBOX_TIMEOUT_MS, &vote);
    status = take_vote(setup, &vote, &passed);
    if (status || !passed) {
        return status;
    }
    memset(&vote, 0, sizeof vote);
    lamprey_join_try(join, agreed, STORES_TIMEOUT_MS, &vote);
    status = take_vote(setup, &vote, &passed);
    agreed->served = !status && passed;
    return status;
}

static void report(const struct lamprey_comm *comm, enum lamprey_status status, const char *reason)
{
    static const char *const pdl_names[] = {"off", "wait", "signal"};
    if (atomic_load(&comm->state) == LAMPREY_COMM_SERVED) {
        lamprey_info("communicator %p, rank %d of %d: all-reduces up to %llu bytes are served "
                     "(%s, one-shot up to %llu, %u lanes, %llu KiB staging memory, PDL %s%s)",
                     (void *)comm->handle, comm->rank, comm->nranks,
                     (unsigned long long)comm->agreed.max_bytes,
                     comm->agreed.across_hosts ? "across hosts" : "one host",
                     (unsigned long long)(comm->agreed.one_shot_bytes < comm->agreed.max_bytes
                                              ? comm->agreed.one_shot_bytes
                                              : comm->agreed.max_bytes),
                     comm->agreed.lanes,
                     (unsigned long long)(atomic_load(&comm->workspace)->own.bytes >> 10),
                     pdl_names[lamprey_config_get()->pdl],
                     comm->agreed.check ? ", calls are checked" : "");
    } else {
        lamprey_info("communicator %p, rank %d of %d is left to NCCL: %s", (void *)comm->handle,
                     comm->rank, comm->nranks, status ? lamprey_status_name(status) : reason);
    }
}

static void conclude(struct lamprey_comm *comm, enum lamprey_comm_state outcome)
{
    enum lamprey_comm_state fresh = LAMPREY_COMM_NEW; /* unless closed meanwhile */
    atomic_compare_exchange_strong(&comm->state, &fresh, outcome);
    lamprey_count(&comm->counters, outcome == LAMPREY_COMM_SERVED
                                       ? LAMPREY_COUNT_communicators_served
                                       : LAMPREY_COUNT_communicators_refused);
}

static enum lamprey_status run(struct setup *setup)
{
    struct lamprey_comm *comm = setup->comm;
    struct lamprey_join *join = &setup->join;
    struct lamprey_agreed agreed = {0};
    enum lamprey_status status = lamprey_join_open(join, comm);
    if (!status) {
        status = negotiate(setup, &agreed);
        lamprey_join_close(join);
    }
    if (agreed.served) {
        comm->agreed = agreed;
        join->workspace->checked = agreed.check;
        atomic_store(&comm->workspace, join->workspace);
        if (atomic_load(&comm->aborted)) {
            lamprey_workspace_abort(join->workspace);
        }
    } else {
        lamprey_workspace_release(join->workspace);
    }
    enum lamprey_comm_state outcome = agreed.served ? LAMPREY_COMM_SERVED : LAMPREY_COMM_REFUSED;
    if (status && status != LAMPREY_ERROR_ASYNC && status != LAMPREY_ERROR_ABORTED) {
        outcome = LAMPREY_COMM_BROKEN;
    }
    conclude(comm, outcome);
    report(comm, status, setup->reason);
    return status;
}

void lamprey_setup(struct lamprey_comm *comm)
{
    struct setup setup = {.comm = comm};
    struct lamprey_visit visit;
    if (lamprey_visit_begin(comm->device, &visit) != LAMPREY_OK) {
        conclude(comm, LAMPREY_COMM_BROKEN);
        return;
    }
    run(&setup);
    lamprey_visit_end(&visit);
}

/* Communicators that one thread sets up one after the other, in call order. */
struct line {
    pthread_t thread;
    bool started;
    struct lamprey_comm *const *comms;
    size_t count;
    size_t first; /* the line's communicators are those that share its first one's line */
};

/* Each communicator has a line of its own, so that none waits for another's peers; but where NCCL
 * runs the kernels of several communicators of a GPU in the order of their launches, the user keeps
 * that order and so do we. */
static bool same_line(const struct lamprey_comm *a, const struct lamprey_comm *b)
{
    return a == b || (a->device == b->device && lamprey_identity_serialised(a->nccl));
}

static void *run_line(void *context)
{
    const struct line *line = context;
    for (size_t i = line->first; i < line->count; i++) {
        if (same_line(line->comms[i], line->comms[line->first])) {
            lamprey_setup(line->comms[i]);
        }
    }
    return NULL;
}

static bool begins_line(struct lamprey_comm *const *comms, size_t index)
{
    for (size_t i = 0; i < index; i++) {
        if (same_line(comms[i], comms[index])) {
            return false;
        }
    }
    return true;
}

void lamprey_setup_all(struct lamprey_comm *const *comms, size_t count)
{
    struct line *lines = calloc(count, sizeof *lines);
    for (size_t i = 0; lines && i < count; i++) {
        lines[i] = (struct line){.comms = comms, .count = count, .first = i};
        if (i > 0 && begins_line(comms, i)) {
            lines[i].started = pthread_create(&lines[i].thread, NULL, run_line, &lines[i]) == 0;
        }
    }
    if (lines && count > 0) {
        run_line(&lines[0]);
    }
    for (size_t i = 1; lines && i < count; i++) {
        if (lines[i].started) {
            pthread_join(lines[i].thread, NULL);
        }
    }
    free(lines);
    for (size_t i = 0; i < count; i++) { /* without a thread its turn never came */
        enum lamprey_comm_state fresh = LAMPREY_COMM_NEW;
        atomic_compare_exchange_strong(&comms[i]->state, &fresh, LAMPREY_COMM_BROKEN);
    }
}
