// SPDX-License-Identifier: Apache-2.0
// Which calls are served, and that they give the right bits.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

TEST_F(Serving, ServesProcesses)
{
    for (int nranks : {2, 3, 8}) {
        memset(shared, 0, sizeof *shared);
        processes(nranks, [&](int rank) { mixed_rounds(rank, nranks); });
    }
}

TEST_F(Serving, ServesThreads)
{
    for (int nranks : {2, 4, 5}) {
        memset(shared, 0, sizeof *shared);
        threads(nranks, [&](int rank) { mixed_rounds(rank, nranks); });
    }
}

// As launchers do that show each process its own GPU, which is GPU 0 to all of them.
TEST_F(Serving, ServesProcessesThatSeeOneGpuEach)
{
    processes(4, [](int rank) {
        setenv("CUDA_VISIBLE_DEVICES", std::to_string(7 - 2 * rank).c_str(), 1);
        mixed_rounds(rank, 4);
    });
}

TEST_F(Serving, LeavesWhatItDoesNotTakeToNccl)
{
    setenv("LAMPREY_MAX_BYTES", "1M", 1);
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_BF16, 100, 1);
        self.round(LAMPREY_REFERENCE_F32, Rank::bytes / 4, 2, false); // beyond the limit
        std::vector<float> ones(64, (float)rank + 1);
        std::vector<float> got(64);
        float scale = 2;
        ncclRedOp_t doubled;
        REQUIRE(cuMemcpyHtoD(self.send, ones.data(), 256) == CUDA_SUCCESS);
        REQUIRE(ncclRedOpCreatePreMulSum(&doubled, &scale, ncclFloat32, ncclScalarHostImmediate,
                                         self.comm) == ncclSuccess);
        REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 64, ncclFloat32, doubled,
                              self.comm, (cudaStream_t)self.stream) == ncclSuccess);
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        REQUIRE(cuMemcpyDtoH(got.data(), self.recv, 256) == CUDA_SUCCESS);
        REQUIRE(got[0] == 6 && got[63] == 6);
        REQUIRE(ncclRedOpDestroy(doubled, self.comm) == ncclSuccess);
        REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 0, ncclFloat32, ncclSum,
                              self.comm, (cudaStream_t)self.stream) == ncclSuccess);
        self.round(LAMPREY_REFERENCE_F16, 100, 3);
        const lampreyStats stats = stats_of(self.comm);
        REQUIRE(stats.served == 2);
        REQUIRE(stats.fallback_size == 1);
        REQUIRE(stats.fallback_type == 0);
        REQUIRE(stats.fallback_operator == 1);
        REQUIRE(stats.fallback_empty == 1);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
    unsetenv("LAMPREY_MAX_BYTES");
}

class ServingByAlgorithm : public Serving, public ::testing::WithParamInterface<const char *> {};

TEST_P(ServingByAlgorithm, TakesEveryTypeAndOperator)
{
    setenv("LAMPREY_ALGORITHM", GetParam(), 1);
    processes(3, [](int rank) {
        static const struct {
            ncclDataType_t nccl;
            element_type type;
        } types[] = {
            {ncclInt8, LAMPREY_REFERENCE_I8},         {ncclUint8, LAMPREY_REFERENCE_U8},
            {ncclInt32, LAMPREY_REFERENCE_I32},       {ncclUint32, LAMPREY_REFERENCE_U32},
            {ncclInt64, LAMPREY_REFERENCE_I64},       {ncclUint64, LAMPREY_REFERENCE_U64},
            {ncclFloat16, LAMPREY_REFERENCE_F16},     {ncclFloat32, LAMPREY_REFERENCE_F32},
            {ncclFloat64, LAMPREY_REFERENCE_F64},     {ncclBfloat16, LAMPREY_REFERENCE_BF16},
            {ncclFloat8e4m3, LAMPREY_REFERENCE_E4M3}, {ncclFloat8e5m2, LAMPREY_REFERENCE_E5M2}};
        static const struct {
            ncclRedOp_t nccl;
            lamprey_reference_op op;
        } ops[] = {{ncclSum, LAMPREY_REFERENCE_SUM},
                   {ncclProd, LAMPREY_REFERENCE_PROD},
                   {ncclMin, LAMPREY_REFERENCE_MIN},
                   {ncclMax, LAMPREY_REFERENCE_MAX},
                   {ncclAvg, LAMPREY_REFERENCE_AVG}};
        Rank self(rank, 3);
        self.init();
        for (const auto &type : types) {
            for (const auto &op : ops) {
                const size_t count = 1001;
                std::vector<std::vector<uint8_t>> inputs;
                for (int r = 0; r < 3; r++) {
                    inputs.push_back(lamprey_test::make_data(
                        type.type, count, lamprey_test::data_kind::any_bits, (uint64_t)r));
                }
                std::vector<uint8_t> got(inputs[0].size());
                REQUIRE(cuMemcpyHtoD(self.send, inputs[rank].data(), got.size()) == CUDA_SUCCESS);
                REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, count, type.nccl,
                                      op.nccl, self.comm,
                                      (cudaStream_t)self.stream) == ncclSuccess);
                REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
                REQUIRE(cuMemcpyDtoH(got.data(), self.recv, got.size()) == CUDA_SUCCESS);
                REQUIRE(got == lamprey_test::all_reduce(type.type, op.op, inputs));
            }
        }
        REQUIRE(stats_of(self.comm).served == 60);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
    unsetenv("LAMPREY_ALGORITHM");
}

INSTANTIATE_TEST_SUITE_P(Algorithms, ServingByAlgorithm,
                         ::testing::Values("auto", "one_shot", "two_shot"));

TEST_F(Serving, ReportsAPeerThatNeverComes)
{
    setenv("LAMPREY_TIMEOUT", "1", 1);
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_BF16, 100, 1);
        ncclResult_t error = ncclInternalError;
        REQUIRE(ncclCommGetAsyncError(self.comm, &error) == ncclSuccess && error == ncclSuccess);
        if (rank == 0) {
            REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 100, ncclBfloat16, ncclSum,
                                  self.comm, (cudaStream_t)self.stream) == ncclSuccess);
            for (int tenths = 0; tenths < 100 && error == ncclSuccess; tenths++) {
                usleep(100000);
                REQUIRE(ncclCommGetAsyncError(self.comm, &error) == ncclSuccess);
            }
            REQUIRE(error == ncclRemoteError);
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        }
        meet(2);
        REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
    });
    unsetenv("LAMPREY_TIMEOUT");
}

TEST_F(Serving, GivesNcclsErrors)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_BF16, 100, 1);
        REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 4, (ncclDataType_t)77, ncclSum,
                              self.comm, (cudaStream_t)self.stream) == ncclInvalidArgument);
        REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 4, ncclFloat32, (ncclRedOp_t)-1,
                              self.comm, (cudaStream_t)self.stream) == ncclInvalidArgument);
        REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 4, ncclFloat32, ncclSum,
                              nullptr, (cudaStream_t)self.stream) == ncclInvalidArgument);
        self.round(LAMPREY_REFERENCE_BF16, 100, 2);
        REQUIRE(stats_of(self.comm).served == 2);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// Several ranks a GPU, since the emulator has no more than 8.
TEST_F(Serving, ServesWorldsBeyondEight)
{
    setenv("LAMPREY_SHARE_GPU", "1", 1);
    for (int nranks : {9, 12}) {
        memset(shared, 0, sizeof *shared);
        processes(nranks, [&](int rank) { mixed_rounds(rank, nranks); });
    }
    unsetenv("LAMPREY_SHARE_GPU");
}

} // namespace
