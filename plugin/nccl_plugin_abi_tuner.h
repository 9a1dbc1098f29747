/* SPDX-License-Identifier: Apache-2.0 */
/* NCCL's tuner plugin tables, newest first. Which release looks up which: v1 2.19 and 2.20, v2 from
 * 2.21, v3 from 2.22, v4 from 2.24, v5 from 2.28, v6 from 2.30; the newest that is found is used.
 */
#ifndef LAMPREY_PLUGIN_NCCL_PLUGIN_ABI_TUNER_H
#define LAMPREY_PLUGIN_NCCL_PLUGIN_ABI_TUNER_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include <nccl.h>

#include "plugin/log.h"

/* v5 and v6 pass these; only a chained tuner looks inside. */
struct lamprey_abi_nvl_domains {
    int domains;
    int min_ranks;
    int max_ranks;
};

struct lamprey_abi_tuner_constants {
    double base_latencies[7][3];    /* algorithm, protocol */
    double link_latencies[3][7][3]; /* link, algorithm, protocol */
    double bandwidths[5][4][3];     /* table, GPU generation, scale */
};

static_assert(sizeof(struct lamprey_abi_nvl_domains) == 12, "NVLink domain record");
static_assert(sizeof(struct lamprey_abi_tuner_constants) == 1152, "tuner constants");
static_assert(offsetof(struct lamprey_abi_tuner_constants, link_latencies) == 168, "latencies");
static_assert(offsetof(struct lamprey_abi_tuner_constants, bandwidths) == 672, "bandwidths");

struct lamprey_abi_tuner_v6 {
    const char *name;
    ncclResult_t (*init)(void **context, uint64_t comm_id, size_t nranks, size_t nnodes,
                         lamprey_nccl_logger logger, struct lamprey_abi_nvl_domains *domains,
                         struct lamprey_abi_tuner_constants *constants);
    ncclResult_t (*get_coll_info)(void *context, int function, size_t bytes, int pipe_ops,
                                  float **costs, int algorithms, int protocols, int registered,
                                  int *channels);
    ncclResult_t (*finalize)(void *context);
    /* NULL: NCCL keeps its own chunk size. */
    ncclResult_t (*get_chunk_size)(void *context, int function, size_t bytes, int algorithm,
                                   int protocol, int channels, size_t *chunk_size);
};

static_assert(sizeof(struct lamprey_abi_tuner_v6) == 5 * sizeof(void *), "tuner v6");
static_assert(offsetof(struct lamprey_abi_tuner_v6, get_chunk_size) == 4 * sizeof(void *),
              "tuner v6");

struct lamprey_abi_tuner_v5 {
    const char *name;
    ncclResult_t (*init)(void **context, uint64_t comm_id, size_t nranks, size_t nnodes,
                         lamprey_nccl_logger logger, struct lamprey_abi_nvl_domains *domains,
                         struct lamprey_abi_tuner_constants *constants);
    ncclResult_t (*get_coll_info)(void *context, int function, size_t bytes, int pipe_ops,
                                  float **costs, int algorithms, int protocols, int registered,
                                  int *channels);
    ncclResult_t (*finalize)(void *context);
};

static_assert(sizeof(struct lamprey_abi_tuner_v5) == 4 * sizeof(void *), "tuner v5");
static_assert(offsetof(struct lamprey_abi_tuner_v5, finalize) == 3 * sizeof(void *), "tuner v5");

struct lamprey_abi_tuner_v4 {
    const char *name;
    ncclResult_t (*init)(size_t nranks, size_t nnodes, lamprey_nccl_logger logger, void **context);
    ncclResult_t (*get_coll_info)(void *context, int function, size_t bytes, int pipe_ops,
                                  float **costs, int algorithms, int protocols, int registered,
                                  int *channels);
    ncclResult_t (*destroy)(void *context);
};

static_assert(sizeof(struct lamprey_abi_tuner_v4) == 4 * sizeof(void *), "tuner v4");
static_assert(offsetof(struct lamprey_abi_tuner_v4, destroy) == 3 * sizeof(void *), "tuner v4");

struct lamprey_abi_tuner_v3 {
    const char *name;
    ncclResult_t (*init)(size_t nranks, size_t nnodes, lamprey_nccl_logger logger, void **context);
    ncclResult_t (*get_coll_info)(void *context, int function, size_t bytes, int pipe_ops,
                                  float **costs, int algorithms, int protocols, int *channels);
    ncclResult_t (*destroy)(void *context);
};

static_assert(sizeof(struct lamprey_abi_tuner_v3) == 4 * sizeof(void *), "tuner v3");
static_assert(offsetof(struct lamprey_abi_tuner_v3, destroy) == 3 * sizeof(void *), "tuner v3");

struct lamprey_abi_tuner_v2 {
    const char *name;
    ncclResult_t (*init)(size_t nranks, size_t nnodes, lamprey_nccl_logger logger, void **context);
    ncclResult_t (*get_coll_info)(void *context, int function, size_t bytes, int collnet, int nvls,
                                  int pipe_ops, int *algorithm, int *protocol, int *channels);
    ncclResult_t (*destroy)(void *context);
};

static_assert(sizeof(struct lamprey_abi_tuner_v2) == 4 * sizeof(void *), "tuner v2");
static_assert(offsetof(struct lamprey_abi_tuner_v2, destroy) == 3 * sizeof(void *), "tuner v2");

struct lamprey_abi_tuner_v1 {
    const char *name;
    ncclResult_t (*init)(size_t nranks, size_t nnodes, lamprey_nccl_logger logger);
    ncclResult_t (*get_coll_info)(int function, size_t bytes, int collnet, int nvls, int pipe_ops,
                                  int *algorithm, int *protocol, int *channels);
    ncclResult_t (*destroy)(void);
};

static_assert(sizeof(struct lamprey_abi_tuner_v1) == 4 * sizeof(void *), "tuner v1");
static_assert(offsetof(struct lamprey_abi_tuner_v1, destroy) == 3 * sizeof(void *), "tuner v1");

#endif
