/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/decide.h"

#include <stdio.h>
#include <string.h>

#include "kernels/protocol.h"
#include "plugin/device.h"

_Static_assert(sizeof(struct lamprey_record) == LAMPREY_RECORD_BYTES, "travels as it is");
_Static_assert(offsetof(struct lamprey_record, domain) == 208, "travels as it is");
_Static_assert(sizeof(struct lamprey_vote) == 128, "travels as it is");

/* Largest message by world size unless set: NCCL's time is passed at none of these (2 x H200), and
 * staging memory, 3 slots x ranks x bytes, stays within 12 MiB. */
static uint64_t default_max_bytes(int nranks)
{
    return nranks == 2 ? 2 << 20 : nranks <= 4 ? 512 << 10 : 256 << 10;
}

#define STAGING_CAP (64ull << 20) /* bytes a rank, whatever the settings say */

/* Ranks on the GPU of rank: their kernels must fit it together. */
static uint32_t ranks_on_gpu_of(const struct lamprey_record *records, int rank, int nranks)
{
    const struct lamprey_domain_record *own = &records[rank].domain;
    uint32_t sharing = 0;
    for (int other = 0; other < nranks; other++) {
        const struct lamprey_domain_record *record = &records[other].domain;
        sharing += memcmp(record->host_id, own->host_id, sizeof own->host_id) == 0 &&
                   record->pci_id == own->pci_id;
    }
    return sharing;
}

static bool record_makes_sense(const struct lamprey_record *record, int rank, int nranks)
{
    return record->magic == LAMPREY_RECORD_MAGIC && record->version == LAMPREY_RECORD_VERSION &&
           record->bytes == sizeof *record && record->rank == (uint32_t)rank &&
           record->nranks == (uint32_t)nranks;
}

/* What is wrong with one record beside rank 0's; false: nothing. */
static bool objects(const struct lamprey_record *records, int rank, int nranks, char *reason,
                    size_t size)
{
    const struct lamprey_record *first = &records[0];
    const struct lamprey_record *record = &records[rank];
    if (!record_makes_sense(record, rank, nranks)) {
        snprintf(reason, size, "rank %d runs another version", rank);
    } else if (record->refuses) {
        snprintf(reason, size, "rank %d: %.*s", rank, (int)sizeof record->reason - 1,
                 record->reason);
    } else if (record->max_bytes != first->max_bytes || record->max_ctas != first->max_ctas) {
        snprintf(reason, size,
                 "ranks 0 and %d have different settings (LAMPREY_MAX_BYTES %lld and %lld, "
                 "LAMPREY_MAX_CTAS %u and %u)",
                 rank, (long long)first->max_bytes, (long long)record->max_bytes, first->max_ctas,
                 record->max_ctas);
    } else if (record->capability != first->capability) {
        snprintf(reason, size, "ranks 0 and %d have different GPUs (sm_%d and sm_%d)", rank,
                 first->capability, record->capability);
    } else {
        return false;
    }
    return true;
}

struct lamprey_agreed lamprey_agree(const struct lamprey_record *records, int nranks, char *reason,
                                    size_t reason_size)
{
    struct lamprey_agreed agreed = {0};
    reason[0] = '\0';
    for (int rank = 0; rank < nranks; rank++) {
        if (objects(records, rank, nranks, reason, reason_size)) {
            return agreed;
        }
    }
    if (nranks < 2 || nranks > LAMPREY_MAX_RANKS) {
        snprintf(reason, reason_size, "%d ranks; 2 to %d are served", nranks, LAMPREY_MAX_RANKS);
        return agreed;
    }
    struct lamprey_domain_record domain[LAMPREY_MAX_RANKS];
    uint32_t lanes = records[0].max_ctas;
    for (int rank = 0; rank < nranks; rank++) {
        domain[rank] = records[rank].domain;
        uint32_t resident = records[rank].resident_ctas / ranks_on_gpu_of(records, rank, nranks);
        lanes = resident < lanes ? resident : lanes;
    }
    enum lamprey_domain kind = lamprey_domain_decide(domain, (size_t)nranks, reason, reason_size);
    if (kind == LAMPREY_DOMAIN_FABRIC) {
        snprintf(reason, reason_size,
                 "the ranks span nodes of an NVLink domain, which isn't served yet");
    }
    if (kind != LAMPREY_DOMAIN_HOST) {
        return agreed;
    }
    agreed.max_bytes =
        records[0].max_bytes >= 0 ? (uint64_t)records[0].max_bytes : default_max_bytes(nranks);
    if (lanes == 0 || agreed.max_bytes == 0) {
        snprintf(reason, reason_size, "the settings leave no message to serve");
        return agreed;
    }
    /* More lanes than the largest message has CTAs for would own memory that is never used. */
    const uint64_t vectors = (agreed.max_bytes + LAMPREY_VECTOR_BYTES - 1) / LAMPREY_VECTOR_BYTES;
    const uint64_t useful = (vectors + LAMPREY_CTA_THREADS - 1) / LAMPREY_CTA_THREADS;
    agreed.id = records[0].id;
    agreed.lanes = lanes < useful ? lanes : (uint32_t)useful;
    agreed.lane_capacity = lamprey_lane_capacity(vectors, agreed.lanes);
    while (lamprey_staging_bytes((uint32_t)nranks, agreed.lanes, agreed.lane_capacity) >
           STAGING_CAP) {
        if (agreed.lane_capacity > LAMPREY_CTA_THREADS) {
            agreed.lane_capacity -= LAMPREY_CTA_THREADS;
        } else {
            agreed.lanes--;
        }
    }
    const uint64_t room = (uint64_t)agreed.lanes * agreed.lane_capacity * LAMPREY_VECTOR_BYTES;
    agreed.max_bytes = agreed.max_bytes < room ? agreed.max_bytes : room;
    agreed.served = true;
    return agreed;
}

bool lamprey_votes_pass(const struct lamprey_vote *votes, int nranks, char *reason,
                        size_t reason_size)
{
    reason[0] = '\0';
    for (int rank = 0; rank < nranks; rank++) {
        if (votes[rank].magic != LAMPREY_RECORD_MAGIC || votes[rank].refuses) {
            snprintf(reason, reason_size, "rank %d: %.*s", rank, (int)sizeof votes[rank].reason - 1,
                     votes[rank].reason);
            return false;
        }
    }
    return true;
}

enum lamprey_decision lamprey_decide_kind(size_t count, ncclDataType_t type, ncclRedOp_t op)
{
    if (lamprey_element_of(type) < 0) {
        return LAMPREY_NOT_TYPE;
    }
    if (op != ncclSum) {
        return LAMPREY_NOT_OPERATOR;
    }
    return count == 0 ? LAMPREY_NOT_EMPTY : LAMPREY_SERVE;
}

enum lamprey_decision lamprey_decide(const struct lamprey_agreed *agreed, size_t count,
                                     ncclDataType_t type, ncclRedOp_t op)
{
    enum lamprey_decision decision = lamprey_decide_kind(count, type, op);
    if (decision != LAMPREY_SERVE) {
        return decision;
    }
    uint32_t element_bytes = lamprey_element_bytes((enum lamprey_element)lamprey_element_of(type));
    return count > agreed->max_bytes / element_bytes ? LAMPREY_NOT_SIZE : LAMPREY_SERVE;
}
