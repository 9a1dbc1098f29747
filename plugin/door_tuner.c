/* SPDX-License-Identifier: Apache-2.0 */
/* The tuner doors. A tuner that leaves everything as it is has no opinion; only the costs of being
 * asked remain: since 2.24 two look-ups in NCCL's registration cache for each kind of collective in
 * a group, and since 2.28 the CTA policy "efficiency" is not applied where a tuner exists.
 *
 * A tuner chained behind ours (LAMPREY_TUNER_PLUGIN) is called in the newest version that it has
 * and that needs nothing NCCL did not give us. Its errors are passed on: going on without it on one
 * rank alone would let the ranks choose different algorithms. */
#include "plugin/nccl_plugin_abi_tuner.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "plugin/chain.h"
#include "plugin/config.h"
#include "plugin/door_enter.h"

#define NAME "lamprey"
#define PROTOCOLS 3
#define COLLNET_CHAIN 3
#define NVLS 4
#define NVLS_TREE 5
#define SIMPLE 2
#define IMPOSSIBLE (-1.0F)

/* One communicator's chained tuner; NULL stands for none. */
struct chained {
    int version;
    const void *table;
    void *context;
};

/* What a NCCL that asks for version 5 or 6 gives, NULL members before that. */
struct extras {
    uint64_t comm_id;
    struct lamprey_abi_nvl_domains *domains;
    struct lamprey_abi_tuner_constants *constants;
};

static pthread_once_t open_once = PTHREAD_ONCE_INIT;
static void *chain_handle;

static void open_chain(void)
{
    chain_handle =
        lamprey_chain_open("tuner", "LAMPREY_TUNER_PLUGIN", lamprey_config_get()->tuner_plugin);
}

static const void *find_chained(int newest, int oldest, int *version)
{
    static atomic_flag warned = ATOMIC_FLAG_INIT;
    const void *table = NULL;

    pthread_once(&open_once, open_chain);
    if (chain_handle == NULL) {
        return NULL;
    }
    table = lamprey_chain_find(chain_handle, "ncclTunerPlugin_v", newest, oldest, version);
    if (table == NULL && !atomic_flag_test_and_set(&warned)) {
        lamprey_warn("LAMPREY_TUNER_PLUGIN=%s: no ncclTunerPlugin_v%d to v%d in it, and this NCCL "
                     "can't serve others; going on without it",
                     lamprey_config_get()->tuner_plugin, oldest, newest);
    }
    return table;
}

static ncclResult_t call_init(const struct chained *chained, size_t nranks, size_t nnodes,
                              lamprey_nccl_logger logger, const struct extras *extras,
                              void **context)
{
    switch (chained->version) {
    case 6:
        return ((const struct lamprey_abi_tuner_v6 *)chained->table)
            ->init(context, extras->comm_id, nranks, nnodes, logger, extras->domains,
                   extras->constants);
    case 5:
        return ((const struct lamprey_abi_tuner_v5 *)chained->table)
            ->init(context, extras->comm_id, nranks, nnodes, logger, extras->domains,
                   extras->constants);
    case 4:
        return ((const struct lamprey_abi_tuner_v4 *)chained->table)
            ->init(nranks, nnodes, logger, context);
    case 3:
        return ((const struct lamprey_abi_tuner_v3 *)chained->table)
            ->init(nranks, nnodes, logger, context);
    default:
        return ((const struct lamprey_abi_tuner_v2 *)chained->table)
            ->init(nranks, nnodes, logger, context);
    }
}

static ncclResult_t enter(void **context, int version, size_t nranks, size_t nnodes,
                          lamprey_nccl_logger logger, const struct extras *extras,
                          const void *address)
{
    struct chained found = {0};
    struct chained *chained = NULL;
    ncclResult_t result = ncclSuccess;

    *context = NULL;
    lamprey_door_enter(logger, address, NULL, "tuner");

    found.table = find_chained(version, 2, &found.version);
    if (found.table == NULL) {
        return ncclSuccess;
    }
    chained = malloc(sizeof(*chained));
    if (chained == NULL) {
        lamprey_error("out of memory for the chained tuner of a communicator");
        return ncclSystemError;
    }
    *chained = found;
    result = call_init(chained, nranks, nnodes, logger, extras, &chained->context);
    if (result != ncclSuccess) {
        free(chained);
        return result;
    }
    *context = chained;
    return ncclSuccess;
}

static ncclResult_t leave(void *context)
{
    struct chained *chained = context;
    ncclResult_t result = ncclSuccess;

    if (chained == NULL) {
        return ncclSuccess;
    }
    switch (chained->version) {
    case 6:
        result = ((const struct lamprey_abi_tuner_v6 *)chained->table)->finalize(chained->context);
        break;
    case 5:
        result = ((const struct lamprey_abi_tuner_v5 *)chained->table)->finalize(chained->context);
        break;
    case 4:
        result = ((const struct lamprey_abi_tuner_v4 *)chained->table)->destroy(chained->context);
        break;
    case 3:
        result = ((const struct lamprey_abi_tuner_v3 *)chained->table)->destroy(chained->context);
        break;
    default:
        result = ((const struct lamprey_abi_tuner_v2 *)chained->table)->destroy(chained->context);
        break;
    }
    free(chained);
    return result;
}

/* costs is declared as rows of pointers and is one block of algorithms x protocols floats. */
static float *cost(float **costs, int protocols, int algorithm, int protocol)
{
    return (float *)(void *)costs + algorithm * protocols + protocol;
}

/* A v2 tuner names one algorithm and protocol; cost 0 makes NCCL take it, if it is possible. */
static ncclResult_t ask_v2(const struct chained *chained, int function, size_t bytes, int pipe_ops,
                           float **costs, int algorithms, int protocols, int *channels)
{
    const struct lamprey_abi_tuner_v2 *table = chained->table;
    int algorithm = -1;
    int protocol = -1;
    int nvls = 0;
    int collnet = 0;
    ncclResult_t result = ncclSuccess;

    if (algorithms > NVLS_TREE && protocols > SIMPLE) {
        nvls = *cost(costs, protocols, NVLS, SIMPLE) != IMPOSSIBLE ||
               *cost(costs, protocols, NVLS_TREE, SIMPLE) != IMPOSSIBLE;
        collnet = *cost(costs, protocols, COLLNET_CHAIN, SIMPLE) != IMPOSSIBLE;
    }
    result = table->get_coll_info(chained->context, function, bytes, collnet, nvls, pipe_ops,
                                  &algorithm, &protocol, channels);
    if (result != ncclSuccess) {
        return result;
    }
    if (algorithm >= 0 && algorithm < algorithms && protocol >= 0 && protocol < protocols &&
        *cost(costs, protocols, algorithm, protocol) != IMPOSSIBLE) {
        *cost(costs, protocols, algorithm, protocol) = 0.0F;
    }
    return ncclSuccess;
}

static ncclResult_t ask(void *context, int function, size_t bytes, int pipe_ops, float **costs,
                        int algorithms, int protocols, int registered, int *channels)
{
    const struct chained *chained = context;

    if (chained == NULL) {
        return ncclSuccess;
    }
    switch (chained->version) {
    case 6:
        return ((const struct lamprey_abi_tuner_v6 *)chained->table)
            ->get_coll_info(chained->context, function, bytes, pipe_ops, costs, algorithms,
                            protocols, registered, channels);
    case 5:
        return ((const struct lamprey_abi_tuner_v5 *)chained->table)
            ->get_coll_info(chained->context, function, bytes, pipe_ops, costs, algorithms,
                            protocols, registered, channels);
    case 4:
        return ((const struct lamprey_abi_tuner_v4 *)chained->table)
            ->get_coll_info(chained->context, function, bytes, pipe_ops, costs, algorithms,
                            protocols, registered, channels);
    case 3:
        return ((const struct lamprey_abi_tuner_v3 *)chained->table)
            ->get_coll_info(chained->context, function, bytes, pipe_ops, costs, algorithms,
                            protocols, channels);
    default:
        return ask_v2(chained, function, bytes, pipe_ops, costs, algorithms, protocols, channels);
    }
}

static ncclResult_t get_chunk_size(void *context, int function, size_t bytes, int algorithm,
                                   int protocol, int channels, size_t *chunk_size)
{
    const struct chained *chained = context;
    const struct lamprey_abi_tuner_v6 *table = NULL;

    if (chained == NULL || chained->version != 6) {
        return ncclSuccess;
    }
    table = chained->table;
    if (table->get_chunk_size == NULL) {
        return ncclSuccess;
    }
    return table->get_chunk_size(chained->context, function, bytes, algorithm, protocol, channels,
                                 chunk_size);
}

static ncclResult_t init_v6(void **context, uint64_t comm_id, size_t nranks, size_t nnodes,
                            lamprey_nccl_logger logger, struct lamprey_abi_nvl_domains *domains,
                            struct lamprey_abi_tuner_constants *constants);

/* Not constant: get_chunk_size is there only when a chained tuner has one, because NCCL limits the
 * chunk size anew after asking. */
LAMPREY_DOOR_EXPORT struct lamprey_abi_tuner_v6 ncclTunerPlugin_v6 = {NAME, init_v6, ask, leave,
                                                                      NULL};

static ncclResult_t init_v6(void **context, uint64_t comm_id, size_t nranks, size_t nnodes,
                            lamprey_nccl_logger logger, struct lamprey_abi_nvl_domains *domains,
                            struct lamprey_abi_tuner_constants *constants)
{
    struct extras extras = {comm_id, domains, constants};
    const struct chained *chained = NULL;
    ncclResult_t result =
        enter(context, 6, nranks, nnodes, logger, &extras, __builtin_return_address(0));

    chained = *context;
    if (result == ncclSuccess && chained != NULL && chained->version == 6 &&
        ((const struct lamprey_abi_tuner_v6 *)chained->table)->get_chunk_size != NULL) {
        __atomic_store_n(&ncclTunerPlugin_v6.get_chunk_size, get_chunk_size, __ATOMIC_RELEASE);
    }
    return result;
}

static ncclResult_t init_v5(void **context, uint64_t comm_id, size_t nranks, size_t nnodes,
                            lamprey_nccl_logger logger, struct lamprey_abi_nvl_domains *domains,
                            struct lamprey_abi_tuner_constants *constants)
{
    struct extras extras = {comm_id, domains, constants};

    return enter(context, 5, nranks, nnodes, logger, &extras, __builtin_return_address(0));
}

static ncclResult_t init_v4(size_t nranks, size_t nnodes, lamprey_nccl_logger logger,
                            void **context)
{
    return enter(context, 4, nranks, nnodes, logger, NULL, __builtin_return_address(0));
}

static ncclResult_t init_v3(size_t nranks, size_t nnodes, lamprey_nccl_logger logger,
                            void **context)
{
    return enter(context, 3, nranks, nnodes, logger, NULL, __builtin_return_address(0));
}

static ncclResult_t init_v2(size_t nranks, size_t nnodes, lamprey_nccl_logger logger,
                            void **context)
{
    return enter(context, 2, nranks, nnodes, logger, NULL, __builtin_return_address(0));
}

static ncclResult_t ask_as_v3(void *context, int function, size_t bytes, int pipe_ops,
                              float **costs, int algorithms, int protocols, int *channels)
{
    return ask(context, function, bytes, pipe_ops, costs, algorithms, protocols, 0, channels);
}

static ncclResult_t ask_as_v2(void *context, int function, size_t bytes, int collnet, int nvls,
                              int pipe_ops, int *algorithm, int *protocol, int *channels)
{
    const struct chained *chained = context;

    if (chained == NULL) {
        return ncclSuccess;
    }
    return ((const struct lamprey_abi_tuner_v2 *)chained->table)
        ->get_coll_info(chained->context, function, bytes, collnet, nvls, pipe_ops, algorithm,
                        protocol, channels);
}

/* v1 has no context: the chained tuner's table is all there is. */
static const struct lamprey_abi_tuner_v1 *_Atomic chained_v1;

static ncclResult_t init_v1(size_t nranks, size_t nnodes, lamprey_nccl_logger logger)
{
    const struct lamprey_abi_tuner_v1 *table = NULL;
    int version = 0;

    lamprey_door_enter(logger, __builtin_return_address(0), NULL, "tuner");
    table = find_chained(1, 1, &version);
    atomic_store(&chained_v1, table);
    return table != NULL ? table->init(nranks, nnodes, logger) : ncclSuccess;
}

static ncclResult_t ask_v1(int function, size_t bytes, int collnet, int nvls, int pipe_ops,
                           int *algorithm, int *protocol, int *channels)
{
    const struct lamprey_abi_tuner_v1 *table = atomic_load(&chained_v1);

    return table != NULL ? table->get_coll_info(function, bytes, collnet, nvls, pipe_ops, algorithm,
                                                protocol, channels)
                         : ncclSuccess;
}

static ncclResult_t leave_v1(void)
{
    const struct lamprey_abi_tuner_v1 *table = atomic_load(&chained_v1);

    return table != NULL ? table->destroy() : ncclSuccess;
}

LAMPREY_DOOR_EXPORT const struct lamprey_abi_tuner_v5 ncclTunerPlugin_v5 = {NAME, init_v5, ask,
                                                                            leave};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_tuner_v4 ncclTunerPlugin_v4 = {NAME, init_v4, ask,
                                                                            leave};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_tuner_v3 ncclTunerPlugin_v3 = {NAME, init_v3,
                                                                            ask_as_v3, leave};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_tuner_v2 ncclTunerPlugin_v2 = {NAME, init_v2,
                                                                            ask_as_v2, leave};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_tuner_v1 ncclTunerPlugin_v1 = {NAME, init_v1, ask_v1,
                                                                            leave_v1};
