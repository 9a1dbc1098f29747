// SPDX-License-Identifier: Apache-2.0
// Two ranks in one process, each on a GPU of its own where there are two, and the product's kernels
// over the driver API, without the library around them.
#ifndef LAMPREY_TESTS_GPU_GPU_PAIR_H
#define LAMPREY_TESTS_GPU_GPU_PAIR_H

#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/instances.h"
#include "kernels/plan.h"
#include "tests/gpu/kernels.h"

extern "C" const unsigned char lamprey_fatbin[];

namespace lamprey_gpu {

// A kernel may be waiting for one that never comes, so nothing is torn down.
[[noreturn]] inline void leave()
{
    fflush(stdout);
    fflush(stderr);
    _exit(1);
}

#define CHECK_CU(call)                                                                             \
    do {                                                                                           \
        CUresult result_ = (call);                                                                 \
        if (result_ != CUDA_SUCCESS) {                                                             \
            const char *name_ = "unknown error";                                                   \
            cuGetErrorName(result_, &name_);                                                       \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, name_);                  \
            lamprey_gpu::leave();                                                                  \
        }                                                                                          \
    } while (0)

constexpr int kRanks = 2;

// Whether a kernel may start before the one before it on the stream has ended, and whether it lets
// the next one do so early: LAMPREY_PDL.
enum class Pdl { off, wait, signal };

struct Gpu {
    CUdevice device;
    CUcontext context;
    CUdeviceptr staging;
    CUdeviceptr lanes;
    CUdeviceptr alarm;
    CUstream stream; // for memory
};

struct AllReduce {
    lamprey_algorithm algorithm;
    lamprey_element element;
    uint64_t count;
    CUdeviceptr send;
    CUdeviceptr recv;
    uint32_t lanes;
    Pdl pdl;
};

inline uint64_t bytes_of(lamprey_element element, uint64_t count)
{
    return count * lamprey_element_bytes(element);
}

// Of a message.
inline uint64_t vectors_of(uint64_t bytes)
{
    return lamprey_divide_up(bytes, LAMPREY_VECTOR_BYTES);
}

// parameters: the kernel's one parameter.
inline void launch(CUkernel kernel, uint32_t ctas, uint32_t threads, CUstream stream, bool overlap,
                   void *parameters)
{
    void *arguments[] = {parameters};
    CUlaunchAttribute attribute = {};
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    CUlaunchConfig config = {};
    config.gridDimX = ctas;
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
    config.blockDimX = threads;
    config.hStream = stream;
    config.attrs = &attribute;
    config.numAttrs = overlap ? 1 : 0;
    CHECK_CU(cuLaunchKernelEx(&config, (CUfunction)kernel, arguments, nullptr));
}

// Everything that could wait for idle GPUs is done before the first kernel that waits for its peer:
// memory, the loading of code.
class GpuPair {
  public:
    // Ends the program with 77 where there is no GPU with programmatic dependent launch. On a
    // machine with one GPU both ranks are its.
    GpuPair(uint32_t lanes, uint32_t slot_cells)
        : lanes_(lanes), most_slot_cells_(slot_cells), slot_cells_{slot_cells, slot_cells}
    {
        int devices = 0;
        setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
        setenv("CUDA_MODULE_LOADING", "EAGER", 1);
        if (cuInit(0) != CUDA_SUCCESS || cuDeviceGetCount(&devices) != CUDA_SUCCESS ||
            devices == 0) {
            fprintf(stderr, "skipped: needs a GPU\n");
            exit(77);
        }
        for (int rank = 0; rank < kRanks; rank++) {
            int major = 0;
            CHECK_CU(cuDeviceGet(&gpus_[rank].device, rank % devices));
            CHECK_CU(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                                          gpus_[rank].device));
            if (major < 9) {
                fprintf(stderr, "skipped: GPU %d has no programmatic dependent launch\n", rank);
                exit(77);
            }
            CHECK_CU(cuDevicePrimaryCtxRetain(&gpus_[rank].context, gpus_[rank].device));
        }
        CHECK_CU(
            cuLibraryLoadData(&product_, lamprey_fatbin, nullptr, nullptr, 0, nullptr, nullptr, 0));
        CHECK_CU(cuLibraryLoadData(&tests_, lamprey_gpu_tests_fatbin, nullptr, nullptr, 0, nullptr,
                                   nullptr, 0));
        use(0);
        CHECK_CU(cuMemHostAlloc((void **)&alarm_, 4096,
                                CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP));
        memset(alarm_, 0, 4096);
        for (int rank = 0; rank < kRanks; rank++) {
            open(rank);
        }
    }

    // Makes it the calling thread's.
    void use(int rank) const
    {
        CHECK_CU(cuCtxSetCurrent(gpus_[rank].context));
    }

    // Do both ranks have the machine's only GPU? Then the CTAs of both must fit on it, and of two
    // calls each where one starts early.
    bool shared() const
    {
        return gpus_[0].context == gpus_[1].context;
    }

    const Gpu &gpu(int rank) const
    {
        return gpus_[rank];
    }

    // Of any library, for both ranks.
    CUkernel load(CUlibrary library, const char *name) const
    {
        CUkernel kernel = nullptr;
        CHECK_CU(cuLibraryGetKernel(&kernel, library, name));
        for (int rank = 0; rank < kRanks; rank++) {
            CUfunction function = nullptr;
            use(rank);
            CHECK_CU(cuKernelGetFunction(&function, kernel));
            CHECK_CU(cuFuncLoad(function));
        }
        return kernel;
    }

    // One of kernels.cu.
    CUkernel test_kernel(const char *name) const
    {
        return load(tests_, name);
    }

    void load_all_reduce(lamprey_algorithm algorithm, lamprey_element element)
    {
        const int index = lamprey_kernel_of(algorithm, element, LAMPREY_SUM, kRanks);
        kernels_[index] = load(product_, lamprey_kernel_name(index));
    }

    // As a new communicator has it; no all-reduce of either rank may be under way. slot_cells: at
    // most the constructor's, and the same for both ranks.
    void reset(int rank, uint32_t slot_cells)
    {
        const Gpu &gpu = gpus_[rank];
        slot_cells_[rank] = slot_cells;
        use(rank);
        // Not the context: where the ranks share it, the other may be capturing.
        CHECK_CU(cuMemsetD8Async(gpu.staging, 0xff, lamprey_staging_bytes(lanes_, most_slot_cells_),
                                 gpu.stream));
        CHECK_CU(cuMemsetD8Async(gpu.lanes, 0, lanes_ * sizeof(lamprey_lane), gpu.stream));
        CHECK_CU(cuStreamSynchronize(gpu.stream));
    }

    // A sum; its kernel must have been loaded. On the calling thread's GPU, which must be rank's.
    void all_reduce(int rank, const AllReduce &call, CUstream stream) const
    {
        const uint64_t bytes = bytes_of(call.element, call.count);
        const uint64_t vectors = vectors_of(bytes);
        const int index = lamprey_kernel_of(call.algorithm, call.element, LAMPREY_SUM, kRanks);
        const uint32_t slot_cells = slot_cells_[rank];
        const uint32_t row_vectors = lamprey_row_vectors(
            call.algorithm, kRanks, slot_cells, lamprey_element_vector_cells(call.element));
        const lamprey_plan plan =
            lamprey_plan_of(call.algorithm, vectors, kRanks, call.lanes, row_vectors);
        lamprey_all_reduce_params params = {};
        params.send = (const void *)call.send;
        params.recv = (void *)call.recv;
        params.lanes = (lamprey_lane *)gpus_[rank].lanes;
        params.alarm = (uint32_t *)gpus_[rank].alarm;
        params.rank = (uint32_t)rank;
        params.op = LAMPREY_SUM;
        params.flags = lamprey_message_flags(&plan, params.send, params.recv, bytes) |
                       (call.pdl == Pdl::signal ? LAMPREY_FLAG_SIGNAL : 0);
        lamprey_plan_params(&plan, kRanks, slot_cells, call.count, vectors, &params);
        for (int peer = 0; peer < kRanks; peer++) {
            params.staging[peer] = (unsigned char *)gpus_[peer].staging;
        }
        launch(kernels_[index], plan.ctas, plan.threads, stream, call.pdl != Pdl::off, &params);
    }

    // In host memory: non-zero makes all all-reduces leave.
    uint32_t *abort_word() const
    {
        return alarm_ + LAMPREY_ALARM_ABORT;
    }

  private:
    void open(int rank)
    {
        Gpu &gpu = gpus_[rank];
        use(rank);
        if (gpu.context != gpus_[1 - rank].context) {
            CHECK_CU(cuCtxEnablePeerAccess(gpus_[1 - rank].context, 0));
        }
        CHECK_CU(cuMemAlloc(&gpu.staging, lamprey_staging_bytes(lanes_, most_slot_cells_)));
        CHECK_CU(cuMemAlloc(&gpu.lanes, lanes_ * sizeof(lamprey_lane)));
        CHECK_CU(cuMemHostGetDevicePointer(&gpu.alarm, alarm_, 0));
        CHECK_CU(cuStreamCreate(&gpu.stream, CU_STREAM_NON_BLOCKING));
        reset(rank, most_slot_cells_);
    }

    const uint32_t lanes_;
    const uint32_t most_slot_cells_;
    uint32_t slot_cells_[kRanks];
    Gpu gpus_[kRanks] = {};
    CUlibrary product_ = nullptr;
    CUlibrary tests_ = nullptr;
    CUkernel kernels_[LAMPREY_KERNEL_COUNT] = {};
    uint32_t *alarm_ = nullptr;
};

} // namespace lamprey_gpu

#endif
