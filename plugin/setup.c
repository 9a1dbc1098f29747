/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/setup.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "plugin/config.h"
#include "plugin/exchange.h"
#include "plugin/identity.h"
#include "plugin/log.h"
#include "plugin/mailbox.h"
#include "plugin/peers.h"
#include "plugin/selftest.h"

/* Where NCCL itself refuses fp8, so do we. */
#define FIRST_NCCL_WITH_FP8 22400
#define FIRST_GPU_WITH_FP8 90

struct setup {
    struct lamprey_comm *comm;
    struct lamprey_exchange exchange;
    struct lamprey_mailbox mailbox;
    struct lamprey_record *records; /* of all ranks, as are the votes */
    struct lamprey_vote *votes;     /* the latest */
    struct lamprey_workspace *workspace;
    struct lamprey_peers peers;
    char reason[256];
};

__attribute__((format(printf, 2, 3))) static void refuse(struct lamprey_vote *vote,
                                                         const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(vote->reason, sizeof vote->reason, format, arguments);
    va_end(arguments);
    vote->refuses = 1;
}

static void fill_record(struct setup *setup, struct lamprey_record *record)
{
    struct lamprey_comm *comm = setup->comm;
    const struct lamprey_config *config = lamprey_config_get();
    char reason[sizeof record->reason] = "";
    memset(record, 0, sizeof *record);
    record->magic = LAMPREY_RECORD_MAGIC;
    record->version = LAMPREY_RECORD_VERSION;
    record->bytes = sizeof *record;
    if (getrandom(&record->id, sizeof record->id, 0) != (ssize_t)sizeof record->id) {
        snprintf(reason, sizeof reason, "no random numbers");
    }
    lamprey_identity_process(record->process);
    record->rank = (uint32_t)comm->rank;
    record->nranks = (uint32_t)comm->nranks;
    record->capability = comm->device->capability;
    record->max_bytes = config->max_bytes;
    record->max_ctas = (uint32_t)config->max_ctas;
    record->algorithm = (uint32_t)config->algorithm;
    record->check = config->check != 0;
    record->has_fp8 = comm->nccl->version >= FIRST_NCCL_WITH_FP8 &&
                      comm->device->capability >= FIRST_GPU_WITH_FP8;
    if (!reason[0]) {
        lamprey_identity_stand_down(comm->nccl, reason, sizeof reason);
    }
    if (!reason[0]) {
        lamprey_identity_gpu(comm->device, &record->domain, reason, sizeof reason);
    }
    if (!reason[0] &&
        lamprey_device_load_kernels(comm->device, reason, sizeof reason) == LAMPREY_OK) {
        record->resident_ctas = comm->device->resident_ctas;
    }
    if (!reason[0] && lamprey_mailbox_open(&setup->mailbox, comm->nranks) != LAMPREY_OK) {
        snprintf(reason, sizeof reason, "no Unix socket can be opened");
    }
    if (setup->mailbox.listener >= 0) {
        memcpy(record->mailbox, setup->mailbox.token, sizeof record->mailbox);
    }
    memcpy(record->reason, reason, sizeof record->reason);
    record->refuses = reason[0] != '\0';
}

/* Own memory, cleared before the vote that lets peers push. */
static void make_workspace(struct setup *setup, const struct lamprey_agreed *agreed,
                           struct lamprey_vote *vote)
{
    struct lamprey_comm *comm = setup->comm;
    enum lamprey_status status = lamprey_workspace_create(
        comm->device, (uint32_t)comm->rank, (uint32_t)comm->nranks, agreed->lanes,
        agreed->slot_cells, agreed->across_hosts ? LAMPREY_BY_FABRIC : LAMPREY_BY_DESCRIPTOR,
        setup->exchange.stream, &setup->workspace);
    if (!status) {
        status = lamprey_exchange_wait(&setup->exchange);
    }
    if (!status) {
        setup->peers.workspace = setup->workspace;
        status = lamprey_peers_offer(&setup->peers, vote);
    }
    if (status && agreed->across_hosts) {
        refuse(vote, "no staging memory for other hosts to map (%s%s)", lamprey_status_name(status),
               status == LAMPREY_ERROR_PERMISSION ? "; is there an IMEX channel?" : "");
    } else if (status) {
        refuse(vote, "no staging memory (%s)", lamprey_status_name(status));
    }
}

static void map_peers(struct setup *setup, struct lamprey_vote *vote)
{
    enum lamprey_status status = lamprey_peers_send(&setup->peers);
    if (status) {
        refuse(vote, "its staging memory can't be passed on (%s)", lamprey_status_name(status));
    }
    /* Also after a failure: peers that could send must not be left with a full mailbox. */
    int rank = -1;
    status = lamprey_peers_map(&setup->peers, setup->votes, &rank);
    if (status && !vote->refuses && rank >= 0) {
        refuse(vote, "rank %d's staging memory can't be mapped (%s)", rank,
               lamprey_status_name(status));
    } else if (status && !vote->refuses) {
        refuse(vote, "a peer's staging memory doesn't come (%s)", lamprey_status_name(status));
    }
}

static void try_stores(struct setup *setup, const struct lamprey_agreed *agreed,
                       struct lamprey_vote *vote)
{
    enum lamprey_status status = lamprey_selftest(&setup->exchange, agreed, setup->workspace);
    if (status) {
        refuse(vote, "stores to the peers' memory don't arrive (%s)", lamprey_status_name(status));
    }
}

/* False with setup->reason: some rank refuses. */
static enum lamprey_status take_vote(struct setup *setup, struct lamprey_vote *vote, bool *passed)
{
    *passed = false;
    vote->magic = LAMPREY_RECORD_MAGIC;
    if (setup->exchange.nonblocking && !vote->refuses) {
        refuse(vote, "the communicator is non-blocking");
    }
    enum lamprey_status status =
        lamprey_exchange_gather(&setup->exchange, vote, sizeof *vote, setup->votes);
    if (!status) {
        *passed = lamprey_votes_pass(setup->votes, setup->comm->nranks, setup->reason,
                                     sizeof setup->reason);
    }
    return status;
}

/* The whole way from records to the last vote. agreed->served tells the outcome, setup->reason why
 * not. */
static enum lamprey_status negotiate(struct setup *setup, struct lamprey_agreed *agreed)
{
    struct lamprey_comm *comm = setup->comm;
    struct lamprey_record own;
    struct lamprey_vote vote = {0};
    bool passed = false;
    fill_record(setup, &own);
    enum lamprey_status status =
        lamprey_exchange_gather(&setup->exchange, &own, sizeof own, setup->records);
    if (status) {
        return status;
    }
    *agreed = lamprey_agree(setup->records, comm->nranks, setup->reason, sizeof setup->reason);
    if (!agreed->served) {
        return LAMPREY_OK;
    }
    agreed->served = false;
    make_workspace(setup, agreed, &vote);
    status = take_vote(setup, &vote, &passed);
    if (status || !passed) {
        return status;
    }
    memset(&vote, 0, sizeof vote);
    map_peers(setup, &vote);
    status = take_vote(setup, &vote, &passed);
    if (status || !passed) {
        return status;
    }
    memset(&vote, 0, sizeof vote);
    try_stores(setup, agreed, &vote);
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
    struct lamprey_agreed agreed = {0};
    setup->mailbox.listener = -1;
    setup->records = calloc((size_t)comm->nranks, sizeof *setup->records);
    setup->votes = calloc((size_t)comm->nranks, sizeof *setup->votes);
    enum lamprey_status status = setup->records && setup->votes
                                     ? lamprey_exchange_open(comm, &setup->exchange)
                                     : LAMPREY_ERROR_MEMORY;
    if (!status) {
        setup->peers = (struct lamprey_peers){
            .comm = comm,
            .records = setup->records,
            .mailbox = &setup->mailbox,
            .descriptor = -1,
        };
        status = negotiate(setup, &agreed);
        lamprey_peers_withdraw(&setup->peers);
    }
    lamprey_mailbox_close(&setup->mailbox);
    if (setup->exchange.comm) {
        lamprey_exchange_close(&setup->exchange);
    }
    free(setup->records);
    free(setup->votes);
    if (agreed.served) {
        comm->agreed = agreed;
        setup->workspace->checked = agreed.check;
        atomic_store(&comm->workspace, setup->workspace);
        if (atomic_load(&comm->aborted)) {
            lamprey_workspace_abort(setup->workspace);
        }
    } else {
        lamprey_workspace_release(setup->workspace);
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
    bool pushed = false;
    if (lamprey_device_enter(comm->device, &pushed) != LAMPREY_OK) {
        conclude(comm, LAMPREY_COMM_BROKEN);
        return;
    }
    const struct lamprey_driver *driver = comm->device->driver;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    driver->ThreadExchangeStreamCaptureMode(&mode);
    run(&setup);
    driver->ThreadExchangeStreamCaptureMode(&mode);
    lamprey_device_leave(comm->device, pushed);
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
