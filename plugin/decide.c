/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/decide.h"

#include <stdio.h>
#include <string.h>

#include "kernels/instances.h"
#include "plugin/limits.h"

_Static_assert(sizeof(struct lamprey_record) == LAMPREY_RECORD_BYTES, "travels as it is");
_Static_assert(offsetof(struct lamprey_record, domain) == 216, "travels as it is");
_Static_assert(offsetof(struct lamprey_record, reserved) ==
                   228 + sizeof(struct lamprey_domain_record),
               "travels as it is");
_Static_assert(sizeof(struct lamprey_vote) == 192, "travels as it is");

/* Newer than the oldest NCCL whose header this builds with. */
#define NCCL_FLOAT8_E4M3 10
#define NCCL_FLOAT8_E5M2 11

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
    } else if (record->algorithm != first->algorithm) {
        snprintf(reason, size, "ranks 0 and %d have different settings (LAMPREY_ALGORITHM)", rank);
    } else if (record->capability != first->capability) {
        snprintf(reason, size, "ranks 0 and %d have different GPUs (sm_%d and sm_%d)", rank,
                 first->capability, record->capability);
    } else {
        return false;
    }
    return true;
}

/* Half of what fits, as for the other kernels. */
static void agree_on_rows(const struct lamprey_record *records, int nranks,
                          struct lamprey_agreed *agreed)
{
    agreed->row_lanes = agreed->lanes;
    agreed->row_cluster = records[0].row_cluster;
    for (int rank = 0; rank < nranks; rank++) {
        const struct lamprey_record *record = &records[rank];
        const uint32_t resident = (uint32_t)lamprey_divide_up(
            record->row_ctas / ranks_on_gpu_of(records, rank, nranks), 2);
        agreed->row_lanes = resident < agreed->row_lanes ? resident : agreed->row_lanes;
        agreed->row_cluster =
            record->row_cluster < agreed->row_cluster ? record->row_cluster : agreed->row_cluster;
    }
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
        /* Half of what the GPU holds, so that two communicators whose calls come in different
         * orders on different GPUs still run together. */
        uint32_t resident = lamprey_divide_up(
            records[rank].resident_ctas / ranks_on_gpu_of(records, rank, nranks), 2);
        lanes = resident < lanes ? resident : lanes;
    }
    enum lamprey_domain kind = lamprey_domain_decide(domain, (size_t)nranks, reason, reason_size);
    if (kind == LAMPREY_DOMAIN_NONE) {
        return agreed;
    }
    const struct lamprey_limits limits =
        lamprey_limits_of((uint32_t)nranks, (enum lamprey_algorithm_choice)records[0].algorithm);
    const bool limited = records[0].max_bytes >= 0;
    agreed.max_bytes = limited ? (uint64_t)records[0].max_bytes : limits.max_bytes;
    agreed.max_integer_bytes = limited ? agreed.max_bytes : limits.max_integer_bytes;
    if (lanes == 0 || agreed.max_bytes == 0) {
        snprintf(reason, reason_size, "%s",
                 lanes == 0 ? "the ranks on one GPU are more than it holds"
                            : "the settings leave no message to serve");
        return agreed;
    }
    /* More lanes than the largest message has CTAs for would own memory that is never used. */
    const uint64_t useful =
        lamprey_divide_up(agreed.max_bytes, LAMPREY_MIN_THREADS * LAMPREY_VECTOR_BYTES);
    agreed.id = records[0].id;
    agreed.nranks = (uint32_t)nranks;
    agreed.lanes = lanes < useful ? lanes : (uint32_t)useful;
    agreed.slot_cells = LAMPREY_SLOT_CELLS;
    while (lamprey_staging_bytes(agreed.lanes, agreed.slot_cells) > LAMPREY_STAGING_CAP) {
        agreed.lanes--;
    }
    agree_on_rows(records, nranks, &agreed);
    agreed.one_shot_bytes = limits.one_shot_bytes;
    agreed.has_fp8 = true;
    for (int rank = 0; rank < nranks; rank++) {
        agreed.has_fp8 = agreed.has_fp8 && records[rank].has_fp8;
        agreed.check = agreed.check || records[rank].check;
    }
    agreed.across_hosts = kind == LAMPREY_DOMAIN_FABRIC;
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

/* -1: a type that NCCL doesn't have either, or has since this was written. */
static int element_of(ncclDataType_t type)
{
    switch ((int)type) {
    case ncclInt8:
    case ncclUint8:
        return LAMPREY_I8;
    case ncclInt32:
    case ncclUint32:
        return LAMPREY_I32;
    case ncclInt64:
    case ncclUint64:
        return LAMPREY_I64;
    case ncclFloat16:
        return LAMPREY_F16;
    case ncclFloat32:
        return LAMPREY_F32;
    case ncclFloat64:
        return LAMPREY_F64;
    case ncclBfloat16:
        return LAMPREY_BF16;
    case NCCL_FLOAT8_E4M3:
        return LAMPREY_E4M3;
    case NCCL_FLOAT8_E5M2:
        return LAMPREY_E5M2;
    default:
        return -1;
    }
}

/* -1: one that the user made, such as a pre-multiplied sum. */
static int operator_of(ncclRedOp_t op)
{
    switch ((int)op) {
    case ncclSum:
        return LAMPREY_SUM;
    case ncclProd:
        return LAMPREY_PROD;
    case ncclMax:
        return LAMPREY_MAX;
    case ncclMin:
        return LAMPREY_MIN;
    case ncclAvg:
        return LAMPREY_AVG;
    default:
        return -1;
    }
}

enum lamprey_decision lamprey_decide_kind(size_t count, ncclDataType_t type, ncclRedOp_t op)
{
    if (element_of(type) < 0) {
        return LAMPREY_NOT_TYPE;
    }
    if (operator_of(op) < 0) {
        return LAMPREY_NOT_OPERATOR;
    }
    return count == 0 ? LAMPREY_NOT_EMPTY : LAMPREY_SERVE;
}

bool lamprey_decide_setup(size_t count, ncclDataType_t type)
{
    const int element = element_of(type);
    return element >= 0 &&
           count <= LAMPREY_SETUP_BYTES / lamprey_element_bytes((enum lamprey_element)element);
}

enum lamprey_decision lamprey_decide(const struct lamprey_agreed *agreed, size_t count,
                                     ncclDataType_t type, ncclRedOp_t op)
{
    enum lamprey_decision decision = lamprey_decide_kind(count, type, op);
    if (decision != LAMPREY_SERVE) {
        return decision;
    }
    const int element = element_of(type);
    if ((element == LAMPREY_E4M3 || element == LAMPREY_E5M2) && !agreed->has_fp8) {
        return LAMPREY_NOT_TYPE;
    }
    const uint64_t most = element >= LAMPREY_I8 ? agreed->max_integer_bytes : agreed->max_bytes;
    return count > most / lamprey_element_bytes((enum lamprey_element)element) ? LAMPREY_NOT_SIZE
                                                                               : LAMPREY_SERVE;
}

struct lamprey_way lamprey_way_of(const struct lamprey_agreed *agreed, size_t count,
                                  ncclDataType_t type, ncclRedOp_t op)
{
    const enum lamprey_element element = (enum lamprey_element)element_of(type);
    const uint32_t vector_cells = lamprey_element_vector_cells(element);
    struct lamprey_way way = {
        .op = (enum lamprey_operator)operator_of(op),
        .flags =
            type == ncclInt8 || type == ncclInt32 || type == ncclInt64 ? LAMPREY_FLAG_SIGNED : 0,
        .bytes = (uint64_t)count * lamprey_element_bytes(element),
    };
    const enum lamprey_algorithm algorithm =
        way.bytes * vector_cells <= agreed->one_shot_bytes ? LAMPREY_ONE_SHOT : LAMPREY_TWO_SHOT;
    way.vectors = lamprey_divide_up(way.bytes, LAMPREY_VECTOR_BYTES);
    way.kernel = lamprey_kernel_of(algorithm, element, way.op, agreed->nranks);
    way.fused = lamprey_fused_kernel_of(algorithm, element, agreed->nranks);
    way.plan = lamprey_plan_of(
        algorithm, way.vectors, agreed->nranks, agreed->lanes,
        lamprey_row_vectors(algorithm, agreed->nranks, agreed->slot_cells, vector_cells));
    return way;
}
