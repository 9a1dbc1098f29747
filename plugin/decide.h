/* SPDX-License-Identifier: Apache-2.0 */
/* The decisions that must be the same on every rank, as pure functions of what is the same on every
 * rank. */
#ifndef LAMPREY_PLUGIN_DECIDE_H
#define LAMPREY_PLUGIN_DECIDE_H

#include <nccl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/plan.h"
#include "topology/domain.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LAMPREY_RECORD_MAGIC 0x4c414d5052455931ull
#define LAMPREY_RECORD_VERSION 3

#define LAMPREY_RECORD_BYTES 1024

/* What a rank says of itself at set-up; travels as it is, without padding. Its size and its first
 * three fields never change, so that versions can tell each other apart instead of exchanging
 * different lengths. */
struct lamprey_record {
    uint64_t magic;
    uint32_t version;    /* of this struct and of the kernels' protocol */
    uint32_t bytes;      /* in use */
    uint64_t id;         /* random; rank 0's names the communicator */
    uint8_t process[16]; /* random, one per process */
    uint8_t mailbox[16]; /* where descriptors for this rank go; zero without one */
    uint32_t rank;
    uint32_t nranks;
    int32_t capability;
    uint32_t resident_ctas; /* CTAs that fit this GPU together */
    int64_t max_bytes;      /* settings that must be equal */
    uint32_t max_ctas;
    uint32_t algorithm; /* LAMPREY_ALGORITHM */
    uint32_t has_fp8;   /* 1: its NCCL and its GPU reduce fp8 */
    uint32_t refuses;   /* 1: this rank can't take part, for reason */
    char reason[120];
    struct lamprey_domain_record domain;
    uint32_t check;       /* LAMPREY_CHECK */
    uint32_t row_ctas;    /* CTAs of kernels for rows that fit this GPU together ... */
    uint32_t row_cluster; /* ... in clusters of so many */
    uint8_t reserved[LAMPREY_RECORD_BYTES - 228 - sizeof(struct lamprey_domain_record)];
};

/* The exchanges after the first: does the last step stand everywhere? */
struct lamprey_vote {
    uint64_t magic;
    uint32_t refuses;
    uint32_t reserved;
    char reason[112];
    uint8_t fabric[64]; /* names this rank's staging memory on other hosts; else zero */
};

/* What the ranks have agreed on. */
struct lamprey_agreed {
    bool served;
    uint64_t id;
    uint64_t max_bytes;
    uint64_t max_integer_bytes;
    uint64_t one_shot_bytes; /* on the wire, up to which one-shot is the faster algorithm */
    uint32_t nranks;
    uint32_t lanes;
    uint32_t slot_cells;
    uint32_t row_lanes;   /* for rows */
    uint32_t row_cluster; /* CTAs that may share a row */
    bool has_fp8;
    bool across_hosts; /* staging memory travels as fabric handles; else as descriptors */
    bool check;        /* some rank wants calls compared */
};

/* Staging memory of a rank: bytes at most, whatever the settings say, and cells of a lane's slot
 * (96 KiB a lane, so 128 lanes are 12 MiB, whatever the ranks are). */
#define LAMPREY_STAGING_CAP (64ull << 20)
#define LAMPREY_SLOT_CELLS 2048

/* Over the records of all ranks, in rank order. reason: empty when served, else one line. */
struct lamprey_agreed lamprey_agree(const struct lamprey_record *records, int nranks, char *reason,
                                    size_t reason_size);

/* True if nobody refuses; else reason is the first refusing rank's. */
bool lamprey_votes_pass(const struct lamprey_vote *votes, int nranks, char *reason,
                        size_t reason_size);

enum lamprey_decision {
    LAMPREY_SERVE,
    LAMPREY_NOT_TYPE,
    LAMPREY_NOT_OPERATOR,
    LAMPREY_NOT_EMPTY,
    LAMPREY_NOT_SIZE,
};

/* Messages up to this size make a communicator set itself up; larger ones go to NCCL while it is
 * new, so that one that has no small ones costs nothing. Fixed, since no setting is agreed on yet.
 */
#define LAMPREY_SETUP_BYTES (16ull << 20)
bool lamprey_decide_setup(size_t count, ncclDataType_t type);

/* Could this call be ours on some communicator? Says nothing of the size. Only such calls set a
 * communicator up. */
enum lamprey_decision lamprey_decide_kind(size_t count, ncclDataType_t type, ncclRedOp_t op);

/* Is this call ours on a communicator that agreed on agreed? */
enum lamprey_decision lamprey_decide(const struct lamprey_agreed *agreed, size_t count,
                                     ncclDataType_t type, ncclRedOp_t op);

/* How a call that is ours is carried out. */
struct lamprey_way {
    int kernel; /* kernels/instances.h */
    int fused;  /* the kernel whose twin takes it together with others */
    enum lamprey_operator op;
    uint32_t flags; /* those that follow from the type */
    uint64_t bytes;
    uint64_t vectors;
    struct lamprey_plan plan;
};
struct lamprey_way lamprey_way_of(const struct lamprey_agreed *agreed, size_t count,
                                  ncclDataType_t type, ncclRedOp_t op);

#ifdef __cplusplus
}
#endif

#endif
