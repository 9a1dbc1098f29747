/* SPDX-License-Identifier: Apache-2.0 */
/* The collectives' entry points: argument checks in NCCL's order, then into the (perhaps implicit)
 * group. */
#include "tests/emulator/nccl/internal.h"

#include <string.h>

static bool reduces(enum emulated_kind kind)
{
    return kind == TASK_ALL_REDUCE || kind == TASK_REDUCE || kind == TASK_REDUCE_SCATTER;
}

static ncclResult_t check_op(struct emulated_task *task, const char *function)
{
    int op = (int)task->op;
    if (op < 0 || op >= ncclNumOps + EMULATED_MAX_OPS ||
        (op >= ncclNumOps && (!task->comm->ops[op - ncclNumOps].used ||
                              task->comm->ops[op - ncclNumOps].type != task->type))) {
        WARN("%s : invalid reduction operation %d", function, op);
        return ncclInvalidArgument;
    }
    if (op >= ncclNumOps) {
        task->custom = task->comm->ops[op - ncclNumOps];
    }
    return ncclSuccess;
}

static ncclResult_t check(struct emulated_task *task, const char *function)
{
    ncclComm_t comm = task->comm;
    ncclResult_t result = emulated_comm_ready(comm, function);
    if (result != ncclSuccess) {
        return result;
    }
    if (comm->revoked || comm->finalized || comm->suspended) {
        WARN("%s : communicator %p was %s", function, (void *)comm,
             comm->revoked     ? "revoked"
             : comm->finalized ? "finalized"
                               : "suspended");
        return comm->finalized ? ncclInvalidArgument : ncclInvalidUsage;
    }
    result = (ncclResult_t)atomic_load(&comm->async_error);
    if (result != ncclSuccess) {
        return result;
    }
    bool has_root = task->kind != TASK_ALL_REDUCE && task->kind != TASK_ALL_GATHER &&
                    task->kind != TASK_REDUCE_SCATTER;
    if (has_root && (task->root < 0 || task->root >= comm->nranks)) {
        WARN("%s : invalid root %d (root should be in the 0..%d range)", function, task->root,
             comm->nranks);
        return ncclInvalidArgument;
    }
    if ((int)task->type < 0 || task->type >= ncclNumTypes) {
        WARN("%s : invalid type %d", function, task->type);
        return ncclInvalidArgument;
    }
    result = reduces(task->kind) ? check_op(task, function) : ncclSuccess;
    if (result != ncclSuccess || task->count == 0) {
        return result;
    }
    /* NCCL doesn't look at pointers unless it is asked to; what it does with NULL can't be
     * emulated. */
    bool reads =
        task->kind != TASK_RECV && (task->kind != TASK_BROADCAST || comm->rank == task->root);
    bool writes =
        task->kind != TASK_SEND && (task->kind != TASK_REDUCE || comm->rank == task->root);
    if ((reads && task->send == NULL) || (writes && task->recv == NULL)) {
        WARN("%s : a buffer is NULL", function);
        return ncclInvalidArgument;
    }
    return ncclSuccess;
}

static ncclResult_t enqueue(struct emulated_task *task, const char *function)
{
    ncclResult_t result = check(task, function);
    if (result != ncclSuccess) {
        return emulated_group_error(result);
    }
    if (task->count == 0) {
        return ncclSuccess;
    }
    INFO("%s: sendbuff %p recvbuff %p count %zu datatype %d op %d root %d comm %p [nranks=%d] "
         "stream %p",
         function, task->send, task->recv, task->count, task->type, task->op, task->root,
         (void *)task->comm, task->comm->nranks, (void *)task->stream);
    bool transfer = task->kind == TASK_SEND || task->kind == TASK_RECV;
    if (task->comm->nranks == 1 && !transfer) {
        return emulated_group_error(emulated_launch(task, 1)); /* served at once, even in a group */
    }
    emulated_group_start();
    result = emulated_group_add_task(task);
    ncclResult_t end = emulated_group_end();
    return result != ncclSuccess ? result : end;
}

ncclResult_t pncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                            ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    ENTER_API();
    struct emulated_task task = {.kind = TASK_ALL_REDUCE,
                                 .send = send,
                                 .recv = recv,
                                 .count = count,
                                 .type = type,
                                 .op = op,
                                 .comm = comm,
                                 .stream = stream};
    return enqueue(&task, "AllReduce");
}
EMULATED_ALIAS(ncclAllReduce);

ncclResult_t pncclReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                         ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream)
{
    ENTER_API();
    struct emulated_task task = {.kind = TASK_REDUCE,
                                 .send = send,
                                 .recv = recv,
                                 .count = count,
                                 .type = type,
                                 .op = op,
                                 .root = root,
                                 .comm = comm,
                                 .stream = stream};
    return enqueue(&task, "Reduce");
}
EMULATED_ALIAS(ncclReduce);

ncclResult_t pncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type,
                            int root, ncclComm_t comm, cudaStream_t stream)
{
    ENTER_API();
    struct emulated_task task = {.kind = TASK_BROADCAST,
                                 .send = send,
                                 .recv = recv,
                                 .count = count,
                                 .type = type,
                                 .root = root,
                                 .comm = comm,
                                 .stream = stream};
    return enqueue(&task, "Broadcast");
}
EMULATED_ALIAS(ncclBroadcast);

/* As in NCCL, through the public name. */
ncclResult_t pncclBcast(void *buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                        cudaStream_t stream)
{
    ENTER_API();
    return ncclBroadcast(buffer, buffer, count, type, root, comm, stream);
}
EMULATED_ALIAS(ncclBcast);

ncclResult_t pncclReduceScatter(const void *send, void *recv, size_t count, ncclDataType_t type,
                                ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    ENTER_API();
    struct emulated_task task = {.kind = TASK_REDUCE_SCATTER,
                                 .send = send,
                                 .recv = recv,
                                 .count = count,
                                 .type = type,
                                 .op = op,
                                 .comm = comm,
                                 .stream = stream};
    return enqueue(&task, "ReduceScatter");
}
EMULATED_ALIAS(ncclReduceScatter);

ncclResult_t pncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type,
                            ncclComm_t comm, cudaStream_t stream)
{
    ENTER_API();
    struct emulated_task task = {.kind = TASK_ALL_GATHER,
                                 .send = send,
                                 .recv = recv,
                                 .count = count,
                                 .type = type,
                                 .comm = comm,
                                 .stream = stream};
    return enqueue(&task, "AllGather");
}
EMULATED_ALIAS(ncclAllGather);

static ncclResult_t transfer(enum emulated_kind kind, const void *send, void *recv, size_t count,
                             ncclDataType_t type, int peer, ncclComm_t comm, CUstream stream)
{
    struct emulated_task task = {.kind = kind,
                                 .send = send,
                                 .recv = recv,
                                 .count = count,
                                 .type = type,
                                 .root = peer,
                                 .comm = comm,
                                 .stream = stream};
    return enqueue(&task, kind == TASK_SEND ? "Send" : "Recv");
}

ncclResult_t pncclSend(const void *send, size_t count, ncclDataType_t type, int peer,
                       ncclComm_t comm, cudaStream_t stream)
{
    ENTER_API();
    return transfer(TASK_SEND, send, NULL, count, type, peer, comm, stream);
}
EMULATED_ALIAS(ncclSend);

ncclResult_t pncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                       cudaStream_t stream)
{
    ENTER_API();
    return transfer(TASK_RECV, NULL, recv, count, type, peer, comm, stream);
}
EMULATED_ALIAS(ncclRecv);

/* all-to-all, gather and scatter are groups of sends and receives. */
static ncclResult_t check_many(ncclComm_t comm, ncclDataType_t type, int root, const char *function)
{
    ncclResult_t result = emulated_comm_check(comm, function);
    if (result == ncclSuccess &&
        ((int)type < 0 || type >= ncclNumTypes || root < 0 || root >= comm->nranks)) {
        WARN("%s : invalid type %d or root %d", function, type, root);
        result = ncclInvalidArgument;
    }
    return emulated_group_error(result);
}

static const char *part(const void *base, int rank, size_t count, ncclDataType_t type)
{
    return (const char *)base + (size_t)rank * count * emulated_type_bytes(type);
}

ncclResult_t pncclAlltoAll(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    ENTER_API();
    ncclResult_t result = check_many(comm, type, 0, "AlltoAll");
    if (result != ncclSuccess) {
        return result;
    }
    emulated_group_start();
    for (int rank = 0; rank < comm->nranks; rank++) {
        transfer(TASK_SEND, part(send, rank, count, type), NULL, count, type, rank, comm, stream);
        transfer(TASK_RECV, NULL, (void *)(uintptr_t)part(recv, rank, count, type), count, type,
                 rank, comm, stream);
    }
    return emulated_group_end();
}
EMULATED_ALIAS(ncclAlltoAll);

ncclResult_t pncclGather(const void *send, void *recv, size_t count, ncclDataType_t type, int root,
                         ncclComm_t comm, cudaStream_t stream)
{
    ENTER_API();
    ncclResult_t result = check_many(comm, type, root, "Gather");
    if (result != ncclSuccess) {
        return result;
    }
    emulated_group_start();
    transfer(TASK_SEND, send, NULL, count, type, root, comm, stream);
    for (int rank = 0; rank < comm->nranks && comm->rank == root; rank++) {
        transfer(TASK_RECV, NULL, (void *)(uintptr_t)part(recv, rank, count, type), count, type,
                 rank, comm, stream);
    }
    return emulated_group_end();
}
EMULATED_ALIAS(ncclGather);

ncclResult_t pncclScatter(const void *send, void *recv, size_t count, ncclDataType_t type, int root,
                          ncclComm_t comm, cudaStream_t stream)
{
    ENTER_API();
    ncclResult_t result = check_many(comm, type, root, "Scatter");
    if (result != ncclSuccess) {
        return result;
    }
    emulated_group_start();
    for (int rank = 0; rank < comm->nranks && comm->rank == root; rank++) {
        transfer(TASK_SEND, part(send, rank, count, type), NULL, count, type, rank, comm, stream);
    }
    transfer(TASK_RECV, NULL, recv, count, type, root, comm, stream);
    return emulated_group_end();
}
EMULATED_ALIAS(ncclScatter);

ncclResult_t pncclRedOpCreatePreMulSum(ncclRedOp_t *op, void *scalar, ncclDataType_t type,
                                       ncclScalarResidence_t residence, ncclComm_t comm)
{
    ENTER_API();
    ncclResult_t result = emulated_comm_check(comm, "ncclRedOpCreatePreMulSum");
    if (result != ncclSuccess) {
        return result;
    }
    if (op == NULL || scalar == NULL || emulated_type_bytes(type) == 0 ||
        (residence != ncclScalarDevice && residence != ncclScalarHostImmediate)) {
        WARN("ncclRedOpCreatePreMulSum : bad arguments");
        return ncclInvalidArgument;
    }
    int index = 0;
    while (index < EMULATED_MAX_OPS && comm->ops[index].used) {
        index++;
    }
    if (index == EMULATED_MAX_OPS) {
        return ncclSystemError;
    }
    struct emulated_op *entry = &comm->ops[index];
    memset(entry, 0, sizeof(*entry));
    entry->used = true;
    entry->type = type;
    if (residence == ncclScalarDevice) {
        entry->device_scalar = scalar;
    } else {
        memcpy(entry->scalar, scalar, emulated_type_bytes(type));
    }
    *op = (ncclRedOp_t)(ncclNumOps + index);
    return ncclSuccess;
}
EMULATED_ALIAS(ncclRedOpCreatePreMulSum);

ncclResult_t pncclRedOpDestroy(ncclRedOp_t op, ncclComm_t comm)
{
    ENTER_API();
    ncclResult_t result = emulated_comm_check(comm, "ncclRedOpDestroy");
    if (result != ncclSuccess) {
        return result;
    }
    int index = (int)op - ncclNumOps;
    if (index < 0 || index >= EMULATED_MAX_OPS || !comm->ops[index].used) {
        WARN("ncclRedOpDestroy : operation %d unknown to this communicator", op);
        return ncclInvalidArgument;
    }
    comm->ops[index].used = false;
    return ncclSuccess;
}
EMULATED_ALIAS(ncclRedOpDestroy);
