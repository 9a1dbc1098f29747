/* SPDX-License-Identifier: Apache-2.0 */
/* What the NCCL programs share: ranks as processes or threads, CUDA set-up, deadlines, error exits.
 * Uses the CUDA driver API and nccl.h only; calls no NCCL function itself. */
#ifndef LAMPREY_TESTS_PROGRAMS_PROGRAM_H
#define LAMPREY_TESTS_PROGRAMS_PROGRAM_H

#include <cuda.h>
#include <nccl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PROGRAM_MAX_RANKS 16
#define PROGRAM_SKIP 77 /* exit status: this machine can't run the program */

/* Ends the process with a message. */
_Noreturn void program_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

void program_cu(CUresult result, const char *call, const char *file, int line);
#define CU(call) program_cu((call), #call, __FILE__, __LINE__)

#define NCCL(call)                                                                                 \
    do {                                                                                           \
        ncclResult_t nccl_result_ = (call);                                                        \
        if (nccl_result_ != ncclSuccess) {                                                         \
            program_fail("%s:%d: %s: NCCL error %d", __FILE__, __LINE__, #call,                    \
                         (int)nccl_result_);                                                       \
        }                                                                                          \
    } while (0)

/* Memory that all ranks see. */
struct program_shared {
    ncclUniqueId id;
    atomic_int barrier_arrived;
    atomic_int barrier_round;
    double value[PROGRAM_MAX_RANKS];
    int64_t count[PROGRAM_MAX_RANKS];
};

struct program_rank {
    int rank;
    int nranks;
    struct program_shared *shared;
    void *argument;
};

/* How many ranks a process of this environment can have, one a GPU that it sees; asked in a child,
 * so that the caller may still fork. With PROGRAM_SHARE_GPU=1 two, where there is one GPU. */
int program_gpu_count(void);

/* Runs body once per rank, each in a process of its own, forked before CUDA is touched; with
 * PROGRAM_SHARE_GPU=1 each a host of its own to NCCL, which refuses two ranks on a GPU. Returns 0
 * when all returned 0, PROGRAM_SKIP when a rank did, else 1. On a rank's failure or after
 * deadline_s the others are killed. */
int program_processes(int nranks, int deadline_s, int (*body)(struct program_rank *self),
                      void *argument);

/* The same with a thread per rank in this process, so not with PROGRAM_SHARE_GPU=1; the deadline
 * ends the process. */
int program_threads(int nranks, int deadline_s, int (*body)(struct program_rank *self),
                    void *argument);

/* All ranks meet. */
void program_barrier(struct program_rank *self);

/* Puts id up (rank 0) or fetches it (others). */
void program_share_id(struct program_rank *self, ncclUniqueId *id);

/* Largest value and sum of counts over the ranks. */
double program_max(struct program_rank *self, double value);
int64_t program_sum(struct program_rank *self, int64_t count);

/* Initialises CUDA and makes the primary context of a device current. Exits with PROGRAM_SKIP
 * without such a GPU; with PROGRAM_SHARE_GPU=1 ranks without one take the first ones. */
void program_use_device(int device);

/* Integer option --name=value; default when absent. program_options_end fails on options never
 * asked for. */
int64_t program_option(int argc, char **argv, const char *name, int64_t fallback);
int program_flag(int argc, char **argv, const char *name);
void program_options_end(int argc, char **argv);

double program_median(double *values, size_t count);

#endif
