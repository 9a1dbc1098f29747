/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the emulated NCCL. It speaks only the CUDA driver API, moves data through shared
 * memory, and knows no plugin by name. */
#ifndef LAMPREY_TESTS_EMULATOR_NCCL_INTERNAL_H
#define LAMPREY_TESTS_EMULATOR_NCCL_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda.h>

#pragma GCC visibility push(default)
#include <nccl.h>
#pragma GCC visibility pop

#define EMULATED_MAX_RANKS 16
#define EMULATED_SLOT_BYTES ((size_t)256 << 10)
#define EMULATED_RING_BYTES ((size_t)64 << 10)
#define EMULATED_BLOB_BYTES 512

/* NCCL gives each function a weak ncclX and a strong pncclX at one address. */
#define EMULATED_ALIAS(name)                                                                       \
    extern __typeof__(p##name) name __attribute__((weak, alias("p" #name), visibility("default")))

/* log.c */
enum emulated_log_level { LOG_NONE, LOG_VERSION, LOG_WARN, LOG_INFO, LOG_ABORT, LOG_TRACE };
/* NCCL's logger as plugins get it. */
void emulated_log(int level, unsigned long subsystems, const char *file, int line,
                  const char *format, ...) __attribute__((format(printf, 5, 6)));
const char *emulated_last_error(void);
#define WARN(...) emulated_log(LOG_WARN, ~0ul, __FILE__, __LINE__, __VA_ARGS__)
#define INFO(...) emulated_log(LOG_INFO, ~0ul, __func__, __LINE__, __VA_ARGS__)

/* Failures asked for by LAMPREY_EMULATOR_NCCL_FAIL=function:n[:result],... */
ncclResult_t emulated_fault(const char *function);
#define ENTER_API()                                                                                \
    do {                                                                                           \
        ncclResult_t fault_ = emulated_fault(__func__ + 1);                                        \
        if (fault_ != ncclSuccess) {                                                               \
            return emulated_group_error(fault_);                                                   \
        }                                                                                          \
    } while (0)
/* group.c: remembers an error for the outermost end; returns it. */
ncclResult_t emulated_group_error(ncclResult_t result);
/* CUDA's codes as NCCL reports them. */
ncclResult_t emulated_cuda(CUresult result, const char *call);
#define CUDA_TRY(call) emulated_cuda(call, #call)

/* segment.c: memory that the ranks of a communicator share */
struct emulated_barrier {
    _Atomic uint32_t arrived;
    _Atomic uint32_t generation;
};
struct emulated_signature {
    uint64_t sequence;
    uint64_t count;
    uint32_t kind;
    uint32_t type;
    uint32_t op;
    uint32_t root;
};
struct emulated_ring {
    _Alignas(64) _Atomic uint64_t written;
    _Alignas(64) _Atomic uint64_t read;
    _Alignas(64) char data[EMULATED_RING_BYTES];
};
struct emulated_mailbox {
    _Atomic uint32_t posted;
    _Atomic uint32_t taken;
    ncclUniqueId id;
};
struct emulated_segment {
    _Atomic uint32_t nranks;
    _Atomic uint32_t claimed[EMULATED_MAX_RANKS];
    struct emulated_barrier host;
    struct emulated_barrier stream;
    char blobs[EMULATED_MAX_RANKS][EMULATED_BLOB_BYTES];
    struct emulated_mailbox mailboxes[EMULATED_MAX_RANKS];
    struct emulated_signature signatures[2][EMULATED_MAX_RANKS];
    _Alignas(64) char slots[2][EMULATED_MAX_RANKS][EMULATED_SLOT_BYTES];
    struct emulated_ring rings[EMULATED_MAX_RANKS][EMULATED_MAX_RANKS];
};
/* A new id; the process serves the shared memory to those who ask with the id. */
ncclResult_t emulated_segment_serve(ncclUniqueId *id);
ncclResult_t emulated_segment_join(const ncclUniqueId *id, int rank, int nranks,
                                   struct emulated_segment **segment);
void emulated_segment_leave(struct emulated_segment *segment);
/* False when *abort became non-zero while waiting. */
bool emulated_barrier_wait(struct emulated_barrier *barrier, int nranks, const atomic_int *abort);
/* One turn of a wait that has been going on for turns turns. */
void emulated_pause(unsigned turns);

/* comm.c */
struct emulated_op {
    bool used;
    ncclDataType_t type;
    const void *device_scalar; /* read when the collective runs, or NULL */
    char scalar[8];
};
#define EMULATED_MAX_OPS 64
struct emulated_plugins; /* what a communicator holds of each plugin */
struct ncclComm {
    int rank;
    int nranks;
    CUdevice device;
    CUcontext context;
    struct emulated_segment *segment;
    uint64_t hash;
    char name[64];
    atomic_int abort;
    atomic_int async_error;
    atomic_int
        references; /* the program's, one for each captured launch and each live one under way */
    pthread_mutex_t life;      /* held while work runs, and while the communicator ends */
    pthread_mutex_t launching; /* held while work is launched; guards ended */
    bool ended;
    bool finalized;
    bool revoked;
    bool suspended;
    bool nonblocking; /* its collectives are launched in the background */
    bool destroyed;
    CUevent serial; /* the end of the last work of this communicator */
    CUevent join;
    uint64_t capture_id;
    CUgraphNode capture_node;
    unsigned slot_parity; /* of the stream side, only its thread touches it */
    uint64_t sequence;    /* of collectives run */
    uint32_t mail_sent[EMULATED_MAX_RANKS];
    uint32_t mail_taken;
    uint32_t splits;
    struct emulated_op ops[EMULATED_MAX_OPS];
    struct emulated_plugins *plugins;
    struct ncclComm *next;
};
/* ncclInvalidArgument for NULL and for what is no live communicator. */
ncclResult_t emulated_comm_check(ncclComm_t comm, const char *function);
/* Likewise for one that is still busy with an earlier call. */
ncclResult_t emulated_comm_ready(ncclComm_t comm, const char *function);
/* For launching: a live communicator's end waits until emulated_comm_let_go. */
ncclResult_t emulated_comm_hold(ncclComm_t comm);
void emulated_comm_let_go(ncclComm_t comm);
void emulated_comm_publish(ncclComm_t comm);
void emulated_comm_drop(ncclComm_t comm);
/* Every rank gives bytes (<= EMULATED_BLOB_BYTES) and gets all of them. */
ncclResult_t emulated_comm_exchange(ncclComm_t comm, const void *mine, void *all, size_t bytes);

/* init.c */
struct emulated_job {
    enum { JOB_INIT, JOB_SPLIT, JOB_SHRINK, JOB_GROW } kind;
    ncclComm_t *result;
    ncclComm_t parent;
    ncclUniqueId id;
    int nranks;
    int rank;
    int color;
    int key;
    int exclude_count;
    int exclude[EMULATED_MAX_RANKS];
    CUcontext context;
    char name[64];
    bool nonblocking;
    ncclResult_t status;
};
/* Runs a set-up on the calling thread and stores the communicator. */
ncclResult_t emulated_job_run(struct emulated_job *job);
/* The calling thread's context; makes device 0's primary one current when there is none, as the
 * CUDA runtime would. */
ncclResult_t emulated_current_context(CUcontext *context);

/* group.c */
enum emulated_kind {
    TASK_ALL_REDUCE,
    TASK_REDUCE,
    TASK_BROADCAST,
    TASK_ALL_GATHER,
    TASK_REDUCE_SCATTER,
    TASK_SEND,
    TASK_RECV,
};
struct emulated_task {
    enum emulated_kind kind;
    const void *send;
    void *recv;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t op;
    struct emulated_op custom; /* when op is a user's: a copy, since the op may be destroyed before
                                  the group ends */
    int root;                  /* or peer */
    ncclComm_t comm;
    CUstream stream;
};
ncclResult_t emulated_group_start(void);
ncclResult_t emulated_group_end(void);
ncclResult_t emulated_group_add_task(const struct emulated_task *task);
ncclResult_t emulated_group_add_job(const struct emulated_job *job);

/* launch.c */
ncclResult_t emulated_launch(struct emulated_task *tasks, size_t count);
/* ncclInProgress; the communicators' states tell when it is done. Copies tasks. */
ncclResult_t emulated_launch_later(const struct emulated_task *tasks, size_t count);
/* ncclInvalidUsage where the streams of a communicator's tasks aren't all in the same capture or
 * in none. */
ncclResult_t emulated_same_capture(CUstream one, CUstream other);

/* execute.c: on the stream's thread */
void emulated_execute(ncclComm_t comm, const struct emulated_task *tasks, size_t count);

/* reduce.c */
size_t emulated_type_bytes(ncclDataType_t type);
void emulated_reduce(void *out, const void *const *inputs, int nranks, size_t count,
                     const struct emulated_task *task);

/* plugins.c */
void emulated_env_init(void);
const char *emulated_getenv(const char *name);
ncclResult_t emulated_plugins_load(ncclComm_t comm);
void emulated_plugins_unload(ncclComm_t comm);
ncclResult_t emulated_plugins_collective(const struct emulated_task *task, int same_group);

#endif
