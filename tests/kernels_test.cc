// SPDX-License-Identifier: Apache-2.0
// The kernels against a reference in plain C++, bit for bit, over the driver API: on GPUs where
// there are some (several ranks share one), else in the emulator.
#include <cuda.h>
#include <gtest/gtest.h>
#include <string.h>

#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/protocol.h"
#include "tests/reference.h"

extern "C" const unsigned char lamprey_fatbin[];

namespace {

#define CHECK_CU(call)                                                                             \
    do {                                                                                           \
        CUresult result_ = (call);                                                                 \
        const char *name_ = "";                                                                    \
        if (result_ != CUDA_SUCCESS) {                                                             \
            cuGetErrorName(result_, &name_);                                                       \
            FAIL() << #call << ": " << name_;                                                      \
        }                                                                                          \
    } while (0)

using lamprey_test::element_type;

constexpr uint32_t kLanes = 16;
constexpr uint32_t kCapacity = 256;
constexpr uint64_t kMaxBytes = (uint64_t)kLanes * kCapacity * LAMPREY_VECTOR_BYTES;
constexpr uint64_t kSlack = 64; // room for misaligned buffers, and for guard bytes behind them

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
    uint64_t send_offset = 0; // elements
    uint64_t recv_offset = 0;
    bool in_place = false;
    uint32_t lanes = kLanes;
    uint32_t flags = 0;
};

class Kernels : public ::testing::Test {
  protected:
    void SetUp() override
    {
        int count = 0;
        if (cuInit(0) != CUDA_SUCCESS || cuDeviceGetCount(&count) != CUDA_SUCCESS || count == 0) {
            GTEST_SKIP() << "no GPU and no emulator";
        }
        devices_ = count;
    }

    void TearDown() override
    {
        close();
    }

    void open(uint32_t nranks)
    {
        close();
        CHECK_CU(
            cuLibraryLoadData(&library_, lamprey_fatbin, nullptr, nullptr, 0, nullptr, nullptr, 0));
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
        CHECK_CU(cuMemHostAlloc((void **)&abort_, 4096,
                                CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP));
        __atomic_store_n(abort_, 0u, __ATOMIC_RELAXED);
    }

    void open_rank(Rank &rank, int ordinal)
    {
        const uint64_t staging = lamprey_staging_bytes((uint32_t)ranks_.size(), kLanes, kCapacity);
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
            cuDevicePrimaryCtxRelease(rank.device);
        }
        ranks_.clear();
        if (library_) {
            cuLibraryUnload(library_);
            library_ = nullptr;
        }
    }

    CUkernel kernel_of(element_type type)
    {
        static const char *const types[] = {"f16", "bf16", "f32"};
        const size_t n = ranks_.size();
        std::string name = std::string("lamprey_one_shot_") + types[(int)type] + "_" +
                           (n == 2 || n == 4 || n == 8 ? std::to_string(n) : "n");
        CUkernel kernel = nullptr;
        EXPECT_EQ(cuLibraryGetKernel(&kernel, library_, name.c_str()), CUDA_SUCCESS) << name;
        return kernel;
    }

    void launch(uint32_t r, const Call &call)
    {
        Rank &rank = ranks_[r];
        const uint64_t bytes = call.count * lamprey_test::bytes_of(call.type);
        const lamprey_grid grid = lamprey_grid_of((bytes + 15) / 16, call.lanes);
        ASSERT_LE(grid.lane_vectors, kCapacity);
        lamprey_all_reduce_params params = {};
        params.send = (void *)(rank.send + call.send_offset * lamprey_test::bytes_of(call.type));
        params.recv =
            call.in_place
                ? (void *)params.send
                : (void *)(rank.recv + call.recv_offset * lamprey_test::bytes_of(call.type));
        params.count = call.count;
        params.lanes = (lamprey_lane *)rank.lanes;
        CUdeviceptr abort = 0;
        CHECK_CU(cuCtxSetCurrent(rank.context));
        CHECK_CU(cuMemHostGetDevicePointer(&abort, abort_, 0));
        params.abort = (const uint32_t *)abort;
        params.rank = r;
        params.nranks = (uint32_t)ranks_.size();
        params.lane_vectors = grid.lane_vectors;
        params.lane_capacity = kCapacity;
        params.flags = call.flags;
        for (size_t peer = 0; peer < ranks_.size(); peer++) {
            params.staging[peer] = (unsigned char *)ranks_[peer].staging;
        }
        void *arguments[] = {&params};
        CUlaunchAttribute overlap = {};
        overlap.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        overlap.value.programmaticStreamSerializationAllowed = 1;
        CUlaunchConfig config = {};
        config.gridDimX = grid.ctas;
        config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
        config.blockDimX = grid.threads;
        config.hStream = rank.stream;
        config.attrs = &overlap;
        config.numAttrs = 1;
        CHECK_CU(cuLaunchKernelEx(&config, (CUfunction)kernel_of(call.type), arguments, nullptr));
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

    // Fresh data for every rank, uploaded; all of the output and what lies around it is poisoned.
    void upload(const Call &call, lamprey_test::data_kind kind, uint64_t seed)
    {
        const uint64_t element = lamprey_test::bytes_of(call.type);
        inputs_.assign(ranks_.size(), {});
        for (size_t r = 0; r < ranks_.size(); r++) {
            inputs_[r] = lamprey_test::make_data(call.type, call.count, kind, seed * 131 + r);
            CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
            CHECK_CU(cuMemsetD8Async(ranks_[r].send, 0xa5, kMaxBytes + kSlack, ranks_[r].stream));
            CHECK_CU(cuMemsetD8Async(ranks_[r].recv, 0x5a, kMaxBytes + kSlack, ranks_[r].stream));
            CHECK_CU(cuMemcpyHtoDAsync(ranks_[r].send + call.send_offset * element,
                                       inputs_[r].data(), inputs_[r].size(), ranks_[r].stream));
        }
    }

    void verify(const Call &call)
    {
        const uint64_t element = lamprey_test::bytes_of(call.type);
        const uint64_t bytes = call.count * element;
        const std::vector<uint8_t> expected = lamprey_test::all_reduce_sum(call.type, inputs_);
        const uint64_t offset = (call.in_place ? call.send_offset : call.recv_offset) * element;
        const uint8_t poison = call.in_place ? 0xa5 : 0x5a;
        std::vector<uint8_t> whole(kMaxBytes + kSlack);
        for (size_t r = 0; r < ranks_.size(); r++) {
            CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
            CHECK_CU(cuMemcpyDtoHAsync(whole.data(),
                                       call.in_place ? ranks_[r].send : ranks_[r].recv,
                                       whole.size(), ranks_[r].stream));
            CHECK_CU(cuStreamSynchronize(ranks_[r].stream));
            ASSERT_EQ(memcmp(whole.data() + offset, expected.data(), bytes), 0)
                << "rank " << r << " of " << ranks_.size() << ", type " << (int)call.type
                << ", count " << call.count << ", offsets " << call.send_offset << " "
                << call.recv_offset << ", lanes " << call.lanes << ", first difference at byte "
                << lamprey_test::first_difference(whole.data() + offset, expected.data(), bytes);
            for (uint64_t i = 0; i < whole.size(); i++) {
                if (i < offset || i >= offset + bytes) {
                    ASSERT_EQ(whole[i], poison)
                        << "byte " << i << " outside the output was written, rank " << r;
                }
            }
        }
    }

    void run(const Call &call, lamprey_test::data_kind kind, uint64_t seed)
    {
        upload(call, kind, seed);
        synchronize();
        launch_all(call);
        synchronize();
        verify(call);
    }

    int devices_ = 0;
    CUlibrary library_ = nullptr;
    std::vector<Rank> ranks_;
    std::vector<std::vector<uint8_t>> inputs_;
    uint32_t *abort_ = nullptr;
};

constexpr element_type kTypes[] = {element_type::f16, element_type::bf16, element_type::f32};

class KernelsWorld : public Kernels, public ::testing::WithParamInterface<int> {};

TEST_P(KernelsWorld, SumsEveryCountBitForBit)
{
    open((uint32_t)GetParam());
    uint64_t seed = 1;
    for (element_type type : kTypes) {
        const uint64_t most = kMaxBytes / lamprey_test::bytes_of(type);
        for (uint64_t count : {(uint64_t)1, (uint64_t)2, (uint64_t)7, (uint64_t)8, (uint64_t)9,
                               (uint64_t)255, (uint64_t)4099, (uint64_t)8192, most - 1, most}) {
            run({type, count}, lamprey_test::data_kind::numbers, seed++);
            if (HasFatalFailure()) {
                return;
            }
        }
    }
}

TEST_P(KernelsWorld, KeepsEveryBitPattern)
{
    open((uint32_t)GetParam());
    uint64_t seed = 100;
    for (element_type type : kTypes) {
        for (lamprey_test::data_kind kind :
             {lamprey_test::data_kind::any_bits, lamprey_test::data_kind::all_ones,
              lamprey_test::data_kind::specials, lamprey_test::data_kind::negative_zeros,
              lamprey_test::data_kind::subnormals}) {
            run({type, 5003}, kind, seed++);
            run({type, 5003}, kind, seed - 1); // the same data as the call before
            if (HasFatalFailure()) {
                return;
            }
        }
    }
}

TEST_P(KernelsWorld, TakesAnyAlignmentInPlaceOrNot)
{
    open((uint32_t)GetParam());
    uint64_t seed = 200;
    for (element_type type : kTypes) {
        for (uint64_t send_offset : {0, 1, 3, 8}) {
            for (uint64_t recv_offset : {0, 1, 5}) {
                for (uint64_t count : {(uint64_t)1, (uint64_t)33, (uint64_t)3001}) {
                    Call call = {type, count, send_offset, recv_offset};
                    run(call, lamprey_test::data_kind::any_bits, seed++);
                    call.in_place = true;
                    run(call, lamprey_test::data_kind::any_bits, seed++);
                    if (HasFatalFailure()) {
                        return;
                    }
                }
            }
        }
    }
}

TEST_P(KernelsWorld, GivesTheSameBitsOnAnyGrid)
{
    open((uint32_t)GetParam());
    uint64_t seed = 300;
    for (element_type type : kTypes) {
        for (uint32_t lanes : {1u, 2u, 3u, 7u, kLanes}) {
            const uint64_t most = (uint64_t)lanes * kCapacity * 16 / lamprey_test::bytes_of(type);
            for (uint64_t count : {(uint64_t)17, most / 2 + 1, most}) {
                Call call = {type, count};
                call.lanes = lanes;
                call.flags = seed % 2 ? LAMPREY_FLAG_SIGNAL : 0;
                run(call, lamprey_test::data_kind::any_bits, seed++);
                if (HasFatalFailure()) {
                    return;
                }
            }
        }
    }
}

// Rounds of all sizes without a host synchronisation between: lanes that sit out, dirty areas of
// all lengths.
TEST_P(KernelsWorld, KeepsRoundsApartBackToBack)
{
    open((uint32_t)GetParam());
    std::mt19937_64 random(42);
    for (int burst = 0; burst < 20; burst++) {
        Call last = {element_type::bf16, 1};
        for (int i = 0; i < 12; i++) {
            last.type = kTypes[random() % 3];
            last.count = 1 + random() % (kMaxBytes / 4 >> random() % 14);
            upload(last, lamprey_test::data_kind::any_bits, random());
            launch_all(last);
        }
        synchronize();
        verify(last);
        if (HasFatalFailure()) {
            return;
        }
    }
}

// A graph of calls, replayed between eager calls.
TEST_P(KernelsWorld, ReplaysAGraphAnyNumberOfTimes)
{
    open((uint32_t)GetParam());
    const Call small = {element_type::bf16, 100};
    const Call large = {element_type::f32, 6000};
    std::vector<CUgraphExec> executables(ranks_.size());
    for (uint32_t r = 0; r < ranks_.size(); r++) {
        CUgraph graph = nullptr;
        CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
        CHECK_CU(cuStreamBeginCapture(ranks_[r].stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        launch(r, small);
        launch(r, large);
        launch(r, small);
        launch(r, large);
        CHECK_CU(cuStreamEndCapture(ranks_[r].stream, &graph));
        CHECK_CU(cuGraphInstantiate(&executables[r], graph, 0));
        CHECK_CU(cuGraphDestroy(graph));
    }
    for (int round = 0; round < 30; round++) {
        upload(large, lamprey_test::data_kind::numbers, 700 + (uint64_t)round);
        for (int replay = 0; replay <= round % 3; replay++) {
            for (uint32_t r = 0; r < ranks_.size(); r++) {
                CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
                CHECK_CU(cuGraphLaunch(executables[r], ranks_[r].stream));
            }
        }
        verify(large);
        run({element_type::f16, 77u + (uint64_t)round}, lamprey_test::data_kind::any_bits,
            (uint64_t)round);
        if (HasFatalFailure()) {
            return;
        }
    }
    for (CUgraphExec executable : executables) {
        cuGraphExecDestroy(executable);
    }
}

INSTANTIATE_TEST_SUITE_P(Ranks, KernelsWorld, ::testing::Values(2, 3, 4, 5, 6, 7, 8));

// The round number passes 2^32: slots must still rotate one by one.
TEST_F(Kernels, RotatesSlotsOverTheWrap)
{
    open(2);
    for (Rank &rank : ranks_) {
        lamprey_lane lanes[kLanes] = {};
        for (lamprey_lane &lane : lanes) {
            lane.round = 0xfffffffeull;
        }
        CHECK_CU(cuCtxSetCurrent(rank.context));
        CHECK_CU(cuMemcpyHtoD(rank.lanes, lanes, sizeof lanes));
    }
    for (uint64_t i = 0; i < 8; i++) {
        run({element_type::bf16, 2000}, lamprey_test::data_kind::numbers, i);
    }
    lamprey_lane lane;
    CHECK_CU(cuCtxSetCurrent(ranks_[0].context));
    CHECK_CU(cuMemcpyDtoH(&lane, ranks_[0].lanes, sizeof lane));
    EXPECT_EQ(lane.round, 0xfffffffeull + 8);
    EXPECT_EQ(lane.slot, 8 % 3u);
}

// A lane advances only in rounds in which it moved data.
TEST_F(Kernels, LeavesIdleLanesAlone)
{
    open(2);
    run({element_type::f32, 4}, lamprey_test::data_kind::numbers, 1);
    run({element_type::f32, kMaxBytes / 4}, lamprey_test::data_kind::numbers, 2);
    run({element_type::f32, 4}, lamprey_test::data_kind::numbers, 3);
    lamprey_lane lanes[kLanes];
    CHECK_CU(cuCtxSetCurrent(ranks_[1].context));
    CHECK_CU(cuMemcpyDtoH(lanes, ranks_[1].lanes, sizeof lanes));
    EXPECT_EQ(lanes[0].round, 3u);
    EXPECT_EQ(lanes[0].dirty, 1u);
    EXPECT_EQ(lanes[kLanes - 1].round, 1u);
    EXPECT_EQ(lanes[kLanes - 1].dirty, kCapacity);
}

TEST_F(Kernels, LeavesWhenAborted)
{
    open(2);
    const Call call = {element_type::bf16, 3000};
    upload(call, lamprey_test::data_kind::numbers, 1);
    synchronize();
    launch(0, call); // its peer never comes
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    CHECK_CU(cuCtxSetCurrent(ranks_[0].context));
    EXPECT_EQ(cuStreamQuery(ranks_[0].stream), CUDA_ERROR_NOT_READY);
    const auto start = std::chrono::steady_clock::now();
    __atomic_store_n(abort_, 1u, __ATOMIC_RELEASE);
    CHECK_CU(cuStreamSynchronize(ranks_[0].stream));
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

} // namespace
