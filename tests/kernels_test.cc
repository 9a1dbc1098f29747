// SPDX-License-Identifier: Apache-2.0
// The kernels against the reference, bit for bit.
#include <chrono>
#include <random>
#include <thread>

#include "tests/kernel_world.h"

namespace {

using namespace lamprey_test;

constexpr element_type kTypes[] = {
    LAMPREY_REFERENCE_F16,  LAMPREY_REFERENCE_BF16, LAMPREY_REFERENCE_F32, LAMPREY_REFERENCE_F64,
    LAMPREY_REFERENCE_E4M3, LAMPREY_REFERENCE_E5M2, LAMPREY_REFERENCE_I8,  LAMPREY_REFERENCE_U8,
    LAMPREY_REFERENCE_I32,  LAMPREY_REFERENCE_U32,  LAMPREY_REFERENCE_I64, LAMPREY_REFERENCE_U64};
constexpr lamprey_reference_op kOps[] = {LAMPREY_REFERENCE_SUM, LAMPREY_REFERENCE_PROD,
                                         LAMPREY_REFERENCE_MIN, LAMPREY_REFERENCE_MAX,
                                         LAMPREY_REFERENCE_AVG};
constexpr lamprey_algorithm kAlgorithms[] = {LAMPREY_ONE_SHOT, LAMPREY_TWO_SHOT};
constexpr data_kind kAdversarial[] = {data_kind::any_bits, data_kind::all_ones, data_kind::specials,
                                      data_kind::negative_zeros, data_kind::subnormals};

// Sanitizers are slow.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

class Kernels : public KernelWorld, public ::testing::WithParamInterface<int> {
  protected:
    void SetUp() override
    {
        KernelWorld::SetUp();
        if (!IsSkipped() && GetParam() / devices_ > 12) {
            GTEST_SKIP() << "more ranks than a GPU can run at once";
        }
    }
    // Large worlds share few processors.
    uint64_t effort() const
    {
        return (GetParam() <= 8 ? 1 : GetParam() <= 16 ? 4 : 24) * (kSanitized ? 4 : 1);
    }
};

TEST_P(Kernels, ReduceEveryCount)
{
    open((uint32_t)GetParam());
    uint64_t seed = 1;
    for (lamprey_algorithm algorithm : kAlgorithms) {
        for (element_type type : kTypes) {
            const uint64_t most = 60000 / effort() / bytes_of(type);
            for (uint64_t count : {(uint64_t)1, (uint64_t)2, (uint64_t)7, (uint64_t)9,
                                   (uint64_t)255, most / 3, most - 1, most}) {
                run({type, count, algorithm}, data_kind::numbers, seed++);
                if (HasFatalFailure()) {
                    return;
                }
            }
        }
    }
}

TEST_P(Kernels, ApplyEveryOperatorToEveryBitPattern)
{
    open((uint32_t)GetParam());
    uint64_t seed = 100;
    for (lamprey_algorithm algorithm : kAlgorithms) {
        for (element_type type : kTypes) {
            for (lamprey_reference_op op : kOps) {
                for (data_kind kind : kAdversarial) {
                    const Call call = {type, 2003 / effort() / bytes_of(type) + 90, algorithm, op};
                    run(call, kind, seed);
                    if (op == LAMPREY_REFERENCE_SUM) {
                        run(call, kind, seed); // the same data as the call before
                    }
                    seed++;
                    if (HasFatalFailure()) {
                        return;
                    }
                }
            }
        }
    }
}

TEST_P(Kernels, TakeAnyAlignmentInPlaceOrNot)
{
    open((uint32_t)GetParam());
    uint64_t seed = 200;
    for (lamprey_algorithm algorithm : kAlgorithms) {
        for (element_type type : kTypes) {
            for (uint64_t offset : {0, 1, 3, 16}) {
                for (uint64_t count : {(uint64_t)1, (uint64_t)33, 4096 / effort() / bytes_of(type),
                                       4096 / effort() / bytes_of(type) + 1}) {
                    Call call = {type, count, algorithm, LAMPREY_REFERENCE_SUM, offset, offset / 3};
                    run(call, data_kind::any_bits, seed++);
                    call.in_place = true;
                    run(call, data_kind::any_bits, seed++);
                    if (HasFatalFailure()) {
                        return;
                    }
                }
            }
        }
    }
}

TEST_P(Kernels, GiveTheSameBitsOnAnyGrid)
{
    uint64_t seed = 300;
    for (uint32_t slot_cells : {4u * (uint32_t)GetParam(), 2048u}) {
        open((uint32_t)GetParam(), slot_cells);
        for (lamprey_algorithm algorithm : kAlgorithms) {
            for (element_type type :
                 {LAMPREY_REFERENCE_BF16, LAMPREY_REFERENCE_F64, LAMPREY_REFERENCE_I32}) {
                for (uint32_t lanes : {1u, 2u, 3u, kLanes}) {
                    for (uint64_t count : {(uint64_t)17, 20000 / effort() / bytes_of(type)}) {
                        Call call = {type, count, algorithm};
                        call.lanes = lanes;
                        call.flags = seed % 2 ? LAMPREY_FLAG_SIGNAL : 0;
                        run(call, data_kind::any_bits, seed++);
                        if (HasFatalFailure()) {
                            return;
                        }
                    }
                }
            }
        }
    }
}

// Calls of all sorts without a host synchronisation between: lanes that sit out, dirty areas of all
// layouts.
TEST_P(Kernels, KeepRoundsApartBackToBack)
{
    open((uint32_t)GetParam());
    std::mt19937_64 random(42);
    for (int burst = 0; burst < (int)(40 / effort()) + 2; burst++) {
        Call last = {LAMPREY_REFERENCE_BF16, 1};
        for (int i = 0; i < 12; i++) {
            last.type = kTypes[random() % 12];
            last.op = kOps[random() % 5];
            last.algorithm = kAlgorithms[random() % 2];
            last.lanes = 1 + (uint32_t)(random() % kLanes);
            const uint64_t most = 65536 / effort() / bytes_of(last.type);
            last.count = 1 + random() % (1 + (most >> random() % 14));
            upload(last, data_kind::any_bits, random());
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
TEST_P(Kernels, ReplayAGraphAnyNumberOfTimes)
{
    open((uint32_t)GetParam());
    const Call small = {LAMPREY_REFERENCE_BF16, 100};
    const Call large = {LAMPREY_REFERENCE_F32, 6000 / effort(), LAMPREY_TWO_SHOT};
    const Call whole = {LAMPREY_REFERENCE_I32, 3000 / effort()};
    std::vector<CUgraphExec> executables(ranks_.size());
    for (uint32_t r = 0; r < ranks_.size(); r++) {
        CUgraph graph = nullptr;
        CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
        CHECK_CU(cuStreamBeginCapture(ranks_[r].stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        for (const Call &call : {small, large, whole, small, large}) {
            launch(r, call);
        }
        CHECK_CU(cuStreamEndCapture(ranks_[r].stream, &graph));
        CHECK_CU(cuGraphInstantiate(&executables[r], graph, 0));
        CHECK_CU(cuGraphDestroy(graph));
    }
    for (int round = 0; round < (int)(30 / effort()) + 1; round++) {
        upload(large, data_kind::numbers, 700 + (uint64_t)round);
        for (int replay = 0; replay <= round % 3; replay++) {
            for (uint32_t r = 0; r < ranks_.size(); r++) {
                CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
                CHECK_CU(cuGraphLaunch(executables[r], ranks_[r].stream));
            }
        }
        verify(large);
        run({LAMPREY_REFERENCE_F16, 77u + (uint64_t)round}, data_kind::any_bits, (uint64_t)round);
        if (HasFatalFailure()) {
            return;
        }
    }
    for (CUgraphExec executable : executables) {
        cuGraphExecDestroy(executable);
    }
}

std::vector<int> worlds()
{
    return kSanitized ? std::vector<int>{2, 3, 8, 16}
                      : std::vector<int>{2, 3, 4, 5, 6, 7, 8, 12, 16, 36, 72};
}

INSTANTIATE_TEST_SUITE_P(Ranks, Kernels, ::testing::ValuesIn(worlds()));

class TwoRanks : public KernelWorld {};

// The round number passes 2^32: slots must still rotate one by one.
TEST_F(TwoRanks, RotateSlotsOverTheWrap)
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
    const Call calls[] = {{LAMPREY_REFERENCE_BF16, 200},
                          {LAMPREY_REFERENCE_I32, 100},
                          {LAMPREY_REFERENCE_F64, 60, LAMPREY_TWO_SHOT}};
    for (uint64_t i = 0; i < 9; i++) {
        run(calls[i % 3], data_kind::numbers, i);
    }
    lamprey_lane lane;
    CHECK_CU(cuCtxSetCurrent(ranks_[0].context));
    CHECK_CU(cuMemcpyDtoH(&lane, ranks_[0].lanes, sizeof lane));
    EXPECT_EQ(lane.round, 0xfffffffeull + 9);
    EXPECT_EQ(lane.slot, 9 % 3u);
}

// A lane advances only in rounds in which it moved data.
TEST_F(TwoRanks, LeaveIdleLanesAlone)
{
    open(2);
    const Call small = {LAMPREY_REFERENCE_F32, 4};
    // Fills every lane, in one round.
    const uint64_t round = (uint64_t)kLanes * row_vectors(small) * 4;
    run(small, data_kind::numbers, 1);
    run({LAMPREY_REFERENCE_F32, round}, data_kind::numbers, 2);
    run({LAMPREY_REFERENCE_F32, 4, LAMPREY_TWO_SHOT}, data_kind::numbers, 3);
    lamprey_lane lanes[kLanes];
    CHECK_CU(cuCtxSetCurrent(ranks_[1].context));
    CHECK_CU(cuMemcpyDtoH(lanes, ranks_[1].lanes, sizeof lanes));
    EXPECT_EQ(lanes[0].round, 3u);
    EXPECT_EQ(lanes[0].dirty, 1u | LAMPREY_DIRTY_TWO_SHOT);
    EXPECT_EQ(lanes[kLanes - 1].round, 1u);
    EXPECT_EQ(lanes[kLanes - 1].dirty, row_vectors(small));
}

// In the last round of a message there may be no data left for some lanes.
TEST_F(TwoRanks, LeaveLanesAloneThatHaveNoDataLeft)
{
    open(2, 8);
    const Call call = {LAMPREY_REFERENCE_F32, 25 * 4}; // vectors: 6 lanes of 3, then 3, 3 and 1
    run(call, data_kind::numbers, 1);
    lamprey_lane lanes[kLanes];
    CHECK_CU(cuCtxSetCurrent(ranks_[1].context));
    CHECK_CU(cuMemcpyDtoH(lanes, ranks_[1].lanes, sizeof lanes));
    for (uint32_t lane = 0; lane < kLanes; lane++) {
        const uint32_t rounds = lane < 3 ? 2 : 1;
        EXPECT_EQ(lanes[lane].round, rounds) << "lane " << lane;
        EXPECT_EQ(lanes[lane].slot, rounds) << "lane " << lane;
        EXPECT_EQ(lanes[lane].dirty, 3u) << "lane " << lane;
    }
    run(call, data_kind::numbers, 2);
}

TEST_F(TwoRanks, LeaveWhenAborted)
{
    for (lamprey_algorithm algorithm : kAlgorithms) {
        open(2);
        const Call call = {LAMPREY_REFERENCE_BF16, 30000, algorithm}; // of several rounds
        upload(call, data_kind::numbers, 1);
        synchronize();
        launch(0, call); // its peer never comes
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        CHECK_CU(cuCtxSetCurrent(ranks_[0].context));
        EXPECT_EQ(cuStreamQuery(ranks_[0].stream), CUDA_ERROR_NOT_READY);
        const auto start = std::chrono::steady_clock::now();
        __atomic_store_n(&alarm(0, LAMPREY_ALARM_ABORT), 1u, __ATOMIC_RELEASE);
        CHECK_CU(cuStreamSynchronize(ranks_[0].stream));
        EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
    }
}

// Of the peers that did come the data is there; the kernel leaves all the same, and says so.
TEST_F(TwoRanks, LeaveWhenTimeIsUp)
{
    for (uint32_t nranks : {2u, 3u}) {
        open(nranks);
        const Call call = {LAMPREY_REFERENCE_BF16, 3000};
        run(call, data_kind::numbers, 1);
        EXPECT_EQ(alarm(1, LAMPREY_ALARM_TIMED_OUT), 0u);
        timeout_ms_ = 200;
        upload(call, data_kind::numbers, 2);
        synchronize();
        const auto start = std::chrono::steady_clock::now();
        for (uint32_t r = 1; r < nranks; r++) { // rank 0 never comes
            launch(r, call);
        }
        synchronize();
        const auto waited = std::chrono::steady_clock::now() - start;
        EXPECT_GE(waited, std::chrono::milliseconds(200));
        EXPECT_LT(waited, std::chrono::seconds(60));
        EXPECT_EQ(__atomic_load_n(&alarm(1, LAMPREY_ALARM_TIMED_OUT), __ATOMIC_ACQUIRE), 1u);
        EXPECT_EQ(alarm(1, LAMPREY_ALARM_ABORT), 0u);
    }
}

// A rank that left a call sends nothing any more: its peer, coming late, must not take the data of
// a later call for that of an earlier one.
TEST_F(TwoRanks, SendNothingAfterACallWasLeft)
{
    for (lamprey_algorithm algorithm : kAlgorithms) {
        for (uint64_t count : {(uint64_t)300, (uint64_t)9000}) { // one round; many
            open(2);
            Call calls[5] = {};
            for (uint64_t i = 0; i < 5; i++) {
                calls[i] = {LAMPREY_REFERENCE_BF16, count, algorithm};
                calls[i].send_offset = calls[i].recv_offset = i * 10000;
            }
            const Call all = {LAMPREY_REFERENCE_BF16, 50000};
            upload(all, data_kind::numbers, 1);
            synchronize();
            for (const Call &call : calls) {
                launch(0, call);
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            __atomic_store_n(&alarm(0, LAMPREY_ALARM_ABORT), 1u, __ATOMIC_RELEASE);
            CHECK_CU(cuCtxSetCurrent(ranks_[0].context));
            CHECK_CU(cuStreamSynchronize(ranks_[0].stream));
            timeout_ms_ = 100;
            for (const Call &call : calls) {
                launch(1, call);
            }
            CHECK_CU(cuCtxSetCurrent(ranks_[1].context));
            CHECK_CU(cuStreamSynchronize(ranks_[1].stream));
            EXPECT_EQ(alarm(1, LAMPREY_ALARM_TIMED_OUT), 1u);
            const bytes expected = lamprey_test::all_reduce_sum(all.type, inputs_);
            bytes got(expected.size());
            CHECK_CU(cuMemcpyDtoH(got.data(), ranks_[1].recv, got.size()));
            for (size_t i = 0; i < got.size(); i += 2) {
                const bool poison = got[i] == 0x5a && got[i + 1] == 0x5a;
                const bool right = got[i] == expected[i] && got[i + 1] == expected[i + 1];
                ASSERT_TRUE(poison || right)
                    << "element " << i / 2 << ", algorithm " << algorithm << ", count " << count;
            }
        }
    }
}

} // namespace
