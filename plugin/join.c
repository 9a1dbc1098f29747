/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/join.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "plugin/config.h"
#include "plugin/identity.h"
#include "plugin/selftest.h"

/* Where NCCL itself refuses fp8, so do we. */
#define FIRST_NCCL_WITH_FP8 22400
#define FIRST_GPU_WITH_FP8 90

void lamprey_vote_refuse(struct lamprey_vote *vote, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(vote->reason, sizeof vote->reason, format, arguments);
    va_end(arguments);
    vote->refuses = 1;
}

enum lamprey_status lamprey_join_open(struct lamprey_join *join, struct lamprey_comm *comm)
{
    memset(join, 0, sizeof *join);
    join->comm = comm;
    join->mailbox.listener = -1;
    join->records = calloc((size_t)comm->nranks, sizeof *join->records);
    join->votes = calloc((size_t)comm->nranks, sizeof *join->votes);
    enum lamprey_status status = join->records && join->votes
                                     ? lamprey_exchange_open(comm, &join->exchange)
                                     : LAMPREY_ERROR_MEMORY;
    if (status) {
        free(join->records);
        free(join->votes);
        return status;
    }
    join->peers = (struct lamprey_peers){
        .comm = comm,
        .records = join->records,
        .mailbox = &join->mailbox,
        .descriptor = -1,
    };
    return LAMPREY_OK;
}

void lamprey_join_close(struct lamprey_join *join)
{
    lamprey_peers_withdraw(&join->peers);
    lamprey_mailbox_close(&join->mailbox);
    lamprey_exchange_close(&join->exchange);
    free(join->records);
    free(join->votes);
}

void lamprey_join_describe(struct lamprey_join *join, struct lamprey_record *record)
{
    const struct lamprey_comm *comm = join->comm;
    const struct lamprey_nccl *nccl = comm->nccl;
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
    record->max_bytes = nccl ? config->max_bytes : -1; /* a limit to what is taken from NCCL */
    record->max_ctas = (uint32_t)config->max_ctas;
    record->algorithm = (uint32_t)config->algorithm;
    record->check = config->check != 0;
    record->has_fp8 = (!nccl || nccl->version >= FIRST_NCCL_WITH_FP8) &&
                      comm->device->capability >= FIRST_GPU_WITH_FP8;
    if (!reason[0]) {
        lamprey_identity_stand_down(nccl, reason, sizeof reason);
    }
    if (!reason[0]) {
        lamprey_identity_gpu(comm->device, &record->domain, reason, sizeof reason);
    }
    if (!reason[0] &&
        lamprey_device_load_kernels(comm->device, reason, sizeof reason) == LAMPREY_OK) {
        record->resident_ctas = comm->device->resident_ctas;
        record->row_ctas = comm->device->row_ctas;
        record->row_cluster = comm->device->row_cluster;
    }
    if (!reason[0] && lamprey_mailbox_open(&join->mailbox, comm->nranks) != LAMPREY_OK) {
        snprintf(reason, sizeof reason, "no Unix socket can be opened");
    }
    if (join->mailbox.listener >= 0) {
        memcpy(record->mailbox, join->mailbox.token, sizeof record->mailbox);
    }
    memcpy(record->reason, reason, sizeof record->reason);
    record->refuses = reason[0] != '\0';
}

void lamprey_join_offer(struct lamprey_join *join, uint32_t lanes, uint32_t slot_cells,
                        enum lamprey_sharing sharing, struct lamprey_vote *vote)
{
    const struct lamprey_comm *comm = join->comm;
    enum lamprey_status status =
        lamprey_workspace_create(comm->device, (uint32_t)comm->rank, (uint32_t)comm->nranks, lanes,
                                 slot_cells, sharing, join->exchange.stream, &join->workspace);
    if (!status) {
        status = lamprey_exchange_wait(&join->exchange);
    }
    if (!status) {
        join->peers.workspace = join->workspace;
        status = lamprey_peers_offer(&join->peers, vote);
    }
    if (status && sharing == LAMPREY_BY_FABRIC) {
        lamprey_vote_refuse(
            vote, "no staging memory for other hosts to map (%s%s)", lamprey_status_name(status),
            status == LAMPREY_ERROR_PERMISSION ? "; is there an IMEX channel?" : "");
    } else if (status) {
        lamprey_vote_refuse(vote, "no staging memory (%s)", lamprey_status_name(status));
    }
}

void lamprey_join_map(struct lamprey_join *join, int timeout_ms, struct lamprey_vote *vote)
{
    enum lamprey_status status = lamprey_peers_send(&join->peers);
    if (status) {
        lamprey_vote_refuse(vote, "its staging memory can't be passed on (%s)",
                            lamprey_status_name(status));
    }
    /* Also after a failure: peers that could send must not be left with a full mailbox. */
    int rank = -1;
    status = lamprey_peers_map(&join->peers, join->votes, timeout_ms, &rank);
    if (status && !vote->refuses && rank >= 0) {
        lamprey_vote_refuse(vote, "rank %d's staging memory can't be mapped (%s)", rank,
                            lamprey_status_name(status));
    } else if (status && !vote->refuses) {
        lamprey_vote_refuse(vote, "a peer's staging memory doesn't come (%s)",
                            lamprey_status_name(status));
    }
}

void lamprey_join_try(struct lamprey_join *join, const struct lamprey_agreed *agreed,
                      uint32_t timeout_ms, struct lamprey_vote *vote)
{
    enum lamprey_status status =
        lamprey_selftest(&join->exchange, agreed, join->workspace, timeout_ms);
    if (status) {
        lamprey_vote_refuse(vote, "stores to the peers' memory don't arrive (%s)",
                            lamprey_status_name(status));
    }
}
