/* SPDX-License-Identifier: Apache-2.0 */
/* Making communicators. */
#include "tests/emulator/nccl/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NCCL_MAGIC 0xcafebeef
#define UNDEFINED_INT ((int)0x80000000)

static uint64_t mix(uint64_t hash, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        hash = (hash ^ ((const unsigned char *)data)[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

ncclResult_t emulated_current_context(CUcontext *context)
{
    ncclResult_t result = CUDA_TRY(cuInit(0));
    if (result != ncclSuccess) {
        return result;
    }
    result = CUDA_TRY(cuCtxGetCurrent(context));
    if (result == ncclSuccess && *context == NULL) {
        result = CUDA_TRY(cuDevicePrimaryCtxRetain(context, 0));
        if (result == ncclSuccess) {
            result = CUDA_TRY(cuCtxSetCurrent(*context));
        }
    }
    return result;
}

static ncclResult_t create(const struct emulated_job *job, const ncclUniqueId *id, int rank,
                           int nranks, uint64_t hash, ncclComm_t *out)
{
    ncclComm_t comm = calloc(1, sizeof(*comm));
    if (comm == NULL) {
        return ncclSystemError;
    }
    comm->rank = rank;
    comm->nranks = nranks;
    comm->context = job->context;
    comm->hash = hash;
    comm->nonblocking = job->nonblocking;
    memcpy(comm->name, job->name, sizeof(comm->name));
    atomic_init(&comm->references, 1);
    pthread_mutex_init(&comm->life, NULL);
    pthread_mutex_init(&comm->launching, NULL);
    atomic_init(&comm->async_error, ncclSuccess);
    ncclResult_t result = CUDA_TRY(cuCtxGetDevice(&comm->device));
    if (result == ncclSuccess) {
        result = CUDA_TRY(cuEventCreate(&comm->serial, CU_EVENT_DISABLE_TIMING));
    }
    if (result == ncclSuccess) {
        result = CUDA_TRY(cuEventCreate(&comm->join, CU_EVENT_DISABLE_TIMING));
    }
    if (result == ncclSuccess) {
        INFO("ncclCommInitRank comm %p rank %d nranks %d cudaDev %d commId 0x%lx - Init START",
             (void *)comm, rank, nranks, comm->device, (unsigned long)hash);
        result = emulated_segment_join(id, rank, nranks, &comm->segment);
    }
    if (result == ncclSuccess) {
        result = emulated_plugins_load(comm);
    }
    if (result == ncclSuccess &&
        !emulated_barrier_wait(&comm->segment->host, nranks, &comm->abort)) {
        result = ncclInternalError;
    }
    if (result != ncclSuccess) {
        emulated_plugins_unload(comm);
        emulated_segment_leave(comm->segment);
        if (comm->serial != NULL) {
            cuEventDestroy(comm->serial);
        }
        if (comm->join != NULL) {
            cuEventDestroy(comm->join);
        }
        free(comm);
        return result;
    }
    INFO("ncclCommInitRank comm %p rank %d nranks %d cudaDev %d commId 0x%lx - Init COMPLETE",
         (void *)comm, rank, nranks, comm->device, (unsigned long)hash);
    emulated_comm_publish(comm);
    *out = comm;
    return ncclSuccess;
}

/* The first of the members makes an id for the child and posts it to the others. */
static ncclResult_t child_id(ncclComm_t parent, const int *members, int count, ncclUniqueId *id)
{
    if (members[0] != parent->rank) {
        struct emulated_mailbox *box = &parent->segment->mailboxes[parent->rank];
        uint32_t wanted = atomic_load(&box->taken) + 1;
        for (unsigned turns = 0; atomic_load(&box->posted) != wanted; turns++) {
            if (atomic_load(&parent->abort) != 0) {
                return ncclInternalError;
            }
            emulated_pause(turns);
        }
        *id = box->id;
        atomic_store(&box->taken, wanted);
        return ncclSuccess;
    }
    ncclResult_t result = emulated_segment_serve(id);
    for (int i = 1; i < count && result == ncclSuccess; i++) {
        struct emulated_mailbox *box = &parent->segment->mailboxes[members[i]];
        for (unsigned turns = 0; atomic_load(&box->posted) != atomic_load(&box->taken); turns++) {
            if (atomic_load(&parent->abort) != 0) {
                return ncclInternalError;
            }
            emulated_pause(turns);
        }
        box->id = *id;
        atomic_fetch_add(&box->posted, 1);
    }
    return result;
}

static ncclResult_t make_child(const struct emulated_job *job, const int *members, int count,
                               int color, ncclComm_t *comm)
{
    ncclComm_t parent = job->parent;
    ncclUniqueId id;
    int rank = 0;
    while (members[rank] != parent->rank) {
        rank++;
    }
    uint64_t hash =
        mix(mix(parent->hash, &parent->splits, sizeof(parent->splits)), &color, sizeof(color));
    ncclResult_t result = child_id(parent, members, count, &id);
    return result != ncclSuccess ? result : create(job, &id, rank, count, hash, comm);
}

struct choice {
    int color;
    int key;
};

static ncclResult_t run_split(const struct emulated_job *job, ncclComm_t *comm)
{
    struct choice mine = {job->color, job->key};
    struct choice all[EMULATED_MAX_RANKS];
    int members[EMULATED_MAX_RANKS];
    int count = 0;
    ncclResult_t result = emulated_comm_exchange(job->parent, &mine, all, sizeof(mine));
    if (result != ncclSuccess) {
        return result;
    }
    job->parent->splits++;
    if (mine.color == NCCL_SPLIT_NOCOLOR) {
        *comm = NULL;
        return ncclSuccess;
    }
    for (int rank = 0; rank < job->parent->nranks; rank++) {
        if (all[rank].color != mine.color) {
            continue;
        }
        int at = count++;
        for (; at > 0 && all[members[at - 1]].key > all[rank].key; at--) {
            members[at] = members[at - 1];
        }
        members[at] = rank;
    }
    return make_child(job, members, count, mine.color, comm);
}

static ncclResult_t run_shrink(const struct emulated_job *job, ncclComm_t *comm)
{
    int members[EMULATED_MAX_RANKS];
    int count = 0;
    for (int rank = 0; rank < job->parent->nranks; rank++) {
        bool excluded = false;
        for (int i = 0; i < job->exclude_count; i++) {
            excluded = excluded || job->exclude[i] == rank;
        }
        if (!excluded) {
            members[count++] = rank;
        }
    }
    return make_child(job, members, count, 0, comm);
}

struct invitation {
    ncclUniqueId id;
    bool given;
};

/* One of the old ranks has the id and tells the others; they keep their ranks. */
static ncclResult_t run_grow(const struct emulated_job *job, ncclComm_t *comm)
{
    struct invitation mine = {.id = job->id, .given = job->rank >= 0};
    struct invitation all[EMULATED_MAX_RANKS];
    const struct invitation *root = NULL;
    ncclResult_t result = emulated_comm_exchange(job->parent, &mine, all, sizeof(mine));
    for (int rank = 0; rank < job->parent->nranks && result == ncclSuccess; rank++) {
        root = all[rank].given ? &all[rank] : root;
    }
    if (result == ncclSuccess && root == NULL) {
        WARN("CommGrow : no rank gave an id");
        result = ncclInvalidArgument;
    }
    return result != ncclSuccess
               ? result
               : create(job, &root->id, job->parent->rank, job->nranks,
                        mix(UINT64_C(0xcbf29ce484222325), &root->id, sizeof(root->id)), comm);
}

ncclResult_t emulated_job_run(struct emulated_job *job)
{
    ncclComm_t comm = NULL;
    ncclResult_t result = CUDA_TRY(cuCtxPushCurrent(job->context));
    if (result != ncclSuccess) {
        return result;
    }
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    cuThreadExchangeStreamCaptureMode(&mode);
    switch (job->kind) {
    case JOB_INIT:
        result = create(job, &job->id, job->rank, job->nranks,
                        mix(UINT64_C(0xcbf29ce484222325), &job->id, sizeof(job->id)), &comm);
        break;
    case JOB_SPLIT:
        result = run_split(job, &comm);
        break;
    case JOB_SHRINK:
        result = run_shrink(job, &comm);
        break;
    case JOB_GROW:
        result = run_grow(job, &comm);
        break;
    }
    cuThreadExchangeStreamCaptureMode(&mode);
    cuCtxPopCurrent(NULL);
    if (result == ncclSuccess) {
        *job->result = comm;
    }
    return result;
}

/* The configuration's size and magic tell whether it was initialised; the version which fields it
 * has. */
static ncclResult_t read_config(const ncclConfig_t *config, struct emulated_job *job)
{
    if (config == NULL) {
        return ncclSuccess;
    }
    if (config->magic != NCCL_MAGIC || config->size < 32) {
        WARN("ncclConfig_t argument not initialized via NCCL_CONFIG_INITIALIZER");
        return ncclInvalidArgument;
    }
    if (config->blocking != UNDEFINED_INT && config->blocking != 0 && config->blocking != 1) {
        WARN("Invalid config blocking attribute value %d", config->blocking);
        return ncclInvalidArgument;
    }
    job->nonblocking = config->blocking == 0;
    if (config->size >= offsetof(ncclConfig_t, commName) + sizeof(config->commName) &&
        config->commName != NULL) {
        snprintf(job->name, sizeof(job->name), "%s", config->commName);
    }
    return ncclSuccess;
}

/* Set-ups are always deferred to the end of the (perhaps implicit) group. */
static ncclResult_t enqueue(struct emulated_job *job)
{
    ncclResult_t result = emulated_group_start();
    if (result == ncclSuccess) {
        result = emulated_group_add_job(job);
    }
    ncclResult_t end = emulated_group_end();
    return result != ncclSuccess ? result : end;
}

static ncclResult_t init_rank(ncclComm_t *comm, int nranks, const ncclUniqueId *id, int rank,
                              const ncclConfig_t *config, const char *function)
{
    struct emulated_job job = {.kind = JOB_INIT, .result = comm, .nranks = nranks, .rank = rank};
    ncclResult_t result = emulated_current_context(&job.context);
    if (result != ncclSuccess) {
        return emulated_group_error(result);
    }
    if (comm == NULL) {
        WARN("%s : comm argument is NULL", function);
        return emulated_group_error(ncclInvalidArgument);
    }
    if (nranks < 1 || nranks > EMULATED_MAX_RANKS || rank < 0 || rank >= nranks) {
        WARN("Invalid rank requested : %d/%d (the emulator has at most %d)", rank, nranks,
             EMULATED_MAX_RANKS);
        return emulated_group_error(ncclInvalidArgument);
    }
    result = read_config(config, &job);
    if (result != ncclSuccess) {
        return emulated_group_error(result);
    }
    if (rank == 0) {
        emulated_log(LOG_VERSION, 0, __func__, __LINE__, "NCCL version 2.28.9+emulator");
    }
    job.id = *id;
    *comm = NULL;
    return enqueue(&job);
}

ncclResult_t pncclGetUniqueId(ncclUniqueId *id)
{
    emulated_env_init();
    ENTER_API();
    if (id == NULL) {
        WARN("GetUniqueId : out argument is NULL");
        return ncclInvalidArgument;
    }
    return emulated_segment_serve(id);
}
EMULATED_ALIAS(ncclGetUniqueId);

ncclResult_t pncclCommInitRank(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank)
{
    emulated_env_init();
    ENTER_API();
    return init_rank(comm, nranks, &id, rank, NULL, "CommInitRank");
}
EMULATED_ALIAS(ncclCommInitRank);

ncclResult_t pncclCommInitRankConfig(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank,
                                     ncclConfig_t *config)
{
    emulated_env_init();
    ENTER_API();
    return init_rank(comm, nranks, &id, rank, config, "CommInitRankConfig");
}
EMULATED_ALIAS(ncclCommInitRankConfig);

ncclResult_t pncclCommInitRankScalable(ncclComm_t *comm, int nranks, int rank, int id_count,
                                       ncclUniqueId *ids, ncclConfig_t *config)
{
    emulated_env_init();
    ENTER_API();
    if (ids == NULL || id_count < 1 || id_count > nranks) {
        WARN("CommInitRankScalable : %d ids for %d ranks", id_count, nranks);
        return emulated_group_error(ncclInvalidArgument);
    }
    return init_rank(comm, nranks, &ids[0], rank, config, "CommInitRankScalable");
}
EMULATED_ALIAS(ncclCommInitRankScalable);

static ncclResult_t check_devices(int count, const int *devices)
{
    int available = 0;
    ncclResult_t result = CUDA_TRY(cuInit(0));
    if (result == ncclSuccess) {
        result = CUDA_TRY(cuDeviceGetCount(&available));
    }
    for (int i = 0; i < count && result == ncclSuccess; i++) {
        int device = devices != NULL ? devices[i] : i;
        if (device < 0 || device >= available) {
            WARN("Invalid device %d in the device list", device);
            result = ncclUnhandledCudaError;
        }
    }
    return result;
}

ncclResult_t pncclCommInitAll(ncclComm_t *comms, int count, const int *devices)
{
    emulated_env_init();
    ENTER_API();
    if (comms == NULL || count < 1 || count > EMULATED_MAX_RANKS) {
        WARN("CommInitAll : bad arguments");
        return emulated_group_error(ncclInvalidArgument);
    }
    ncclUniqueId id;
    ncclResult_t result = check_devices(count, devices);
    if (result == ncclSuccess) {
        result = ncclGetUniqueId(&id);
    }
    if (result != ncclSuccess) {
        return emulated_group_error(result);
    }
    emulated_group_start();
    for (int i = 0; i < count && result == ncclSuccess; i++) {
        CUcontext context = NULL;
        result = CUDA_TRY(cuDevicePrimaryCtxRetain(&context, devices != NULL ? devices[i] : i));
        if (result == ncclSuccess) {
            result = CUDA_TRY(cuCtxPushCurrent(context));
        }
        if (result == ncclSuccess) {
            result = init_rank(&comms[i], count, &id, i, NULL, "CommInitAll");
            cuCtxPopCurrent(NULL);
        }
    }
    emulated_group_error(result);
    ncclResult_t end = emulated_group_end();
    return result != ncclSuccess ? result : end;
}
EMULATED_ALIAS(ncclCommInitAll);

ncclResult_t pncclCommSplit(ncclComm_t parent, int color, int key, ncclComm_t *child,
                            ncclConfig_t *config)
{
    ENTER_API();
    ncclResult_t result = emulated_comm_check(parent, "CommSplit");
    if (result == ncclSuccess && (child == NULL || color < NCCL_SPLIT_NOCOLOR)) {
        WARN("CommSplit : bad arguments, color %d", color);
        result = ncclInvalidArgument;
    }
    struct emulated_job job = {
        .kind = JOB_SPLIT, .result = child, .parent = parent, .color = color, .key = key};
    if (result == ncclSuccess) {
        job.context = parent->context;
        result = parent->revoked ? ncclInvalidUsage : read_config(config, &job);
    }
    if (result != ncclSuccess) {
        return emulated_group_error(result);
    }
    *child = NULL;
    return enqueue(&job);
}
EMULATED_ALIAS(ncclCommSplit);

static ncclResult_t check_excluded(ncclComm_t parent, const int *exclude, int count)
{
    if (exclude == NULL || count < 1 || count >= parent->nranks) {
        WARN("CommShrink : bad list of ranks to exclude");
        return ncclInvalidArgument;
    }
    for (int i = 0; i < count; i++) {
        if (exclude[i] < 0 || exclude[i] >= parent->nranks || exclude[i] == parent->rank) {
            WARN("CommShrink : rank %d can't be excluded here", exclude[i]);
            return ncclInvalidArgument;
        }
    }
    return ncclSuccess;
}

ncclResult_t pncclCommShrink(ncclComm_t parent, int *exclude, int exclude_count, ncclComm_t *child,
                             ncclConfig_t *config, int flags)
{
    ENTER_API();
    ncclResult_t result = emulated_comm_check(parent, "CommShrink");
    if (result == ncclSuccess && (child == NULL || (flags & ~NCCL_SHRINK_ABORT) != 0)) {
        WARN("CommShrink : bad arguments");
        result = ncclInvalidArgument;
    }
    struct emulated_job job = {.kind = JOB_SHRINK, .result = child, .parent = parent};
    if (result == ncclSuccess) {
        job.context = parent->context;
        result = check_excluded(parent, exclude, exclude_count);
    }
    if (result == ncclSuccess) {
        job.exclude_count = exclude_count;
        memcpy(job.exclude, exclude, (size_t)exclude_count * sizeof(exclude[0]));
        result = read_config(config, &job);
    }
    if (result == ncclSuccess && (flags & NCCL_SHRINK_ABORT) != 0) {
        /* Ends what hangs on the lost ranks; the flag goes down again for the shrink itself. */
        atomic_store(&parent->abort, 1);
        result = CUDA_TRY(cuEventSynchronize(parent->serial));
        atomic_store(&parent->abort, 0);
    }
    if (result != ncclSuccess) {
        return emulated_group_error(result);
    }
    *child = NULL;
    return enqueue(&job);
}
EMULATED_ALIAS(ncclCommShrink);

/* In NCCL since 2.29, so nccl.h may lack these two. */
#pragma GCC visibility push(default)
ncclResult_t pncclCommGetUniqueId(ncclComm_t comm, ncclUniqueId *id);
ncclResult_t pncclCommGrow(ncclComm_t parent, int nranks, const ncclUniqueId *id, int rank,
                           ncclComm_t *child, ncclConfig_t *config);
#pragma GCC visibility pop

ncclResult_t pncclCommGetUniqueId(ncclComm_t comm, ncclUniqueId *id)
{
    ENTER_API();
    ncclResult_t result = emulated_comm_ready(comm, "CommGetUniqueId");
    return result != ncclSuccess ? result : pncclGetUniqueId(id);
}
EMULATED_ALIAS(ncclCommGetUniqueId);

/* New ranks have no parent, but an id and a rank; of the old ones, one has the id. */
ncclResult_t pncclCommGrow(ncclComm_t parent, int nranks, const ncclUniqueId *id, int rank,
                           ncclComm_t *child, ncclConfig_t *config)
{
    ENTER_API();
    if (parent == NULL && id != NULL) {
        return init_rank(child, nranks, id, rank, config, "CommGrow");
    }
    ncclResult_t result = emulated_comm_ready(parent, "CommGrow");
    if (result == ncclSuccess &&
        (child == NULL || rank != -1 || nranks <= parent->nranks || nranks > EMULATED_MAX_RANKS)) {
        WARN("CommGrow : bad arguments");
        result = ncclInvalidArgument;
    }
    struct emulated_job job = {.kind = JOB_GROW,
                               .result = child,
                               .parent = parent,
                               .nranks = nranks,
                               .rank = id != NULL ? 0 : -1};
    if (result == ncclSuccess) {
        job.context = parent->context;
        job.id = id != NULL ? *id : job.id;
        result = read_config(config, &job);
    }
    if (result != ncclSuccess) {
        return emulated_group_error(result);
    }
    *child = NULL;
    return enqueue(&job);
}
EMULATED_ALIAS(ncclCommGrow);
