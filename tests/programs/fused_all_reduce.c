/* SPDX-License-Identifier: Apache-2.0 */
/* How a program calls Lamprey's fused all-reduce: found by dlsym in the library that NCCL has
 * loaded, live and in a CUDA graph, on a communicator that plain all-reduces use too, or with
 * --workspace on a workspace beside it. Every byte is compared with the reference. */
#include <dlfcn.h>
#include <stdio.h>

#include "kernels/fused_reference.h"
#include "plugin/lamprey.h"
#include "tests/programs/gpu.h"

#define EPSILON 1e-6f

struct settings {
    size_t tokens;
    size_t hidden;
    uint64_t rounds;
    int workspace;
};

/* One rank's arrays; each exists on the host too, for what they must hold. */
struct rows {
    size_t tokens;
    size_t hidden;
    size_t bytes; /* of tokens x hidden of bf16 */
    CUdeviceptr in, residual, gamma, norm, codes, scales;
    unsigned char *host_in[PROGRAM_MAX_RANKS];
    unsigned char *host_residual, *host_gamma, *host_norm, *host_codes, *host_scales, *host_got;
};

static struct {
    __typeof__(&lampreyAllReduceFused) all_reduce;
    __typeof__(&lampreyGetLastError) last_error;
    __typeof__(&lampreyWorkspaceExport) export;
    __typeof__(&lampreyWorkspaceCreateFromHandles) create;
    __typeof__(&lampreyWorkspaceDestroy) destroy;
} lamprey;

static void check_lamprey(ncclResult_t result, const char *function) {
    if (result != ncclSuccess) {
        program_fail("%s: NCCL error %d: %s", function, (int)result, lamprey.last_error());
    }
}

static void find_lamprey(void) {
    void *library = dlopen("liblamprey.so", RTLD_NOW | RTLD_NOLOAD);
    if (library == NULL) {
        program_fail("NCCL hasn't loaded liblamprey.so: set NCCL_PLUGIN=lamprey, and the loader's "
                     "path to its folder");
    }
    *(void **)&lamprey.all_reduce = dlsym(library, "lampreyAllReduceFused");
    *(void **)&lamprey.last_error = dlsym(library, "lampreyGetLastError");
    *(void **)&lamprey.export = dlsym(library, "lampreyWorkspaceExport");
    *(void **)&lamprey.create = dlsym(library, "lampreyWorkspaceCreateFromHandles");
    *(void **)&lamprey.destroy = dlsym(library, "lampreyWorkspaceDestroy");
    if (lamprey.all_reduce == NULL || lamprey.last_error == NULL || lamprey.export == NULL ||
        lamprey.create == NULL || lamprey.destroy == NULL) {
        program_fail("this liblamprey.so is too old for this program");
    }
}

/* Handles go from rank to rank by whatever a program has: here NCCL. */
static lampreyWorkspace_t open_workspace(const struct program_rank *self, const struct gpu *gpu) {
    const size_t size = sizeof(lampreyWorkspaceHandle_t);
    lampreyWorkspace_t workspace = NULL;
    lampreyWorkspaceHandle_t *handles = gpu_host((size_t)self->nranks * size);
    lampreyWorkspaceHandle_t own;
    CUdeviceptr all;
    struct lampreyWorkspaceArgs args = {
        .size = sizeof args,
        .nranks = (uint32_t)self->nranks,
        .rank = (uint32_t)self->rank,
    };
    CU(cuCtxGetDevice(&args.device));
    check_lamprey(lamprey.export(&args, &own, &workspace), "lampreyWorkspaceExport");
    CU(cuMemAlloc(&all, (size_t)self->nranks * size));
    CU(cuMemcpyHtoDAsync(all + (size_t)self->rank * size, &own, size, gpu->stream));
    NCCL(ncclAllGather((const void *)(all + (size_t)self->rank * size), (void *)all, size,
                       ncclUint8, gpu->comm, (cudaStream_t)gpu->stream));
    CU(cuMemcpyDtoHAsync(handles, all, (size_t)self->nranks * size, gpu->stream));
    CU(cuStreamSynchronize(gpu->stream));
    check_lamprey(lamprey.create(workspace, handles, args.nranks),
                  "lampreyWorkspaceCreateFromHandles");
    CU(cuMemFree(all));
    free(handles);
    return workspace;
}

static void open_rows(struct rows *rows, const struct settings *settings, int nranks) {
    rows->tokens = settings->tokens;
    rows->hidden = settings->hidden;
    rows->bytes = settings->tokens * settings->hidden * 2;
    CU(cuMemAlloc(&rows->in, rows->bytes));
    CU(cuMemAlloc(&rows->residual, rows->bytes));
    CU(cuMemAlloc(&rows->gamma, rows->hidden * 2));
    CU(cuMemAlloc(&rows->norm, rows->bytes));
    CU(cuMemAlloc(&rows->codes, rows->bytes / 2));
    CU(cuMemAlloc(&rows->scales, rows->tokens * sizeof(float)));
    for (int rank = 0; rank < nranks; rank++) {
        rows->host_in[rank] = gpu_host(rows->bytes);
    }
    rows->host_residual = gpu_host(rows->bytes);
    rows->host_gamma = gpu_host(rows->hidden * 2);
    rows->host_norm = gpu_host(rows->bytes);
    rows->host_codes = gpu_host(rows->bytes / 2);
    rows->host_scales = gpu_host(rows->tokens * sizeof(float));
    rows->host_got = gpu_host(rows->bytes);
}

static void close_rows(struct rows *rows, int nranks) {
    const CUdeviceptr device[] = {rows->in,   rows->residual, rows->gamma,
                                  rows->norm, rows->codes,    rows->scales};
    for (size_t i = 0; i < sizeof device / sizeof device[0]; i++) {
        CU(cuMemFree(device[i]));
    }
    for (int rank = 0; rank < nranks; rank++) {
        free(rows->host_in[rank]);
    }
    free(rows->host_residual);
    free(rows->host_gamma);
    free(rows->host_norm);
    free(rows->host_codes);
    free(rows->host_scales);
    free(rows->host_got);
}

/* The inputs of a round, and what must come of them: residual_out in host_residual, and so on. */
static void fill(struct rows *rows, uint64_t seed, int self, int nranks, CUstream stream) {
    const size_t count = rows->tokens * rows->hidden;
    for (int rank = 0; rank < nranks; rank++) {
        reference_fill(rows->host_in[rank], 0, count, ncclBfloat16, ncclSum, seed, rank, nranks);
    }
    reference_fill(rows->host_residual, 0, count, ncclBfloat16, ncclSum, seed, nranks, nranks);
    reference_fill(rows->host_gamma, 0, rows->hidden, ncclBfloat16, ncclSum, 1, 0, nranks);
    CU(cuMemcpyHtoDAsync(rows->in, rows->host_in[self], rows->bytes, stream));
    CU(cuMemcpyHtoDAsync(rows->residual, rows->host_residual, rows->bytes, stream));
    CU(cuMemcpyHtoDAsync(rows->gamma, rows->host_gamma, rows->hidden * 2, stream));
    CU(cuStreamSynchronize(stream));
    lamprey_reference_sum(LAMPREY_REFERENCE_BF16, LAMPREY_REFERENCE_IN_F32, nranks,
                          (const void *const *)rows->host_in, rows->host_got, count);
    const struct lamprey_reference_epilogue epilogue = {
        .type = LAMPREY_REFERENCE_BF16,
        .gamma_type = LAMPREY_REFERENCE_BF16,
        .tokens = rows->tokens,
        .hidden = rows->hidden,
        .sum = rows->host_got,
        .residual = rows->host_residual,
        .gamma = rows->host_gamma,
        .norm = true,
        .epsilon = EPSILON,
        .quantisation = {.format = LAMPREY_REFERENCE_FP8_TOKEN},
        .residual_out = rows->host_residual,
        .norm_out = rows->host_norm,
        .codes = rows->host_codes,
        .scales = rows->host_scales,
    };
    lamprey_reference_finish_rows(&epilogue);
}

/* The call: residual and norm as a layer of a model has them, and what an FP8 product reads. */
static void call(const struct rows *rows, const struct gpu *gpu, lampreyWorkspace_t workspace) {
    const struct lampreyFusedArgs args = {
        .size = sizeof args,
        .tokens = rows->tokens,
        .hidden = rows->hidden,
        .type = ncclBfloat16,
        .in = (const void *)rows->in,
        .residual_in = (const void *)rows->residual,
        .residual_out = (void *)rows->residual, /* in place */
        .gamma = (const void *)rows->gamma,
        .gamma_type = ncclBfloat16,
        .epsilon = EPSILON,
        .norm_out = (void *)rows->norm,
        .quantize = lampreyQuantizeFp8PerToken,
        .quant_out = (void *)rows->codes,
        .scale_out = (void *)rows->scales,
        .workspace = workspace,
    };
    check_lamprey(lamprey.all_reduce(&args, workspace != NULL ? NULL : gpu->comm,
                                     (cudaStream_t)gpu->stream),
                  "lampreyAllReduceFused");
}

static int64_t compare(struct rows *rows, CUdeviceptr device, const unsigned char *expected,
                       size_t bytes, const char *what, CUstream stream) {
    int64_t wrong = 0;
    CU(cuMemcpyDtoHAsync(rows->host_got, device, bytes, stream));
    CU(cuStreamSynchronize(stream));
    for (size_t i = 0; i < bytes; i++) {
        if (rows->host_got[i] != expected[i] && wrong++ == 0) {
            fprintf(stderr, "%s: byte %zu is 0x%02x, not 0x%02x\n", what, i, rows->host_got[i],
                    expected[i]);
        }
    }
    return wrong;
}

static int64_t check(struct rows *rows, CUstream stream) {
    return compare(rows, rows->residual, rows->host_residual, rows->bytes, "residual", stream) +
           compare(rows, rows->norm, rows->host_norm, rows->bytes, "norm", stream) +
           compare(rows, rows->codes, rows->host_codes, rows->bytes / 2, "codes", stream) +
           compare(rows, rows->scales, rows->host_scales, rows->tokens * sizeof(float), "scales",
                   stream);
}

static int body(struct program_rank *self) {
    const struct settings *settings = self->argument;
    struct gpu gpu;
    struct rows rows;
    CUgraph graph = NULL;
    CUgraphExec instance = NULL;
    int64_t wrong[2] = {0, 0};
    gpu_open(self, &gpu);
    find_lamprey();
    lampreyWorkspace_t workspace = settings->workspace ? open_workspace(self, &gpu) : NULL;
    open_rows(&rows, settings, self->nranks);
    for (uint64_t round = 0; round < settings->rounds; round++) {
        fill(&rows, 2 * round + 1, self->rank, self->nranks, gpu.stream);
        call(&rows, &gpu, workspace);
        wrong[0] += check(&rows, gpu.stream);

        fill(&rows, 2 * round + 2, self->rank, self->nranks, gpu.stream);
        if (round == 0) {
            CU(cuStreamBeginCapture(gpu.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
            call(&rows, &gpu, workspace);
            CU(cuStreamEndCapture(gpu.stream, &graph));
            CU(cuGraphInstantiate(&instance, graph, 0));
        }
        CU(cuGraphLaunch(instance, gpu.stream));
        wrong[1] += check(&rows, gpu.stream);

        gpu_upload(rows.in, rows.host_got, settings->hidden, round, self->rank, self->nranks,
                   gpu.stream);
        NCCL(ncclAllReduce((const void *)rows.in, (void *)rows.norm, settings->hidden, ncclBfloat16,
                           ncclSum, gpu.comm, (cudaStream_t)gpu.stream));
        wrong[0] += (int64_t)gpu_check(rows.norm, rows.host_got, settings->hidden, round,
                                       self->nranks, gpu.stream, "plain");
    }
    CU(cuGraphExecDestroy(instance));
    CU(cuGraphDestroy(graph));
    close_rows(&rows, self->nranks);
    check_lamprey(lamprey.destroy(workspace), "lampreyWorkspaceDestroy");
    gpu_close(&gpu);
    int64_t all[2] = {program_sum(self, wrong[0]), program_sum(self, wrong[1])};
    if (self->rank == 0) {
        static const char *const modes[] = {"eager", "graph"};
        for (int mode = 0; mode < 2; mode++) {
            printf("fused\t%s\t%s\t%d ranks\t%zu x %zu of bf16\t%lld calls\t%lld wrong\n", modes[mode],
                   workspace != NULL ? "workspace" : "communicator", self->nranks, settings->tokens, settings->hidden, (long long)settings->rounds,
                   (long long)all[mode]);
        }
    }
    return all[0] + all[1] != 0;
}

int main(int argc, char **argv) {
    struct settings settings = {
        .tokens = (size_t)program_option(argc, argv, "tokens", 4),
        .hidden = (size_t)program_option(argc, argv, "hidden", 4096),
        .rounds = (uint64_t)program_option(argc, argv, "rounds", 10),
        .workspace = program_flag(argc, argv, "workspace"),
    };
    int nranks = (int)program_option(argc, argv, "ranks", 2);
    int deadline_s = (int)program_option(argc, argv, "deadline", 60);
    program_options_end(argc, argv);
    if (settings.tokens == 0 || settings.hidden == 0 || settings.rounds == 0) {
        program_fail("--tokens, --hidden and --rounds must be at least 1");
    }
    return program_processes(nranks, deadline_s, body, &settings);
}
