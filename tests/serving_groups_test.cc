// SPDX-License-Identifier: Apache-2.0
// Calls in groups.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

TEST_F(Serving, HoldsGroupsBackForOneThreadWithAllGpus)
{
    processes(1, [](int) {
        constexpr int n = 4;
        int devices[n] = {0, 1, 2, 3};
        ncclComm_t comms[n];
        std::vector<Rank> ranks;
        for (int r = 0; r < n; r++) {
            ranks.emplace_back(r, n);
        }
        REQUIRE(ncclCommInitAll(comms, n, devices) == ncclSuccess);
        for (uint64_t seed = 0; seed < 4; seed++) {
            for (int r = 0; r < n; r++) {
                ranks[r].comm = comms[r];
                ranks[r].use();
                ranks[r].fill(LAMPREY_REFERENCE_BF16, 5000, seed);
            }
            REQUIRE(ncclGroupStart() == ncclSuccess);
            for (int r = 0; r < n; r++) {
                REQUIRE(ranks[r].all_reduce(LAMPREY_REFERENCE_BF16, 5000) == ncclSuccess);
            }
            REQUIRE(ncclGroupEnd() == ncclSuccess);
            for (int r = 0; r < n; r++) {
                ranks[r].use();
                ranks[r].check(LAMPREY_REFERENCE_BF16, 5000, seed, true);
            }
        }
        for (int r = 0; r < n; r++) {
            REQUIRE(stats_of(comms[r]).served == 4);
            REQUIRE(stats_of(comms[r]).served_grouped == 4);
        }
        REQUIRE(ncclGroupStart() == ncclSuccess);
        for (int r = 0; r < n; r++) {
            REQUIRE(ncclCommDestroy(comms[r]) == ncclSuccess);
        }
        REQUIRE(ncclGroupEnd() == ncclSuccess);
    });
}

// JAX's main path: each thread puts many all-reduces on one communicator into a group.
TEST_F(Serving, TakesManyCallsOfOneCommunicatorInAGroup)
{
    threads(2, [](int rank) {
        constexpr int calls = 200;
        Rank self(rank, 2);
        self.init();
        CUdeviceptr buffers = 0;
        REQUIRE(cuMemAlloc(&buffers, calls * 256) == CUDA_SUCCESS);
        std::vector<float> data(calls * 64);
        for (size_t i = 0; i < data.size(); i++) {
            data[i] = (float)(i + (size_t)rank * 1000);
        }
        REQUIRE(cuMemcpyHtoD(buffers, data.data(), calls * 256) == CUDA_SUCCESS);
        REQUIRE(ncclGroupStart() == ncclSuccess);
        for (int i = 0; i < calls; i++) {
            void *place = (void *)(buffers + (size_t)i * 256);
            REQUIRE(ncclAllReduce(place, place, 64, ncclFloat32, ncclSum, self.comm,
                                  (cudaStream_t)self.stream) == ncclSuccess);
        }
        REQUIRE(ncclGroupEnd() == ncclSuccess);
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        REQUIRE(cuMemcpyDtoH(data.data(), buffers, calls * 256) == CUDA_SUCCESS);
        for (size_t i = 0; i < data.size(); i++) {
            REQUIRE(data[i] == (float)(2 * i + 1000));
        }
        REQUIRE(stats_of(self.comm).served == calls);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

TEST_F(Serving, RunsNothingOfAGroupThatFails)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_BF16, 64, 1);
        self.fill(LAMPREY_REFERENCE_F32, 64, 2);
        REQUIRE(ncclGroupStart() == ncclSuccess);
        REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 64) == ncclSuccess);
        REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 4, (ncclDataType_t)77, ncclSum,
                              self.comm, (cudaStream_t)self.stream) == ncclInvalidArgument);
        REQUIRE(ncclGroupEnd() == ncclInvalidArgument);
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        uint32_t untouched = 0;
        REQUIRE(cuMemcpyDtoH(&untouched, self.recv, 4) == CUDA_SUCCESS);
        REQUIRE(untouched == 0x5a5a5a5a);
        self.round(LAMPREY_REFERENCE_F32, 64, 3);
        REQUIRE(stats_of(self.comm).served == 2);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

TEST_F(Serving, AcceptsOneRankGroupedAndTheOtherNot)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        for (uint64_t seed = 0; seed < 6; seed++) {
            const bool grouped = (seed + (uint64_t)rank) % 2;
            self.fill(LAMPREY_REFERENCE_F16, 999, seed);
            if (grouped) {
                REQUIRE(ncclGroupStart() == ncclSuccess);
            }
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F16, 999) == ncclSuccess);
            if (grouped) {
                REQUIRE(ncclGroupEnd() == ncclSuccess);
            }
            self.check(LAMPREY_REFERENCE_F16, 999, seed, true);
        }
        REQUIRE(stats_of(self.comm).served == 6);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// Two communicators meet their first all-reduce in one group; on the other rank one after the
// other.
TEST_F(Serving, SetsUpIndependentlyInsideAGroup)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        ncclComm_t second = nullptr;
        REQUIRE(ncclCommSplit(self.comm, 0, rank, &second, nullptr) == ncclSuccess);
        CUstream stream = nullptr;
        REQUIRE(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
        self.fill(LAMPREY_REFERENCE_F32, 256, 5);
        auto first_call = [&] {
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 256) == ncclSuccess);
        };
        auto second_call = [&] {
            REQUIRE(ncclAllReduce((void *)self.send, (void *)(self.recv + 65536), 256, ncclFloat32,
                                  ncclSum, second, (cudaStream_t)stream) == ncclSuccess);
        };
        if (rank == 0) {
            REQUIRE(ncclGroupStart() == ncclSuccess);
            second_call();
            first_call();
            REQUIRE(ncclGroupEnd() == ncclSuccess);
        } else {
            first_call();
            second_call();
        }
        self.check(LAMPREY_REFERENCE_F32, 256, 5, true);
        REQUIRE(cuStreamSynchronize(stream) == CUDA_SUCCESS);
        REQUIRE(stats_of(self.comm).served == 1 && stats_of(second).served == 1);
        REQUIRE(ncclCommDestroy(second) == ncclSuccess);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// NCCL documents a group over several streams as joining them: whoever waits for one stream sees
// the whole group.
TEST_F(Serving, JoinsTheStreamsOfAGroup)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_F32, 16, 1);
        CUstream other = nullptr;
        REQUIRE(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
        for (uint64_t seed = 2; seed < 30; seed++) {
            self.fill(LAMPREY_REFERENCE_F32, 4000, seed);
            REQUIRE(ncclGroupStart() == ncclSuccess);
            REQUIRE(ncclAllReduce((void *)self.send, (void *)(self.recv + (1 << 20)), 500,
                                  ncclFloat32, ncclSum, self.comm,
                                  (cudaStream_t)self.stream) == ncclSuccess);
            REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 4000, ncclFloat32, ncclSum,
                                  self.comm, (cudaStream_t)other) == ncclSuccess);
            REQUIRE(ncclGroupEnd() == ncclSuccess);
            self.check(LAMPREY_REFERENCE_F32, 4000, seed, true); // waits for self.stream alone
        }
        REQUIRE(stats_of(self.comm).served == 57);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

TEST_F(Serving, LaunchesNothingInASimulation)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_F32, 64, 1);
        self.fill(LAMPREY_REFERENCE_F32, 64, 2);
        ncclSimInfo_t info = NCCL_SIM_INFO_INITIALIZER;
        REQUIRE(ncclGroupStart() == ncclSuccess);
        REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 64) == ncclSuccess);
        REQUIRE(ncclGroupSimulateEnd(&info) == ncclSuccess);
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        uint32_t untouched = 0;
        REQUIRE(cuMemcpyDtoH(&untouched, self.recv, 4) == CUDA_SUCCESS);
        REQUIRE(untouched == 0x5a5a5a5a);
        self.round(LAMPREY_REFERENCE_F32, 64, 3);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

} // namespace
