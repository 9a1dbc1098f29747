/* SPDX-License-Identifier: Apache-2.0 */
/* NCCL's network and collective network tables, newest first: v5 up to 2.25, v6, v7 and v8 in all
 * supported releases, v9 from 2.24, v10 from 2.26, v11 from 2.28, v12 from 2.30.
 *
 * NCCL touches a network that has no device only through name, init, devices and, from v11 on,
 * finalize; older NCCL's adapters also copy the other members. So those are declared as slots:
 * right in number and place, without their parameters. */
#ifndef LAMPREY_PLUGIN_NCCL_PLUGIN_ABI_NET_H
#define LAMPREY_PLUGIN_NCCL_PLUGIN_ABI_NET_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include <nccl.h>

#include "plugin/log.h"

typedef ncclResult_t (*lamprey_abi_slot)(void);

/* v11 and v12 */
struct lamprey_abi_net_v12 {
    const char *name;
    ncclResult_t (*init)(void **context, uint64_t comm_id, void *config, lamprey_nccl_logger logger,
                         void *profiler_callback);
    ncclResult_t (*devices)(int *count);
    /* getProperties, listen, connect, accept, regMr, regMrDmaBuf, deregMr, isend, irecv, iflush,
     * test, closeSend, closeRecv, closeListen, getDeviceMr, irecvConsumed, makeVDevice */
    lamprey_abi_slot unused[17];
    ncclResult_t (*finalize)(void *context);
    ncclResult_t (*set_net_attr)(void *context, void *attributes);
};

static_assert(sizeof(struct lamprey_abi_net_v12) == 22 * sizeof(void *), "net v11, v12");
static_assert(offsetof(struct lamprey_abi_net_v12, finalize) == 20 * sizeof(void *),
              "net v11, v12");

struct lamprey_abi_collnet_v12 {
    const char *name;
    ncclResult_t (*init)(void **context, uint64_t comm_id, lamprey_nccl_logger logger);
    ncclResult_t (*devices)(int *count);
    /* getProperties, listen, connect, reduceSupport, regMr, regMrDmaBuf, deregMr, iallreduce,
     * iallgather, ireducescatter, iflush, test, closeColl, closeListen, makeVDevice */
    lamprey_abi_slot unused[15];
    ncclResult_t (*finalize)(void *context);
};

static_assert(sizeof(struct lamprey_abi_collnet_v12) == 19 * sizeof(void *), "collnet v11, v12");
static_assert(offsetof(struct lamprey_abi_collnet_v12, finalize) == 18 * sizeof(void *),
              "collnet v11, v12");

struct lamprey_abi_net_v10 {
    const char *name;
    ncclResult_t (*init)(lamprey_nccl_logger logger, void *profiler_callback);
    ncclResult_t (*devices)(int *count);
    lamprey_abi_slot unused[17]; /* as v12 */
};

static_assert(sizeof(struct lamprey_abi_net_v10) == 20 * sizeof(void *), "net v10");

/* The older ones differ in the number of slots alone. */
#define LAMPREY_ABI_NETWORK(type, slots)                                                           \
    struct type {                                                                                  \
        const char *name;                                                                          \
        ncclResult_t (*init)(lamprey_nccl_logger logger);                                          \
        ncclResult_t (*devices)(int *count);                                                       \
        lamprey_abi_slot unused[slots];                                                            \
    };                                                                                             \
    static_assert(sizeof(struct type) == ((slots) + 3) * sizeof(void *), #type);                   \
    static_assert(offsetof(struct type, unused) == 3 * sizeof(void *), #type)

LAMPREY_ABI_NETWORK(lamprey_abi_net_v9, 17); /* as v10 */
LAMPREY_ABI_NETWORK(lamprey_abi_net_v8, 16); /* no makeVDevice */
LAMPREY_ABI_NETWORK(lamprey_abi_net_v7, 16);
LAMPREY_ABI_NETWORK(lamprey_abi_net_v6, 14); /* no getDeviceMr, irecvConsumed */
LAMPREY_ABI_NETWORK(lamprey_abi_net_v5, 13); /* no regMrDmaBuf */

LAMPREY_ABI_NETWORK(lamprey_abi_collnet_v10, 15); /* as v12 without finalize */
LAMPREY_ABI_NETWORK(lamprey_abi_collnet_v9, 15);
LAMPREY_ABI_NETWORK(lamprey_abi_collnet_v8, 14); /* no makeVDevice */
LAMPREY_ABI_NETWORK(lamprey_abi_collnet_v7, 12); /* no iallgather, ireducescatter */
LAMPREY_ABI_NETWORK(lamprey_abi_collnet_v6, 12);
LAMPREY_ABI_NETWORK(lamprey_abi_collnet_v5, 11); /* no regMrDmaBuf */

#endif
