// SPDX-License-Identifier: Apache-2.0
// The kernels for rows against the reference, bit for bit, and every byte around the outputs.
#include <random>

#include "tests/row_world.h"

namespace {

using namespace lamprey_test;

constexpr element_type kTypes[] = {LAMPREY_REFERENCE_F16, LAMPREY_REFERENCE_BF16,
                                   LAMPREY_REFERENCE_F32};
constexpr lamprey_algorithm kAlgorithms[] = {LAMPREY_ONE_SHOT, LAMPREY_TWO_SHOT};

class RowKernels : public RowWorld, public ::testing::WithParamInterface<int> {
  protected:
    void SetUp() override
    {
        RowWorld::SetUp();
        if (!IsSkipped() && GetParam() / devices_ > 12) {
            GTEST_SKIP() << "more ranks than a GPU can run at once";
        }
    }
    bool many() const
    {
        return GetParam() > 8;
    }
};

TEST_P(RowKernels, NormaliseEveryShape)
{
    open_rows((uint32_t)GetParam());
    uint64_t seed = 1;
    for (lamprey_algorithm algorithm : kAlgorithms) {
        for (element_type type : kTypes) {
            for (uint32_t hidden : {8u, 256u, 1000u, 2880u, 8192u}) {
                for (uint64_t tokens : {(uint64_t)1, (uint64_t)2, (uint64_t)5}) {
                    if (many() && hidden * tokens > 3000) {
                        continue;
                    }
                    RowCall call = {type, tokens, hidden, algorithm};
                    run_rows(call, seed++);
                    if (HasFatalFailure()) {
                        return;
                    }
                }
            }
        }
    }
}

// A share is a round's, so that the short kernels run.
TEST_P(RowKernels, TakeTheShortWay)
{
    open_rows((uint32_t)GetParam(), 512 * (uint32_t)GetParam());
    uint64_t seed = 50;
    for (element_type type : kTypes) {
        for (uint32_t hidden : {64u, 2880u, type == LAMPREY_REFERENCE_F32 ? 3072u : 7168u}) {
            for (uint64_t tokens : {(uint64_t)1, (uint64_t)9}) {
                if (many() && hidden * tokens > 3000) {
                    continue;
                }
                RowCall call = {type, tokens, hidden};
                for (lamprey_quantisation quantisation :
                     {LAMPREY_QUANT_NONE, LAMPREY_QUANT_FP8_TOKEN, LAMPREY_QUANT_NVFP4}) {
                    call.quantisation = quantisation;
                    run_rows(call, seed++);
                    ASSERT_NE(form_, LAMPREY_ROWS_ANY);
                    if (HasFatalFailure()) {
                        return;
                    }
                }
            }
        }
    }
}

// The same where each thread has one vector, as on a GPU, if the emulator has so many; clusters and
// their rows in turn, and every way of quantising between the lanes of a warp.
TEST_P(RowKernels, GiveEachThreadAVector)
{
    open_rows((uint32_t)GetParam(), 512 * (uint32_t)GetParam());
    if (many()) {
        GTEST_SKIP() << "there is no kernel for so many ranks";
    }
    uint64_t seed = 900;
    for (element_type type : kTypes) {
        RowCall call = {type, 5, type == LAMPREY_REFERENCE_F32 ? 1056u : 2080u};
        call.cluster = 2;
        call.lanes = 4;
        const auto run = [&](lamprey_quantisation quantisation, data_kind kind) {
            call.quantisation = quantisation;
            call.kind = kind;
            call.norm = kind != data_kind::specials; // a special value makes the row one
            call.norm_out = call.norm && seed % 2;
            call.sum_out = seed % 2;
            call.gamma = seed % 3 ? weights::of_type : weights::fp32;
            call.scale_in_memory = seed % 3 != 0;
            run_rows(call, seed++);
            ASSERT_EQ(form_, quantisation == LAMPREY_QUANT_NONE ? LAMPREY_ROWS_SINGLE
                                                                : LAMPREY_ROWS_SINGLE_QUANTISED);
        };
        run(LAMPREY_QUANT_NONE, data_kind::numbers);
        for (data_kind kind : {data_kind::numbers, data_kind::specials}) {
            run(LAMPREY_QUANT_FP8_STATIC, kind);
            run(LAMPREY_QUANT_FP8_TOKEN, kind);
            call.group = 32;
            run(LAMPREY_QUANT_FP8_GROUP, kind);
            call.layout = (lamprey_scale_layout)(seed % 3);
            call.scale = 800;
            run(LAMPREY_QUANT_NVFP4, kind);
            call.scale = 0.37f;
        }
        if (HasFatalFailure()) {
            return;
        }
    }
}

// Any combination of outputs, with and without what they need.
TEST_P(RowKernels, WriteWhatIsAskedFor)
{
    open_rows((uint32_t)GetParam());
    for (unsigned choice = 0; choice < 64; choice++) {
        RowCall call = {LAMPREY_REFERENCE_BF16, 3, 1536, kAlgorithms[choice / 32]};
        call.sum_out = choice & 1;
        call.residual = choice & 2;
        call.residual_out = choice & 4;
        call.norm = choice & 8;
        call.norm_out = call.norm && choice & 16;
        call.gamma = choice % 3 == 0   ? weights::none
                     : choice % 3 == 1 ? weights::of_type
                                       : weights::fp32;
        call.weight_bias = choice % 2 ? 1.0f : 0.0f;
        call.quantisation = choice % 5 == 0 ? LAMPREY_QUANT_FP8_STATIC : LAMPREY_QUANT_NONE;
        run_rows(call, choice);
        if (HasFatalFailure()) {
            return;
        }
    }
}

TEST_P(RowKernels, QuantiseEveryKindAndLayout)
{
    open_rows((uint32_t)GetParam());
    uint64_t seed = 100;
    for (element_type type : kTypes) {
        for (lamprey_algorithm algorithm : kAlgorithms) {
            RowCall call = {type, 5, 1824, algorithm}; // 19 blocks of 96, 114 of 16
            call.cluster = 4;
            const auto run = [&](lamprey_quantisation quantisation, data_kind kind) {
                call.quantisation = quantisation;
                call.kind = kind;
                call.norm_out = call.norm && seed % 2;
                call.scale_in_memory = seed % 3 != 0;
                run_rows(call, seed++);
            };
            for (data_kind kind :
                 {data_kind::numbers, data_kind::specials, data_kind::subnormals}) {
                call.norm = kind != data_kind::specials; // a special value makes the row one
                run(LAMPREY_QUANT_FP8_STATIC, kind);
                run(LAMPREY_QUANT_FP8_TOKEN, kind);
                for (uint32_t group : {32u, 96u, 24u, 1824u}) {
                    call.group = group;
                    run(LAMPREY_QUANT_FP8_GROUP, kind);
                }
                for (lamprey_scale_layout layout :
                     {LAMPREY_SCALES_128X4, LAMPREY_SCALES_8X4, LAMPREY_SCALES_LINEAR}) {
                    call.layout = layout;
                    call.scale = 800;
                    run(LAMPREY_QUANT_NVFP4, kind);
                    call.scale = 0.37f;
                }
                if (HasFatalFailure() || many()) {
                    return;
                }
            }
        }
    }
}

// Scales of rows beyond a tile, and the padding below the last.
TEST_P(RowKernels, LayScalesOutForManyRows)
{
    if (many()) {
        GTEST_SKIP() << "the layout doesn't know the ranks";
    }
    open_rows((uint32_t)GetParam());
    for (lamprey_scale_layout layout : {LAMPREY_SCALES_128X4, LAMPREY_SCALES_8X4}) {
        RowCall call = {LAMPREY_REFERENCE_F16, 131, 112};
        call.quantisation = LAMPREY_QUANT_NVFP4;
        call.layout = layout;
        call.scale = 300;
        run_rows(call, 7);
    }
    RowCall call = {LAMPREY_REFERENCE_BF16, 131, 96};
    call.quantisation = LAMPREY_QUANT_FP8_GROUP;
    call.group = 16;
    run_rows(call, 8);
}

TEST_P(RowKernels, TakeOddShapesAndMisalignedMemory)
{
    open_rows((uint32_t)GetParam());
    uint64_t seed = 200;
    for (element_type type : kTypes) {
        for (lamprey_algorithm algorithm : kAlgorithms) {
            for (uint32_t hidden : {1u, 7u, 515u, 1027u}) {
                RowCall call = {type, 3, hidden, algorithm};
                call.misaligned = hidden % 2;
                call.quantisation = (lamprey_quantisation)(hidden % 3);
                call.gamma = hidden == 7 ? weights::fp32 : weights::of_type;
                run_rows(call, seed++);
                call.hidden = 1024;
                call.misaligned = 3;
                call.quantisation = seed % 2 ? LAMPREY_QUANT_NVFP4 : LAMPREY_QUANT_FP8_GROUP;
                run_rows(call, seed++);
                if (HasFatalFailure()) {
                    return;
                }
            }
        }
    }
}

TEST_P(RowKernels, SumStepwise)
{
    open_rows((uint32_t)GetParam());
    for (element_type type : kTypes) {
        for (lamprey_algorithm algorithm : kAlgorithms) {
            for (data_kind kind : {data_kind::numbers, data_kind::specials, data_kind::any_bits}) {
                RowCall call = {type, 2, 640, algorithm};
                call.stepwise = true;
                call.sum_out = true;
                call.kind = kind;
                run_rows(call, 300 + (uint64_t)type);
            }
        }
    }
}

TEST_P(RowKernels, TakeEveryBitPattern)
{
    open_rows((uint32_t)GetParam());
    for (element_type type : kTypes) {
        for (lamprey_algorithm algorithm : kAlgorithms) {
            for (data_kind kind : {data_kind::any_bits, data_kind::all_ones, data_kind::specials,
                                   data_kind::negative_zeros, data_kind::subnormals}) {
                RowCall call = {type, 2, 520, algorithm};
                call.sum_out = true;
                call.kind = kind;
                run_rows(call, 400 + (uint64_t)kind);
                run_rows(call, 400 + (uint64_t)kind); // the same data as the call before
            }
        }
    }
}

TEST_P(RowKernels, ReduceAndFinalizeExperts)
{
    open_rows((uint32_t)GetParam());
    uint64_t seed = 500;
    for (element_type type : kTypes) {
        for (lamprey_algorithm algorithm : kAlgorithms) {
            for (lamprey_row_source source : {LAMPREY_ROWS_MOE_REDUCE, LAMPREY_ROWS_MOE_FINALIZE}) {
                for (unsigned choice = 0; choice < 8; choice++) {
                    RowCall call = {type, 4, choice % 3 == 2 ? 333u : 768u, algorithm};
                    call.source = source;
                    call.added = choice & 1;
                    call.expert_scales = source == LAMPREY_ROWS_MOE_REDUCE || choice & 2;
                    call.wide_scales = source == LAMPREY_ROWS_MOE_REDUCE || choice % 3 != 0;
                    call.stepwise = choice & 4;
                    call.factor = source == LAMPREY_ROWS_MOE_FINALIZE && choice % 2 ? 2.5f : 1.0f;
                    call.quantisation =
                        call.hidden == 768 ? LAMPREY_QUANT_NVFP4 : LAMPREY_QUANT_NONE;
                    run_rows(call, seed++);
                    if (HasFatalFailure() || (many() && choice > 1)) {
                        return;
                    }
                }
            }
        }
    }
}

// What the sum goes through before the residual, with and without what comes after it.
TEST_P(RowKernels, AddBiasAndNormaliseTwice)
{
    open_rows((uint32_t)GetParam());
    for (unsigned choice = 0; choice < 48; choice++) {
        RowCall call = {kTypes[choice % 3], many() ? 2u : 7u, choice % 5 == 0 ? 515u : 1536u,
                        kAlgorithms[choice / 3 % 2]};
        call.bias = choice & 1;
        call.pre_norm = !call.bias || choice & 2;
        call.pre_gamma = !call.pre_norm   ? weights::none
                         : choice % 7 < 3 ? weights::of_type
                         : choice % 7 < 5 ? weights::fp32
                                          : weights::none;
        call.gamma = call.pre_gamma;
        call.residual = choice & 4;
        call.norm = call.norm_out = choice & 8;
        call.sum_out = choice & 16;
        call.weight_bias = choice & 1 ? 1.0f : 0.0f;
        call.quantisation = choice % 4 == 0 ? LAMPREY_QUANT_FP8_TOKEN : LAMPREY_QUANT_NONE;
        call.lanes = 2 + choice % 5;
        run_rows(call, 900 + choice);
        if (HasFatalFailure()) {
            return;
        }
    }
}

TEST_P(RowKernels, WriteOverTheirInputs)
{
    open_rows((uint32_t)GetParam());
    for (unsigned choice = 0; choice < 16; choice++) {
        RowCall call = {kTypes[choice % 3], many() ? 2u : 5u, choice % 5 == 0 ? 515u : 1536u,
                        kAlgorithms[choice % 2]};
        call.in_place = true;
        call.norm = call.norm_out = choice & 2;
        call.bias = call.pre_norm = choice & 4;
        call.residual = call.norm || choice & 8;
        run_rows(call, 950 + choice);
        if (HasFatalFailure()) {
            return;
        }
    }
}

// Every launch gives the reference's bits, so the bits don't depend on the launch.
TEST_P(RowKernels, LayRowsOverAnyClusters)
{
    open_rows((uint32_t)GetParam());
    for (uint32_t cluster = 1; cluster <= 6; cluster++) {
        for (uint32_t lanes : {1u, 5u, 6u}) {
            for (lamprey_algorithm algorithm : kAlgorithms) {
                RowCall call = {LAMPREY_REFERENCE_BF16, 7, 3072, algorithm};
                call.cluster = cluster;
                call.lanes = lanes;
                call.quantisation = LAMPREY_QUANT_FP8_TOKEN;
                if (many()) {
                    call.tokens = 2;
                }
                run_rows(call, 600);
                if (HasFatalFailure()) {
                    return;
                }
            }
        }
    }
}

// Calls of all sorts on the same lanes, without a pause between them.
TEST_P(RowKernels, MixWithPlainCalls)
{
    open_rows((uint32_t)GetParam());
    std::mt19937 random(3);
    for (int i = 0; i < (many() ? 6 : 40); i++) {
        RowCall rows = {kTypes[random() % 3], random() % 4 + 1, (uint32_t)(8 + random() % 3000),
                        kAlgorithms[random() % 2]};
        rows.lanes = random() % kLanes + 1;
        const Call plain = {kTypes[random() % 3], random() % 5000 + 1, kAlgorithms[random() % 2]};
        upload(plain, data_kind::numbers, (uint64_t)i);
        synchronize();
        launch_all(plain);
        run_rows(rows, (uint64_t)i);
        verify(plain);
        if (HasFatalFailure()) {
            return;
        }
    }
}

// A rank that doesn't come: its peers leave, and none writes what needs the data that is missing.
TEST_P(RowKernels, LeaveTogether)
{
    for (int kind = 0; kind < 4; kind++) {
        open_rows((uint32_t)GetParam());
        const lamprey_algorithm algorithm = kAlgorithms[kind % 2];
        // In the shorter row some threads have no part of a shard to wait for.
        RowCall call = {LAMPREY_REFERENCE_BF16, 4, kind < 2 ? 2048u : 64u, algorithm};
        call.sum_out = true;
        call.quantisation = LAMPREY_QUANT_FP8_TOKEN;
        timeout_ms_ = 50;
        for (int repeat = 0; repeat < 2; repeat++) {
            const std::vector<Arena> arenas = lay_out(call, ranks_.size(), 700);
            for (uint32_t r = 1; r < ranks_.size(); r++) {
                CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
                CHECK_CU(
                    cuMemcpyHtoD(arenas_[r], arenas[r].before.data(), arenas[r].before.size()));
                launch_rows(r, call, arenas[r]);
            }
            synchronize();
            for (uint32_t r = 1; r < ranks_.size(); r++) {
                EXPECT_EQ(alarm(r, LAMPREY_ALARM_TIMED_OUT), 1u);
                bytes got(arenas[r].before.size());
                CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
                CHECK_CU(cuMemcpyDtoH(got.data(), arenas_[r], got.size()));
                ASSERT_EQ(memcmp(got.data(), arenas[r].before.data(), got.size()), 0)
                    << "rank " << r << ", algorithm " << algorithm;
            }
        }
        close_rows();
    }
}

// One lane's data is missing, and with it a part of each row: nothing is made of the rest of it.
TEST_P(RowKernels, MakeNothingOfAPartOfARow)
{
    open_rows((uint32_t)GetParam());
    RowCall call = {LAMPREY_REFERENCE_BF16, 2, 2048};
    call.residual_out = false;
    call.lanes = 2;
    call.quantisation = LAMPREY_QUANT_NVFP4;
    const lamprey_row_shape shape = shape_of(call);
    ASSERT_GT(lamprey_row_plan_of(&shape, call.lanes, call.cluster, slot_cells_).cluster, 1u);
    timeout_ms_ = 50;
    lamprey_lane dead = {};
    dead.dead = 1;
    CHECK_CU(cuCtxSetCurrent(ranks_[0].context));
    CHECK_CU(cuMemcpyHtoD(ranks_[0].lanes + sizeof dead, &dead, sizeof dead));
    const std::vector<Arena> arenas = lay_out(call, ranks_.size(), 800);
    for (uint32_t r = 0; r < ranks_.size(); r++) {
        CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
        CHECK_CU(cuMemcpyHtoD(arenas_[r], arenas[r].before.data(), arenas[r].before.size()));
        launch_rows(r, call, arenas[r]);
    }
    synchronize();
    for (uint32_t r = 0; r < ranks_.size(); r++) {
        bytes got(arenas[r].before.size());
        CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
        CHECK_CU(cuMemcpyDtoH(got.data(), arenas_[r], got.size()));
        ASSERT_EQ(memcmp(got.data(), arenas[r].before.data(), got.size()), 0) << "rank " << r;
    }
}

INSTANTIATE_TEST_SUITE_P(Worlds, RowKernels, ::testing::Values(2, 3, 4, 8, 17));

} // namespace
