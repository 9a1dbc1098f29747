// SPDX-License-Identifier: Apache-2.0
// Ranks that launch the kernels over the driver API, without the library around them: on GPUs where
// there are some (several ranks share one), else in the emulator.
#ifndef LAMPREY_TESTS_KERNEL_WORLD_H
#define LAMPREY_TESTS_KERNEL_WORLD_H

#include <cuda.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <set>
#include <vector>

#include "kernels/instances.h"
#include "kernels/plan.h"
#include "tests/reference.h"

extern "C" const unsigned char lamprey_fatbin[];

namespace lamprey_test {

#define CHECK_CU(call)                                                                             \
    do {                                                                                           \
        CUresult result_ = (call);                                                                 \
        const char *name_ = "";                                                                    \
        if (result_ != CUDA_SUCCESS) {                                                             \
            cuGetErrorName(result_, &name_);                                                       \
            FAIL() << #call << ": " << name_;                                                      \
        }                                                                                          \
    } while (0)

constexpr uint32_t kLanes = 6;
constexpr uint32_t kAlarmStride = 8; // words
constexpr uint64_t kMaxBytes = 1 << 18;
constexpr uint64_t kSlack = 128; // room for misaligned buffers, and for guard bytes behind them

struct Rank {
    CUdevice device;
    CUcontext context;
    CUstream stream;
    CUdeviceptr staging;
    CUdeviceptr lanes;
    CUdeviceptr send;
    CUdeviceptr recv;
};

struct Call {
    element_type type;
    uint64_t count;
    lamprey_algorithm algorithm = LAMPREY_ONE_SHOT;
    lamprey_reference_op op = LAMPREY_REFERENCE_SUM;
    uint64_t send_offset = 0; // elements
    uint64_t recv_offset = 0;
    bool in_place = false;
    uint32_t lanes = kLanes;
    uint32_t flags = 0;
};

inline lamprey_element element_of(element_type type)
{
    switch (type) {
    case LAMPREY_REFERENCE_I8:
    case LAMPREY_REFERENCE_U8:
        return LAMPREY_I8;
    case LAMPREY_REFERENCE_I32:
    case LAMPREY_REFERENCE_U32:
        return LAMPREY_I32;
    case LAMPREY_REFERENCE_I64:
    case LAMPREY_REFERENCE_U64:
        return LAMPREY_I64;
    default:
        return (lamprey_element)type; // in the same order
    }
}

inline bool is_signed(element_type type)
{
    return type == LAMPREY_REFERENCE_I8 || type == LAMPREY_REFERENCE_I32 ||
           type == LAMPREY_REFERENCE_I64;
}

class KernelWorld : public ::testing::Test {
  protected:
    void SetUp() override
    {
        int count = 0;
        // Ranks that share a GPU must not share a queue.
        setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
        if (cuInit(0) != CUDA_SUCCESS || cuDeviceGetCount(&count) != CUDA_SUCCESS || count == 0) {
            GTEST_SKIP() << "no GPU and no emulator";
        }
        devices_ = count;
    }

    void TearDown() override
    {
        close();
    }

    // slot_cells: 0 for few, so that messages take several rounds.
    void open(uint32_t nranks, uint32_t slot_cells = 0)
    {
        close();
        slot_cells_ = slot_cells ? slot_cells : 64 * nranks;
        ranks_.resize(nranks);
        for (uint32_t r = 0; r < nranks; r++) {
            open_rank(ranks_[r], (int)r % devices_);
        }
        for (Rank &rank : ranks_) {
            for (Rank &peer : ranks_) {
                if (rank.device != peer.device) {
                    CHECK_CU(cuCtxSetCurrent(rank.context));
                    CUresult result = cuCtxEnablePeerAccess(peer.context, 0);
                    ASSERT_TRUE(result == CUDA_SUCCESS ||
                                result == CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
                }
            }
        }
        // Loading takes longer than most tests.
        if (!library()) {
            CHECK_CU(cuLibraryLoadData(&library(), lamprey_fatbin, nullptr, nullptr, 0, nullptr,
                                       nullptr, 0));
        }
        for (const Rank &rank : ranks_) {
            static std::set<CUcontext> loaded;
            if (!loaded.insert(rank.context).second) {
                continue;
            }
            CHECK_CU(cuCtxSetCurrent(rank.context));
            CUfunction function = nullptr;
            for (int i = 0; i < LAMPREY_KERNEL_COUNT; i++) {
                load(library(), lamprey_kernel_name(i), function);
                if (const char *fused = lamprey_fused_kernel_name(i)) {
                    load(library(), fused, function);
                }
            }
        }
        CHECK_CU(cuMemHostAlloc((void **)&alarms_, 4096,
                                CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP));
        memset(alarms_, 0, 4096);
        timeout_ms_ = 0;
    }

    void open_rank(Rank &rank, int ordinal)
    {
        const uint64_t staging = lamprey_staging_bytes(kLanes, slot_cells_);
        CHECK_CU(cuDeviceGet(&rank.device, ordinal));
        CHECK_CU(cuDevicePrimaryCtxRetain(&rank.context, rank.device));
        CHECK_CU(cuCtxSetCurrent(rank.context));
        CHECK_CU(cuStreamCreate(&rank.stream, CU_STREAM_NON_BLOCKING));
        CHECK_CU(cuMemAlloc(&rank.staging, staging));
        CHECK_CU(cuMemAlloc(&rank.lanes, kLanes * sizeof(lamprey_lane)));
        CHECK_CU(cuMemAlloc(&rank.send, kMaxBytes + kSlack));
        CHECK_CU(cuMemAlloc(&rank.recv, kMaxBytes + kSlack));
        CHECK_CU(cuMemsetD8(rank.staging, 0xff, staging));
        CHECK_CU(cuMemsetD8(rank.lanes, 0, kLanes * sizeof(lamprey_lane)));
        CHECK_CU(cuCtxSynchronize());
    }

    void close()
    {
        for (Rank &rank : ranks_) {
            cuCtxSetCurrent(rank.context);
            cuStreamSynchronize(rank.stream);
            cuStreamDestroy(rank.stream);
            cuMemFree(rank.staging);
            cuMemFree(rank.lanes);
            cuMemFree(rank.send);
            cuMemFree(rank.recv);
        }
        if (alarms_) {
            cuMemFreeHost(alarms_);
            alarms_ = nullptr;
        }
        ranks_.clear();
    }

    // Into the current context, before anything spins there: a lazy load may wait for an idle GPU.
    static void load(CUlibrary library, const char *name, CUfunction &function)
    {
        CUkernel kernel = nullptr;
        CHECK_CU(cuLibraryGetKernel(&kernel, library, name));
        CHECK_CU(cuKernelGetFunction(&function, kernel));
        CHECK_CU(cuFuncLoad(function));
    }

    // Contexts and kernels stay until the process ends.
    static CUlibrary &library()
    {
        static CUlibrary loaded = nullptr;
        return loaded;
    }

    uint32_t &alarm(uint32_t rank, int which)
    {
        return alarms_[rank * kAlarmStride + which];
    }

    uint32_t row_vectors(const Call &call) const
    {
        return lamprey_row_vectors(call.algorithm, (uint32_t)ranks_.size(), slot_cells_,
                                   lamprey_element_vector_cells(element_of(call.type)));
    }

    static uint64_t vectors_of(const Call &call)
    {
        return lamprey_divide_up(call.count * bytes_of(call.type), LAMPREY_VECTOR_BYTES);
    }

    lamprey_plan plan_of(const Call &call) const
    {
        return lamprey_plan_of(call.algorithm, vectors_of(call), (uint32_t)ranks_.size(),
                               call.lanes, row_vectors(call));
    }

    void fill(uint32_t r, const Call &call, lamprey_all_reduce_params &params)
    {
        Rank &rank = ranks_[r];
        const uint32_t nranks = (uint32_t)ranks_.size();
        const uint64_t element = bytes_of(call.type);
        const lamprey_plan plan = plan_of(call);
        params = {};
        params.send = (void *)(rank.send + call.send_offset * element);
        params.recv =
            call.in_place ? (void *)params.send : (void *)(rank.recv + call.recv_offset * element);
        params.lanes = (lamprey_lane *)rank.lanes;
        CUdeviceptr abort = 0;
        CHECK_CU(cuCtxSetCurrent(rank.context));
        CHECK_CU(cuMemHostGetDevicePointer(&abort, alarms_, 0));
        params.alarm = (uint32_t *)abort + r * kAlarmStride;
        params.rank = r;
        params.op = (uint32_t)call.op; // in the same order
        params.timeout_ms = timeout_ms_;
        params.flags =
            call.flags |
            lamprey_message_flags(&plan, params.send, params.recv, call.count * element) |
            (is_signed(call.type) ? LAMPREY_FLAG_SIGNED : 0);
        lamprey_plan_params(&plan, nranks, slot_cells_, call.count, vectors_of(call), &params);
        for (uint32_t peer = 0; peer < nranks; peer++) {
            params.staging[peer] = (unsigned char *)ranks_[peer].staging;
        }
    }

    void launch(uint32_t r, const Call &call)
    {
        lamprey_all_reduce_params params;
        const lamprey_plan plan = plan_of(call);
        fill(r, call, params);
        const int index = lamprey_kernel_of(call.algorithm, element_of(call.type),
                                            (lamprey_operator)call.op, (uint32_t)ranks_.size());
        ASSERT_GE(index, 0);
        start(r, lamprey_kernel_name(index), plan.ctas, plan.threads, &params);
    }

    // Calls of one algorithm and element.
    void launch_fused(uint32_t r, const std::vector<Call> &calls)
    {
        lamprey_fused_params params = {};
        uint32_t ctas = 0;
        uint32_t threads = 0;
        ASSERT_LE(calls.size(), (size_t)LAMPREY_FUSED);
        for (const Call &call : calls) {
            const lamprey_plan plan = plan_of(call);
            lamprey_all_reduce_params &own = params.common;
            fill(r, call, own);
            params.messages[params.message_count++] = {own.send,    own.recv,         own.count,
                                                       own.vectors, own.lane_vectors, own.flags,
                                                       own.op,      plan.ctas};
            ctas = std::max(ctas, plan.ctas);
            threads = std::max(threads, plan.threads);
        }
        const int index = lamprey_fused_kernel_of(calls[0].algorithm, element_of(calls[0].type),
                                                  (uint32_t)ranks_.size());
        ASSERT_GE(index, 0);
        start(r, lamprey_fused_kernel_name(index), ctas, threads, &params);
    }

    void start(uint32_t r, const char *name, uint32_t ctas, uint32_t threads, void *params)
    {
        const Rank &rank = ranks_[r];
        CUkernel kernel = nullptr;
        CHECK_CU(cuCtxSetCurrent(rank.context));
        CHECK_CU(cuLibraryGetKernel(&kernel, library(), name));
        void *arguments[] = {params};
        CUlaunchAttribute overlap = {};
        overlap.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        overlap.value.programmaticStreamSerializationAllowed = 1;
        CUlaunchConfig config = {};
        config.gridDimX = ctas;
        config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
        config.blockDimX = threads;
        config.hStream = rank.stream;
        config.attrs = &overlap;
        config.numAttrs = 1;
        CHECK_CU(cuLaunchKernelEx(&config, (CUfunction)kernel, arguments, nullptr));
    }

    void launch_all(const Call &call)
    {
        for (uint32_t r = 0; r < ranks_.size(); r++) {
            launch(r, call);
        }
    }

    void synchronize()
    {
        for (Rank &rank : ranks_) {
            CHECK_CU(cuCtxSetCurrent(rank.context));
            CHECK_CU(cuStreamSynchronize(rank.stream));
        }
    }

    // How much of a buffer a call can touch, and guard bytes.
    static uint64_t extent(const Call &call)
    {
        return call.count * bytes_of(call.type) + kSlack;
    }

    // Fresh data for every rank, uploaded; the output and what lies around it are poisoned.
    void upload(const Call &call, data_kind kind, uint64_t seed)
    {
        const uint64_t element = bytes_of(call.type);
        inputs_.assign(ranks_.size(), {});
        for (size_t r = 0; r < ranks_.size(); r++) {
            inputs_[r] = make_data(call.type, call.count, kind, seed * 131 + r);
            CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
            CHECK_CU(cuMemsetD8Async(ranks_[r].send, 0xa5, extent(call), ranks_[r].stream));
            CHECK_CU(cuMemsetD8Async(ranks_[r].recv, 0x5a, extent(call), ranks_[r].stream));
            CHECK_CU(cuMemcpyHtoDAsync(ranks_[r].send + call.send_offset * element,
                                       inputs_[r].data(), inputs_[r].size(), ranks_[r].stream));
        }
    }

    void verify(const Call &call)
    {
        const uint64_t element = bytes_of(call.type);
        const uint64_t size = call.count * element;
        const bytes expected = all_reduce(call.type, call.op, inputs_);
        const uint64_t offset = (call.in_place ? call.send_offset : call.recv_offset) * element;
        const uint8_t poison = call.in_place ? 0xa5 : 0x5a;
        bytes whole(extent(call));
        for (size_t r = 0; r < ranks_.size(); r++) {
            CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
            CHECK_CU(cuMemcpyDtoHAsync(whole.data(),
                                       call.in_place ? ranks_[r].send : ranks_[r].recv,
                                       whole.size(), ranks_[r].stream));
            CHECK_CU(cuStreamSynchronize(ranks_[r].stream));
            ASSERT_EQ(memcmp(whole.data() + offset, expected.data(), size), 0)
                << "rank " << r << " of " << ranks_.size() << ", type " << call.type
                << ", operator " << call.op << ", algorithm " << call.algorithm << ", count "
                << call.count << ", offsets " << call.send_offset << " " << call.recv_offset
                << ", lanes " << call.lanes << ", first difference at byte "
                << first_difference(whole.data() + offset, expected.data(), size);
            for (uint64_t i = 0; i < whole.size(); i++) {
                if (i < offset || i >= offset + size) {
                    ASSERT_EQ(whole[i], poison)
                        << "byte " << i << " outside the output was written, rank " << r;
                }
            }
        }
    }

    void run(const Call &call, data_kind kind, uint64_t seed)
    {
        upload(call, kind, seed);
        synchronize();
        launch_all(call);
        synchronize();
        verify(call);
    }

    int devices_ = 0;
    uint32_t slot_cells_ = 0;
    std::vector<Rank> ranks_;
    std::vector<bytes> inputs_;
    uint32_t *alarms_ = nullptr;
    uint32_t timeout_ms_ = 0;
};

} // namespace lamprey_test

#endif
