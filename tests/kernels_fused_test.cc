// SPDX-License-Identifier: Apache-2.0
// Fused launches: the same bits and lane states as the separate calls, whatever each rank puts
// together.
#include <random>

#include "tests/kernel_world.h"

namespace {

using namespace lamprey_test;

constexpr element_type kTypes[] = {
    LAMPREY_REFERENCE_F16,  LAMPREY_REFERENCE_BF16, LAMPREY_REFERENCE_F32, LAMPREY_REFERENCE_F64,
    LAMPREY_REFERENCE_E4M3, LAMPREY_REFERENCE_I8,   LAMPREY_REFERENCE_U8,  LAMPREY_REFERENCE_I32,
    LAMPREY_REFERENCE_U32,  LAMPREY_REFERENCE_I64};
constexpr size_t kCalls = 40;
constexpr uint64_t kRegion = kMaxBytes / kCalls / 16 * 16; // of each call in the buffers

class FusedKernels : public KernelWorld, public ::testing::WithParamInterface<int> {
  protected:
    // One after the other, of random sizes, types and operators; several in a row can be fused.
    static std::vector<Call> any_calls(std::mt19937_64 &random)
    {
        std::vector<Call> calls;
        while (calls.size() < kCalls) {
            Call call = {kTypes[random() % 10], 1};
            call.algorithm = random() % 2 ? LAMPREY_TWO_SHOT : LAMPREY_ONE_SHOT;
            for (size_t row = random() % 20; calls.size() < kCalls; row--) {
                const uint64_t element = bytes_of(call.type);
                const uint64_t shift = random() % 4;
                call.count = 1 + random() % ((kRegion / element - shift) >> random() % 10);
                call.op = (lamprey_reference_op)(random() % 5);
                call.send_offset = (calls.size() * kRegion) / element + shift;
                call.recv_offset = (calls.size() * kRegion) / element + random() % (shift + 1);
                call.in_place = random() % 3 == 0;
                call.lanes = 1 + (uint32_t)(random() % kLanes);
                calls.push_back(call);
                if (row == 0) {
                    break;
                }
            }
        }
        return calls;
    }

    static bool can_join(const Call &a, const Call &b)
    {
        return a.algorithm == b.algorithm && element_of(a.type) == element_of(b.type);
    }

    // Rank 0 fuses nothing, rank 1 all it can, the others something between.
    void launch_all_of(uint32_t r, const std::vector<Call> &calls, std::mt19937_64 &random)
    {
        for (size_t i = 0; i < calls.size();) {
            std::vector<Call> batch = {calls[i++]};
            while (r > 0 && i < calls.size() && can_join(batch[0], calls[i]) &&
                   batch.size() < LAMPREY_FUSED && (r == 1 || random() % 3)) {
                batch.push_back(calls[i++]);
            }
            if (batch.size() == 1) {
                launch(r, batch[0]);
            } else {
                launch_fused(r, batch);
            }
        }
    }

    // Random bytes in every rank's send buffer.
    void upload_bytes(uint64_t seed)
    {
        inputs_.assign(ranks_.size(), {});
        for (size_t r = 0; r < ranks_.size(); r++) {
            inputs_[r] = make_data(LAMPREY_REFERENCE_U8, kMaxBytes + kSlack, data_kind::any_bits,
                                   seed * 131 + r);
            CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
            CHECK_CU(cuMemcpyHtoDAsync(ranks_[r].send, inputs_[r].data(), inputs_[r].size(),
                                       ranks_[r].stream));
            CHECK_CU(cuMemsetD8Async(ranks_[r].recv, 0x5a, kMaxBytes + kSlack, ranks_[r].stream));
        }
    }

    // Both buffers of a rank as they must be when the calls are done.
    std::vector<bytes> expected_of(size_t r, const std::vector<Call> &calls) const
    {
        std::vector<bytes> expected = {inputs_[r], bytes(inputs_[r].size(), 0x5a)};
        for (const Call &call : calls) {
            const uint64_t element = bytes_of(call.type);
            const uint64_t from = call.send_offset * element;
            std::vector<bytes> parts;
            for (const bytes &input : inputs_) {
                parts.emplace_back(input.begin() + (long)from,
                                   input.begin() + (long)(from + call.count * element));
            }
            const bytes sum = all_reduce(call.type, call.op, parts);
            const uint64_t to = (call.in_place ? call.send_offset : call.recv_offset) * element;
            std::copy(sum.begin(), sum.end(), expected[call.in_place ? 0 : 1].begin() + (long)to);
        }
        return expected;
    }

    void verify_all(const std::vector<Call> &calls)
    {
        for (size_t r = 0; r < ranks_.size(); r++) {
            const std::vector<bytes> expected = expected_of(r, calls);
            for (int i = 0; i < 2; i++) {
                bytes got(expected[i].size());
                CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
                CHECK_CU(cuMemcpyDtoHAsync(got.data(), i ? ranks_[r].recv : ranks_[r].send,
                                           got.size(), ranks_[r].stream));
                CHECK_CU(cuStreamSynchronize(ranks_[r].stream));
                const size_t at = first_difference(got.data(), expected[i].data(), got.size());
                ASSERT_EQ(memcmp(got.data(), expected[i].data(), got.size()), 0)
                    << "rank " << r << ", call " << at / kRegion << ", byte " << at % kRegion;
            }
        }
    }
};

TEST_P(FusedKernels, GiveTheBitsOfSeparateCalls)
{
    std::mt19937_64 random(7);
    for (uint32_t slot_cells : {0u, 2048u}) { // several rounds a message; one
        open((uint32_t)GetParam(), slot_cells);
        for (uint64_t seed = 1; seed <= 3; seed++) {
            const std::vector<Call> calls = any_calls(random);
            upload_bytes(seed);
            synchronize();
            for (uint32_t r = 0; r < ranks_.size(); r++) {
                launch_all_of(r, calls, random);
            }
            synchronize();
            verify_all(calls);
            if (HasFatalFailure()) {
                return;
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Ranks, FusedKernels, ::testing::Values(2, 3, 4, 8));

class FusedPair : public KernelWorld {};

// Lanes that sit out a message keep their state; the others count each message's rounds.
TEST_F(FusedPair, LeavesLanesAloneThatAMessageDoesNotReach)
{
    open(2, 8); // 4 vectors of a row and lane
    std::vector<Call> calls(3, Call{LAMPREY_REFERENCE_F32, 4});
    calls[1].count = 4 * 4 * kLanes; // fills every lane once
    calls[2].count = 25 * 4;         // 6 lanes of 3 vectors, then 3, 3 and 1
    for (size_t i = 0; i < calls.size(); i++) {
        calls[i].send_offset = calls[i].recv_offset = 256 * i;
    }
    upload({LAMPREY_REFERENCE_F32, 768}, data_kind::numbers, 1);
    synchronize();
    launch_fused(0, calls);
    for (const Call &call : calls) {
        launch(1, call);
    }
    synchronize();
    for (const Rank &rank : ranks_) {
        lamprey_lane lanes[kLanes];
        CHECK_CU(cuCtxSetCurrent(rank.context));
        CHECK_CU(cuMemcpyDtoH(lanes, rank.lanes, sizeof lanes));
        for (uint32_t lane = 0; lane < kLanes; lane++) {
            const uint32_t rounds = 1 + (lane < 1) + (lane < 3 ? 2 : 1);
            EXPECT_EQ(lanes[lane].round, rounds) << "lane " << lane;
            EXPECT_EQ(lanes[lane].slot, rounds % 3) << "lane " << lane;
            EXPECT_EQ(lanes[lane].dirty, 3u) << "lane " << lane;
        }
    }
}

// A peer that comes late must not find data of a message behind one that was left.
TEST_F(FusedPair, SendsNothingAfterAMessageWasLeft)
{
    open(2);
    std::vector<Call> calls(5, Call{LAMPREY_REFERENCE_BF16, 300});
    for (uint64_t i = 0; i < calls.size(); i++) {
        calls[i].send_offset = calls[i].recv_offset = i * 10000;
    }
    const Call all = {LAMPREY_REFERENCE_BF16, 50000};
    upload(all, data_kind::numbers, 1);
    synchronize();
    timeout_ms_ = 50;
    launch_fused(0, calls);
    CHECK_CU(cuCtxSetCurrent(ranks_[0].context));
    CHECK_CU(cuStreamSynchronize(ranks_[0].stream));
    EXPECT_EQ(alarm(0, LAMPREY_ALARM_TIMED_OUT), 1u);
    for (const Call &call : calls) {
        launch(1, call);
    }
    CHECK_CU(cuCtxSetCurrent(ranks_[1].context));
    CHECK_CU(cuStreamSynchronize(ranks_[1].stream));
    EXPECT_EQ(alarm(1, LAMPREY_ALARM_TIMED_OUT), 1u);
    const bytes expected = lamprey_test::all_reduce_sum(all.type, inputs_);
    bytes got(expected.size());
    CHECK_CU(cuMemcpyDtoH(got.data(), ranks_[1].recv, got.size()));
    for (size_t i = 20000; i < got.size(); i++) { // the first message it may have had
        ASSERT_EQ(got[i], 0x5a) << "byte " << i;
    }
    EXPECT_EQ(memcmp(got.data(), expected.data(), 600), 0);
}

} // namespace
