/* SPDX-License-Identifier: Apache-2.0 */
/* The NCCL functions that are redirected, as far as an image has them, and those that are only
 * called. Signatures are NCCL's, up to 2.32; types that older nccl.h lack are passed as void
 * pointers or ints of the same size. */
#ifndef LAMPREY_PLUGIN_NCCL_FUNCTIONS_H
#define LAMPREY_PLUGIN_NCCL_FUNCTIONS_H

#include <nccl.h>

/* X(name without "nccl", parameters, arguments): intercepted; every one returns ncclResult_t. */
#define LAMPREY_NCCL_INTERCEPTED(X)                                                                \
    X(AllReduce,                                                                                   \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,            \
       ncclComm_t comm, cudaStream_t stream),                                                      \
      (send, recv, count, type, op, comm, stream))                                                 \
    X(GroupStart, (void), ())                                                                      \
    X(GroupEnd, (void), ())                                                                        \
    X(GroupSimulateEnd, (void *info), (info))                                                      \
    X(CommInitRank, (ncclComm_t * comm, int nranks, ncclUniqueId id, int rank),                    \
      (comm, nranks, id, rank))                                                                    \
    X(CommInitAll, (ncclComm_t * comms, int ndev, const int *devices), (comms, ndev, devices))     \
    X(CommInitRankConfig,                                                                          \
      (ncclComm_t * comm, int nranks, ncclUniqueId id, int rank, ncclConfig_t *config),            \
      (comm, nranks, id, rank, config))                                                            \
    X(CommInitRankScalable,                                                                        \
      (ncclComm_t * comm, int nranks, int rank, int nids, ncclUniqueId *ids,                       \
       ncclConfig_t *config),                                                                      \
      (comm, nranks, rank, nids, ids, config))                                                     \
    X(CommSplit, (ncclComm_t comm, int color, int key, ncclComm_t *child, ncclConfig_t *config),   \
      (comm, color, key, child, config))                                                           \
    X(CommShrink,                                                                                  \
      (ncclComm_t comm, int *exclude, int exclude_count, ncclComm_t *child, ncclConfig_t *config,  \
       int flags),                                                                                 \
      (comm, exclude, exclude_count, child, config, flags))                                        \
    X(CommGrow,                                                                                    \
      (ncclComm_t comm, int nranks, const ncclUniqueId *id, int rank, ncclComm_t *child,           \
       ncclConfig_t *config),                                                                      \
      (comm, nranks, id, rank, child, config))                                                     \
    X(CommFinalize, (ncclComm_t comm), (comm))                                                     \
    X(CommDestroy, (ncclComm_t comm), (comm))                                                      \
    X(CommAbort, (ncclComm_t comm), (comm))                                                        \
    X(CommRevoke, (ncclComm_t comm, int flags), (comm, flags))                                     \
    X(CommSuspend, (ncclComm_t comm, int flags), (comm, flags))                                    \
    X(CommResume, (ncclComm_t comm), (comm))                                                       \
    X(CommGetAsyncError, (ncclComm_t comm, ncclResult_t * error), (comm, error))

/* X(name, parameters, arguments): collectives that stay NCCL's; redirected only to keep them in
 * order with ours. Every one has comm and stream among its parameters. */
#define LAMPREY_NCCL_ORDERED(X)                                                                    \
    X(Reduce,                                                                                      \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,  \
       ncclComm_t comm, cudaStream_t stream),                                                      \
      (send, recv, count, type, op, root, comm, stream))                                           \
    X(Bcast,                                                                                       \
      (void *buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm,                 \
       cudaStream_t stream),                                                                       \
      (buffer, count, type, root, comm, stream))                                                   \
    X(Broadcast,                                                                                   \
      (const void *send, void *recv, size_t count, ncclDataType_t type, int root, ncclComm_t comm, \
       cudaStream_t stream),                                                                       \
      (send, recv, count, type, root, comm, stream))                                               \
    X(ReduceScatter,                                                                               \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,            \
       ncclComm_t comm, cudaStream_t stream),                                                      \
      (send, recv, count, type, op, comm, stream))                                                 \
    X(AllGather,                                                                                   \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclComm_t comm,           \
       cudaStream_t stream),                                                                       \
      (send, recv, count, type, comm, stream))                                                     \
    X(AlltoAll,                                                                                    \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclComm_t comm,           \
       cudaStream_t stream),                                                                       \
      (send, recv, count, type, comm, stream))                                                     \
    X(Gather,                                                                                      \
      (const void *send, void *recv, size_t count, ncclDataType_t type, int root, ncclComm_t comm, \
       cudaStream_t stream),                                                                       \
      (send, recv, count, type, root, comm, stream))                                               \
    X(Scatter,                                                                                     \
      (const void *send, void *recv, size_t count, ncclDataType_t type, int root, ncclComm_t comm, \
       cudaStream_t stream),                                                                       \
      (send, recv, count, type, root, comm, stream))                                               \
    X(Send,                                                                                        \
      (const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,             \
       cudaStream_t stream),                                                                       \
      (send, count, type, peer, comm, stream))                                                     \
    X(Recv,                                                                                        \
      (void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,                   \
       cudaStream_t stream),                                                                       \
      (recv, count, type, peer, comm, stream))                                                     \
    X(PutSignal,                                                                                   \
      (const void *local, size_t count, ncclDataType_t type, int peer, void *window,               \
       size_t offset, int signal, int context, unsigned flags, ncclComm_t comm,                    \
       cudaStream_t stream),                                                                       \
      (local, count, type, peer, window, offset, signal, context, flags, comm, stream))            \
    X(Signal,                                                                                      \
      (int peer, int signal, int context, unsigned flags, ncclComm_t comm, cudaStream_t stream),   \
      (peer, signal, context, flags, comm, stream))                                                \
    X(WaitSignal, (int count, void *signals, ncclComm_t comm, cudaStream_t stream),                \
      (count, signals, comm, stream))                                                              \
    X(AllReduceConfig,                                                                             \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,            \
       ncclComm_t comm, cudaStream_t stream, const void *config),                                  \
      (send, recv, count, type, op, comm, stream, config))                                         \
    X(BroadcastConfig,                                                                             \
      (const void *send, void *recv, size_t count, ncclDataType_t type, int root, ncclComm_t comm, \
       cudaStream_t stream, const void *config),                                                   \
      (send, recv, count, type, root, comm, stream, config))                                       \
    X(ReduceConfig,                                                                                \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,  \
       ncclComm_t comm, cudaStream_t stream, const void *config),                                  \
      (send, recv, count, type, op, root, comm, stream, config))                                   \
    X(AllGatherConfig,                                                                             \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclComm_t comm,           \
       cudaStream_t stream, const void *config),                                                   \
      (send, recv, count, type, comm, stream, config))                                             \
    X(ReduceScatterConfig,                                                                         \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,            \
       ncclComm_t comm, cudaStream_t stream, const void *config),                                  \
      (send, recv, count, type, op, comm, stream, config))                                         \
    X(AlltoAllConfig,                                                                              \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclComm_t comm,           \
       cudaStream_t stream, const void *config),                                                   \
      (send, recv, count, type, comm, stream, config))                                             \
    X(GatherConfig,                                                                                \
      (const void *send, void *recv, size_t count, ncclDataType_t type, int root, ncclComm_t comm, \
       cudaStream_t stream, const void *config),                                                   \
      (send, recv, count, type, root, comm, stream, config))                                       \
    X(ScatterConfig,                                                                               \
      (const void *send, void *recv, size_t count, ncclDataType_t type, int root, ncclComm_t comm, \
       cudaStream_t stream, const void *config),                                                   \
      (send, recv, count, type, root, comm, stream, config))

/* X(name, parameters): called, never redirected. */
#define LAMPREY_NCCL_CALLED(X)                                                                     \
    X(GetVersion, (int *version))                                                                  \
    X(CommCount, (ncclComm_t comm, int *count))                                                    \
    X(CommUserRank, (ncclComm_t comm, int *rank))                                                  \
    X(CommCuDevice, (ncclComm_t comm, int *device))

#endif
