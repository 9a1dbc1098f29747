// SPDX-License-Identifier: Apache-2.0
// The kernels for rows against the reference, bit for bit, and every byte around the outputs.
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

INSTANTIATE_TEST_SUITE_P(Worlds, RowKernels, ::testing::Values(2, 3, 4, 8, 17));

} // namespace
