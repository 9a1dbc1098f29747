/* SPDX-License-Identifier: Apache-2.0 */
/* Lamprey's own symbols. They follow NCCL's conventions: ncclResult_t, ordinary communicators,
 * plain C.
 *
 * A program doesn't need them to be served; it finds them with dlsym in the liblamprey.so that NCCL
 * has loaded, or links -llamprey. Every struct starts with its own size, so that fields can be
 * added. */
#ifndef LAMPREY_H
#define LAMPREY_H

#include <nccl.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LAMPREY_MAJOR 0
#define LAMPREY_MINOR 1
#define LAMPREY_PATCH 0
#define LAMPREY_VERSION_CODE (LAMPREY_MAJOR * 10000 + LAMPREY_MINOR * 100 + LAMPREY_PATCH)

#define LAMPREY_API __attribute__((visibility("default")))

/* What became of the all-reduces seen so far. A call counts once, under the first reason that
 * applies; a captured call counts when it is captured, not when its graph is replayed. */
struct lampreyStats {
    size_t size;                    /* in: sizeof(struct lampreyStats) */
    uint64_t served;                /* run by Lamprey's kernels */
    uint64_t served_captured;       /* of these, captured into a CUDA graph */
    uint64_t served_grouped;        /* of these, called inside ncclGroupStart/End */
    uint64_t fallback_communicator; /* left to NCCL: the communicator isn't served (the log says
                                       why, once) */
    uint64_t fallback_type;         /* ... this data type isn't served */
    uint64_t fallback_operator;     /* ... this operator isn't served */
    uint64_t fallback_size;         /* ... larger than the limit */
    uint64_t fallback_empty;        /* ... count 0 */
    uint64_t fallback_closed;       /* ... the communicator is finalized, revoked or aborted */
    uint64_t failed;                /* started and then failed: the call returned an error */
    uint64_t communicators_served;  /* set up and agreed on by all ranks */
    uint64_t communicators_refused; /* set up, and some rank said no */
};

/* version: LAMPREY_VERSION_CODE of the library. ncclInvalidArgument if version is NULL. */
LAMPREY_API ncclResult_t lampreyGetVersion(int *version);

/* The calling thread's last error in a lamprey call, "" if none. Valid until the thread's next
 * lamprey call. */
LAMPREY_API const char *lampreyGetLastError(void);

/* Counters of one communicator, or with comm NULL of the whole process (destroyed communicators
 * included). ncclInvalidArgument: stats NULL, stats->size 0 or larger than the library's, or a
 * communicator that Lamprey hasn't seen in an all-reduce. With a smaller size only the leading
 * fields are written. Thread-safe. */
LAMPREY_API ncclResult_t lampreyGetStats(ncclComm_t comm, struct lampreyStats *stats);

#ifdef __cplusplus
}
#endif

#endif
