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

/* ---- workspaces ----
 *
 * Staging memory of ranks that reach each other over NVLink, for the calls of this header. A served
 * communicator has one; a program can also build one without NCCL, from handles that it carries
 * between the ranks by whatever it has:
 *     every rank    lampreyWorkspaceExport(&args, &handle, &workspace)
 *     the program   gathers all ranks' handles, in rank order
 *     every rank    lampreyWorkspaceCreateFromHandles(workspace, handles, nranks)
 *     every rank    calls
 *     every rank    lampreyWorkspaceDestroy(workspace)
 * A process may have many, of different worlds. Each rank of a world has a GPU of its own.
 *
 * The calls on a workspace must be the same in the same order on all ranks, and a rank's must come
 * from one thread at a time. They run one after the other, also where streams change from call to
 * call, where a stream is being captured, and where replays of graphs mix with live calls and with
 * other replays. (NCCL_GRAPH_MIXING_SUPPORT=0 leaves the order between replays and live calls to
 * the program.) ncclGroupStart doesn't hold them back. Without LAMPREY_TIMEOUT a call waits for a
 * rank that doesn't come until the workspace is aborted. */

typedef struct lampreyWorkspace *lampreyWorkspace_t;

#define LAMPREY_HANDLE_BYTES 2048

/* What a rank's peers need to reach its memory: plain bytes, good for one
 * lampreyWorkspaceCreateFromHandles on each rank while the rank's workspace lives. */
typedef struct {
    unsigned char internal[LAMPREY_HANDLE_BYTES];
} lampreyWorkspaceHandle_t;

#define LAMPREY_WORKSPACE_ACROSS_HOSTS                                                             \
    1u /* the ranks span hosts of one NVLink domain: fabric handles, which need an IMEX channel */

/* Equal on all ranks but for rank and device. */
struct lampreyWorkspaceArgs {
    size_t size;     /* sizeof(struct lampreyWorkspaceArgs) */
    uint32_t nranks; /* 2 to 72 */
    uint32_t rank;
    int32_t device;      /* CUDA's ordinal */
    uint32_t flags;      /* LAMPREY_WORKSPACE_ */
    uint64_t most_bytes; /* of memory on each GPU, 2 MiB to 64 MiB; 0: 16 MiB */
    uint32_t timeout_ms; /* how long a rank's creation waits for another; 0: a minute */
};

/* The memory that such a workspace takes on each GPU: any shape goes through it, in pieces. Larger
 * ones let more of a GPU take part, as far as LAMPREY_MAX_CTAS allows. handle_bytes: of one handle;
 * NULL: not asked for. */
LAMPREY_API ncclResult_t lampreyWorkspaceSize(uint32_t nranks, uint64_t most_bytes, uint64_t *bytes,
                                              uint64_t *handle_bytes);

/* The workspace of a communicator, whose memory and order of calls it shares. The communicator is
 * set up if this is its first call, for which all ranks must come, and must outlive the
 * workspace's calls. ncclInvalidUsage: it isn't served. */
LAMPREY_API ncclResult_t lampreyWorkspaceCreate(ncclComm_t comm, lampreyWorkspace_t *workspace);

/* Makes this rank's part; waits for no other rank, but the first on a GPU loads the kernels, which
 * may wait for what runs there. Where the machine or a setting rules it out,
 * there is no workspace, but handle says so: give it to the others all the same, and all of them
 * fail at once, with this rank's reason. */
LAMPREY_API ncclResult_t lampreyWorkspaceExport(const struct lampreyWorkspaceArgs *args,
                                                lampreyWorkspaceHandle_t *handle,
                                                lampreyWorkspace_t *workspace);

/* Completes it with the handles of all ranks. Every rank must come, each in a thread of its own:
 * this waits for all of them, maps their memory, tries it and takes a vote. What fails on one rank
 * fails on all: at once where the handles tell, else when the wait for that rank is over
 * (ncclRemoteError). A workspace whose creation has failed is only good for
 * lampreyWorkspaceDestroy. */
LAMPREY_API ncclResult_t lampreyWorkspaceCreateFromHandles(lampreyWorkspace_t workspace,
                                                           const lampreyWorkspaceHandle_t *handles,
                                                           uint32_t count);

/* Waits until this rank's calls have ended, then gives its part back; waits for no other rank. The
 * memory stays while a graph that was captured with it does. NULL is fine. */
LAMPREY_API ncclResult_t lampreyWorkspaceDestroy(lampreyWorkspace_t workspace);

/* Makes this rank's kernels in flight leave, and its creation if that is under way, from any
 * thread. No further call succeeds on any rank: destroy it, or initialise it. A communicator's is
 * aborted by ncclCommAbort. */
LAMPREY_API ncclResult_t lampreyWorkspaceAbort(lampreyWorkspace_t workspace);

/* Puts a workspace's memory, or those of all in the list, into the state of a new one, as after a
 * time-out or an abort. Nothing else needs it: a new one is initialised. Waits for this rank's
 * calls to end. No rank may have a call under way, and none may call before all ranks have returned
 * from this. */
LAMPREY_API ncclResult_t lampreyLamportInitialize(lampreyWorkspace_t workspace);
LAMPREY_API ncclResult_t lampreyLamportInitializeAll(const lampreyWorkspace_t *workspaces,
                                                     size_t count);

/* ---- all-reduces with an epilogue ----
 *
 * The sum over ranks of rows (tokens) of hidden elements, and what a model does with each row next,
 * in one kernel:
 *     s = sum over ranks of in                  -> all_reduce_out
 *     h = s + residual_in                       -> residual_out
 *     n = RMSNorm(h) * (weight_bias + gamma)    -> norm_out
 *     n (h without a norm), quantised           -> quant_out, scale_out
 * Every output is optional, and every step whose input isn't given is left out. A row's bits depend
 * on its inputs alone: not on the number of rows, the strategy or the launch. kernels/NUMERICS.md
 * has every rounding.
 *
 * A call works on a communicator or on a workspace. The communicator must be served (its log line
 * says so); it is set up at its first call, and that blocks until every rank has come: a thread
 * that drives several GPUs makes a grouped ncclAllReduce on their communicators first. Calls are
 * ordered with NCCL's and captured like ncclAllReduce, but may not stand inside a group. On all
 * ranks tokens, hidden, type, strategy and the accumulation must be equal, and where one rank's
 * quantize is lampreyQuantizeFp8PerGroup, all ranks' quantize and group; else pointers, their
 * alignment and the choice of outputs may differ. */

typedef enum {
    lampreyQuantizeNone = 0,
    lampreyQuantizeFp8 = 1,         /* e4m3: n / scale */
    lampreyQuantizeFp8PerToken = 2, /* e4m3, an fp32 scale a row -> scale_out[tokens] */
    lampreyQuantizeFp8PerGroup = 3, /* e4m3, a power of two a group of a row -> its exponents, four
                                       a word, column by column of words */
    lampreyQuantizeNvfp4 = 4,       /* e2m1, two a byte, an e4m3 scale per 16: n * scale / it */
} lampreyQuantize_t;

typedef enum {
    lampreyScales128x4 = 0,
    lampreyScales8x4 = 1,
    lampreyScalesLinear = 2,
} lampreyScaleLayout_t;

typedef enum {
    lampreyStrategyAuto = 0, /* by size and ranks */
    lampreyStrategyOneShot = 1,
    lampreyStrategyTwoShot = 2,
} lampreyStrategy_t;

#define LAMPREY_FUSED_RMS_NORM 1u /* normalise; implied by gamma or norm_out */
#define LAMPREY_FUSED_GAMMA_CONSTANT                                                               \
    2u /* nothing that may still run on the stream writes gamma: it is read early */
#define LAMPREY_FUSED_ACCUMULATE_IN_TYPE 4u /* sums are rounded to type at each step */
#define LAMPREY_FUSED_SIGNAL                                                                       \
    8u /* let the stream's next kernel start early: it waits before it reads or writes */

/* Matrices lie row by row without gaps. An output of type may be in or residual_in itself; other
 * memory overlaps nowhere. Memory at multiples of 16 and a hidden that is a multiple of 16 bytes of
 * type are the fast case. */
struct lampreyFusedArgs {
    size_t size; /* sizeof(struct lampreyFusedArgs) */
    uint64_t tokens;
    uint64_t hidden;
    ncclDataType_t type; /* ncclFloat16, ncclBfloat16, ncclFloat32 */
    lampreyStrategy_t strategy;
    uint32_t flags;            /* LAMPREY_FUSED_ */
    const void *in;            /* tokens x hidden; unused with a MoE step */
    void *all_reduce_out;      /* tokens x hidden */
    const void *residual_in;   /* tokens x hidden */
    void *residual_out;        /* tokens x hidden */
    const void *gamma;         /* hidden; NULL: all weights are 1 */
    ncclDataType_t gamma_type; /* type or ncclFloat32 */
    float epsilon;             /* not negative */
    float weight_bias;         /* 0, or 1 for Gemma's weights */
    void *norm_out;            /* tokens x hidden */
    lampreyQuantize_t quantize;
    lampreyScaleLayout_t layout; /* of NVFP4's scales */
    uint32_t group;              /* elements of a group; divides hidden */
    float scale_value;           /* of FP8 and NVFP4 where scale is NULL */
    const float *scale;          /* the same in device memory */
    void *quant_out;
    void *scale_out;
    lampreyWorkspace_t workspace; /* instead of comm, which is NULL then */
};

/* in[t] = sum over experts e of scales[e][t] * rows[e][t], and added[t] */
struct lampreyMoeReduceArgs {
    size_t size;
    uint32_t experts;
    const float *scales; /* experts x tokens */
    const void *rows;    /* experts x tokens x hidden, of type */
    const void *added;   /* tokens x hidden, or NULL */
};

/* in[t] = factor * sum over k of scales[t][k] * rows[indices[t][k]], and added[t] */
struct lampreyMoeFinalizeArgs {
    size_t size;
    uint32_t top_k;
    const int32_t *indices;     /* tokens x top_k; negative: none */
    const void *scales;         /* tokens x top_k, or NULL: all are 1 */
    ncclDataType_t scales_type; /* type or ncclFloat32 */
    float factor;               /* 1: none */
    const void *rows;           /* of hidden elements of type */
    const void *added;          /* tokens x hidden (the shared expert's), or NULL */
};

/* Operators, by the numbers that they have in TensorRT-LLM's and FlashInfer's custom all-reduce:
 *     b = s + bias
 *     p = RMSNorm(b) * (weight_bias + pre_gamma) if the operator's name says PrePost, else b
 *     h = p + residual_in
 * and on as above. A bias goes with each of them. An operator with a norm has its result in
 * norm_out, or in quant_out, or in both where its name says Out; None has it in residual_out. What
 * else is computed can be had too: s in all_reduce_out, h in residual_out. */
typedef enum {
    lampreyFusionNone = 0,
    lampreyFusionResidualRmsNorm = 1,
    lampreyFusionLastProcessForUb = 2, /* the same: here every rank always has all rows */
    lampreyFusionResidualRmsPrePostNorm = 3,
    lampreyFusionResidualRmsNormQuantFp8 = 4,
    lampreyFusionResidualRmsNormQuantNvfp4 = 5,
    lampreyFusionResidualRmsNormOutQuantFp8 = 6,
    lampreyFusionResidualRmsNormOutQuantNvfp4 = 7,
    lampreyFusionRmsNorm = 16, /* without a residual */
} lampreyFusionOp_t;

struct lampreyCustomArgs {
    size_t size;
    lampreyFusionOp_t op;  /* args->quantize must fit it */
    const void *bias;      /* hidden, of type; or NULL */
    const void *pre_gamma; /* hidden, of args->gamma_type; NULL: all weights are 1 */
};

/* ncclInvalidArgument: lampreyGetLastError names the argument, and nothing is launched or written.
 * ncclInvalidUsage: the communicator isn't served, a group is open, the workspace isn't complete,
 * or some rank's GPU can't run these kernels. ncclRemoteError: an earlier call has waited for a
 * peer in vain (LAMPREY_TIMEOUT). */
LAMPREY_API ncclResult_t lampreyAllReduceFused(const struct lampreyFusedArgs *args, ncclComm_t comm,
                                               cudaStream_t stream);
LAMPREY_API ncclResult_t lampreyMoeReduceAllReduceFused(const struct lampreyFusedArgs *args,
                                                        const struct lampreyMoeReduceArgs *moe,
                                                        ncclComm_t comm, cudaStream_t stream);
LAMPREY_API ncclResult_t lampreyMoeFinalizeAllReduceFused(const struct lampreyFusedArgs *args,
                                                          const struct lampreyMoeFinalizeArgs *moe,
                                                          ncclComm_t comm, cudaStream_t stream);

LAMPREY_API ncclResult_t lampreyCustomAllReduce(const struct lampreyFusedArgs *args,
                                                const struct lampreyCustomArgs *custom,
                                                ncclComm_t comm, cudaStream_t stream);

/* The names that MNNVL programs know, on args->workspace, of whatever ranks: the all-reduce alone,
 * into all_reduce_out; and with residual_in, gamma, and norm_out or quant_out or both. */
LAMPREY_API ncclResult_t lampreyMnnvlAllReduce(const struct lampreyFusedArgs *args,
                                               cudaStream_t stream);
LAMPREY_API ncclResult_t lampreyMnnvlAllReduceRmsNorm(const struct lampreyFusedArgs *args,
                                                      cudaStream_t stream);

/* Bytes of NVFP4's scales in the layout 128x4; columns: hidden / 16. ncclInvalidArgument: bytes is
 * NULL, or they are more than a uint64_t holds. */
LAMPREY_API ncclResult_t lampreyFp4SwizzledScaleSize(uint64_t tokens, uint64_t columns,
                                                     uint64_t *bytes);

#ifdef __cplusplus
}
#endif

#endif
