/* SPDX-License-Identifier: Apache-2.0 */
/* Communicators of newer releases and non-blocking ones, and what the emulated NCCL refuses. */
#include <dlfcn.h>
#include <nccl.h>

#include <thread>

#include "tests/emulator/child.h"

#define NC_OK(call) ASSERT_EQ(ncclSuccess, call) << ncclGetLastError(nullptr)

namespace {

using emulator::in_child;
using emulator::use_device;

/* nccl.h may be older than these. */
template <typename Function> Function newer(const char *name)
{
    return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

struct World {
    static constexpr int n = 2;
    ncclComm_t comms[n] = {};
    CUstream streams[n] = {};
    int *data[n] = {};

    explicit World(const std::function<void(World &)> &init)
    {
        for (int rank = 0; rank < n; rank++) {
            CUdeviceptr pointer = 0;
            use_device(rank);
            EXPECT_EQ(CUDA_SUCCESS, cuStreamCreate(&streams[rank], CU_STREAM_NON_BLOCKING));
            EXPECT_EQ(CUDA_SUCCESS, cuMemAlloc(&pointer, 64));
            data[rank] = reinterpret_cast<int *>(pointer);
        }
        init(*this);
    }

    static void all(World &world)
    {
        EXPECT_EQ(ncclSuccess, ncclCommInitAll(world.comms, n, nullptr));
    }

    void each(const std::function<void(int)> &body)
    {
        std::vector<std::thread> threads;
        for (int rank = 0; rank < n; rank++) {
            threads.emplace_back([&, rank] {
                use_device(rank);
                body(rank);
            });
        }
        for (std::thread &thread : threads) {
            thread.join();
        }
    }

    ncclResult_t sum(int rank)
    {
        return ncclAllReduce(data[rank], data[rank], 1, ncclInt32, ncclSum, comms[rank],
                             reinterpret_cast<cudaStream_t>(streams[rank]));
    }
};

TEST(EmulatedCommunicators, GrowByNewRanks)
{
    EXPECT_EQ(0, in_child([] {
                  auto grow = newer<ncclResult_t (*)(ncclComm_t, int, const ncclUniqueId *, int,
                                                     ncclComm_t *, ncclConfig_t *)>("ncclCommGrow");
                  auto invite =
                      newer<ncclResult_t (*)(ncclComm_t, ncclUniqueId *)>("ncclCommGetUniqueId");
                  ncclUniqueId id;
                  ncclUniqueId invitation;
                  NC_OK(ncclGetUniqueId(&id));
                  World world([&](World &made) {
                      use_device(0);
                      EXPECT_EQ(ncclSuccess, ncclCommInitRank(&made.comms[0], 1, id, 0));
                  });
                  ncclComm_t old = world.comms[0];
                  NC_OK(invite(old, &invitation));
                  world.each([&](int rank) {
                      NC_OK(grow(rank == 0 ? old : nullptr, 2, &invitation, rank == 0 ? -1 : 1,
                                 &world.comms[rank], nullptr));
                      *world.data[rank] = rank + 5;
                      NC_OK(world.sum(rank));
                      CU_OK(cuStreamSynchronize(world.streams[rank]));
                      EXPECT_EQ(11, *world.data[rank]);
                  });
                  EXPECT_EQ(ncclInvalidArgument,
                            grow(old, 1, nullptr, -1, &world.comms[0], nullptr));
              }));
}

TEST(EmulatedCommunicators, RefuseCallsWhileSuspended)
{
    EXPECT_EQ(0, in_child([] {
                  World world(World::all);
                  auto suspend = newer<ncclResult_t (*)(ncclComm_t, int)>("ncclCommSuspend");
                  auto resume = newer<ncclResult_t (*)(ncclComm_t)>("ncclCommResume");
                  world.each([&](int rank) {
                      NC_OK(suspend(world.comms[rank], 1));
                      EXPECT_EQ(ncclInvalidUsage, world.sum(rank));
                      EXPECT_EQ(ncclInvalidUsage, suspend(world.comms[rank], 1));
                      NC_OK(resume(world.comms[rank]));
                      EXPECT_EQ(ncclInvalidUsage, resume(world.comms[rank]));
                      *world.data[rank] = 4;
                      NC_OK(world.sum(rank));
                      CU_OK(cuStreamSynchronize(world.streams[rank]));
                      EXPECT_EQ(8, *world.data[rank]);
                  });
              }));
}

TEST(EmulatedCommunicators, LaunchInTheBackgroundWhereTheyAreNonBlocking)
{
    EXPECT_EQ(0, in_child([] {
                  ncclUniqueId id;
                  NC_OK(ncclGetUniqueId(&id));
                  World world([](World &) {});
                  world.each([&](int rank) {
                      ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
                      config.blocking = 0;
                      NC_OK(ncclCommInitRankConfig(&world.comms[rank], 2, id, rank, &config));
                      *world.data[rank] = rank + 1;
                      EXPECT_EQ(ncclInProgress, world.sum(rank));
                      EXPECT_EQ(ncclInvalidArgument, world.sum(rank)) << "busy";
                      ncclResult_t state = ncclInProgress;
                      while (state == ncclInProgress) {
                          NC_OK(ncclCommGetAsyncError(world.comms[rank], &state));
                      }
                      NC_OK(state);
                      CU_OK(cuStreamSynchronize(world.streams[rank]));
                      EXPECT_EQ(3, *world.data[rank]);
                      NC_OK(ncclCommDestroy(world.comms[rank]));
                  });
              }));
}

TEST(EmulatedCommunicators, RefuseAGroupThatIsHalfCaptured)
{
    EXPECT_EQ(0, in_child([] {
                  World world(World::all);
                  CUstream other = nullptr;
                  CUgraph graph = nullptr;
                  use_device(0);
                  CU_OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
                  CU_OK(cuStreamBeginCapture(other, CU_STREAM_CAPTURE_MODE_RELAXED));
                  NC_OK(ncclGroupStart());
                  NC_OK(world.sum(0));
                  EXPECT_EQ(ncclInvalidUsage,
                            ncclAllReduce(world.data[0], world.data[0], 1, ncclInt32, ncclSum,
                                          world.comms[0], reinterpret_cast<cudaStream_t>(other)));
                  EXPECT_EQ(ncclInvalidUsage, ncclGroupEnd());
                  CU_OK(cuStreamEndCapture(other, &graph));
                  CU_OK(cuStreamSynchronize(world.streams[0]));
              }));
}

TEST(EmulatedCommunicators, ReduceFloatsOfEightBits)
{
    EXPECT_EQ(0, in_child([] {
                  World world(World::all);
                  world.each([&](int rank) {
                      auto *byte = reinterpret_cast<uint8_t *>(world.data[rank]);
                      byte[0] = 0x38; /* 1.0 in e4m3 */
                      byte[1] = 0x3c; /* 1.0 in e5m2 */
                      auto stream = reinterpret_cast<cudaStream_t>(world.streams[rank]);
                      NC_OK(ncclAllReduce(byte, byte, 1, ncclFloat8e4m3, ncclSum, world.comms[rank],
                                          stream));
                      NC_OK(ncclAllReduce(byte + 1, byte + 1, 1, ncclFloat8e5m2, ncclSum,
                                          world.comms[rank], stream));
                      CU_OK(cuStreamSynchronize(world.streams[rank]));
                      EXPECT_EQ(0x40, byte[0]);
                      EXPECT_EQ(0x40, byte[1]);
                  });
              }));
}

} // namespace
