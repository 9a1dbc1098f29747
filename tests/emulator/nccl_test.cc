/* SPDX-License-Identifier: Apache-2.0 */
/* The emulated NCCL: ranks as threads and as processes against a reference computed here. */
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <thread>

#include <dlfcn.h>
#include <nccl.h>

#include "tests/emulator/child.h"

#define NC_OK(call) ASSERT_EQ(ncclSuccess, call) << ncclGetLastError(nullptr)

namespace {

using emulator::in_child;
using emulator::in_children;
using emulator::use_device;

/* One rank: a communicator, a stream, buffers of int32 in device memory (which is host memory
 * here). */
struct Rank {
    int rank;
    int nranks;
    ncclComm_t comm = nullptr;
    CUstream stream = nullptr;

    Rank(int rank, int nranks, const ncclUniqueId &id) : rank(rank), nranks(nranks)
    {
        int count = 0;
        EXPECT_EQ(CUDA_SUCCESS, cuInit(0));
        EXPECT_EQ(CUDA_SUCCESS, cuDeviceGetCount(&count));
        use_device(rank % count);
        EXPECT_EQ(CUDA_SUCCESS, cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        EXPECT_EQ(ncclSuccess, ncclCommInitRank(&comm, nranks, id, rank))
            << ncclGetLastError(nullptr);
    }

    template <typename T> T *buffer(size_t count)
    {
        CUdeviceptr pointer = 0;
        EXPECT_EQ(CUDA_SUCCESS, cuMemAlloc(&pointer, (count + 1) * sizeof(T)));
        return reinterpret_cast<T *>(pointer);
    }

    void finish()
    {
        ASSERT_EQ(CUDA_SUCCESS, cuStreamSynchronize(stream));
        ASSERT_EQ(ncclSuccess, ncclCommDestroy(comm));
        ASSERT_EQ(CUDA_SUCCESS, cuStreamDestroy(stream));
    }
};

void as_threads(int nranks, const std::function<void(int, const ncclUniqueId &)> &body)
{
    ncclUniqueId id;
    NC_OK(ncclGetUniqueId(&id));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < nranks; rank++) {
        threads.emplace_back([&, rank] { body(rank, id); });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
}

int value(int rank, size_t i)
{
    return int(rank * 1000 + i % 977);
}

void every_collective(int rank, int nranks, const ncclUniqueId &id, size_t count)
{
    Rank self(rank, nranks, id);
    int *in = self.buffer<int>(count * nranks);
    int *out = self.buffer<int>(count * nranks);
    int root = nranks - 1;
    for (size_t i = 0; i < count * nranks; i++) {
        in[i] = value(rank, i);
    }

    NC_OK(ncclAllReduce(in, out, count, ncclInt32, ncclSum, self.comm, self.stream));
    CU_OK(cuStreamSynchronize(self.stream));
    for (size_t i = 0; i < count; i++) {
        int expected = 0;
        for (int r = 0; r < nranks; r++) {
            expected += value(r, i);
        }
        ASSERT_EQ(expected, out[i]) << i;
    }

    memset(out, 0x55, count * nranks * sizeof(int));
    NC_OK(ncclReduce(in, out, count, ncclInt32, ncclMax, root, self.comm, self.stream));
    CU_OK(cuStreamSynchronize(self.stream));
    for (size_t i = 0; i < count; i++) {
        ASSERT_EQ(rank == root ? value(nranks - 1, i) : 0x55555555, out[i]);
    }

    NC_OK(ncclReduceScatter(in, out, count, ncclInt32, ncclMin, self.comm, self.stream));
    CU_OK(cuStreamSynchronize(self.stream));
    for (size_t i = 0; i < count; i++) {
        ASSERT_EQ(value(0, rank * count + i), out[i]);
    }

    NC_OK(ncclAllGather(in, out, count, ncclInt32, self.comm, self.stream));
    CU_OK(cuStreamSynchronize(self.stream));
    for (int r = 0; r < nranks; r++) {
        for (size_t i = 0; i < count; i++) {
            ASSERT_EQ(value(r, i), out[r * count + i]);
        }
    }

    NC_OK(ncclAlltoAll(in, out, count, ncclInt32, self.comm, self.stream));
    CU_OK(cuStreamSynchronize(self.stream));
    for (int r = 0; r < nranks; r++) {
        for (size_t i = 0; i < count; i++) {
            ASSERT_EQ(value(r, rank * count + i), out[r * count + i]);
        }
    }

    NC_OK(ncclGather(in, out, count, ncclInt32, root, self.comm, self.stream));
    CU_OK(cuStreamSynchronize(self.stream));
    for (int r = 0; r < nranks && rank == root; r++) {
        ASSERT_EQ(value(r, count - 1), out[r * count + count - 1]);
    }

    NC_OK(ncclScatter(in, out, count, ncclInt32, root, self.comm, self.stream));
    CU_OK(cuStreamSynchronize(self.stream));
    ASSERT_EQ(value(root, rank * count), out[0]);

    NC_OK(ncclGroupStart());
    NC_OK(ncclSend(in, count, ncclInt32, (rank + 1) % nranks, self.comm, self.stream));
    NC_OK(ncclRecv(out, count, ncclInt32, (rank + nranks - 1) % nranks, self.comm, self.stream));
    NC_OK(ncclGroupEnd());
    CU_OK(cuStreamSynchronize(self.stream));
    ASSERT_EQ(value((rank + nranks - 1) % nranks, count - 1), out[count - 1]);

    NC_OK(ncclBcast(in, count, ncclInt32, root, self.comm, self.stream));
    CU_OK(cuStreamSynchronize(self.stream));
    ASSERT_EQ(value(root, count / 2), in[count / 2]);
    self.finish();
}

TEST(EmulatedNccl, ThreadsGetRightResults)
{
    for (int nranks : {1, 2, 3, 8}) {
        EXPECT_EQ(0, in_child([=] {
                      as_threads(nranks, [=](int rank, const ncclUniqueId &id) {
                          every_collective(rank, nranks, id, 70001); /* several rounds and rings */
                      });
                  }))
            << nranks;
    }
}

TEST(EmulatedNccl, ProcessesGetRightResults)
{
    for (int nranks : {1, 2, 5}) {
        EXPECT_EQ(0, in_child([=] {
                      ncclUniqueId id;
                      NC_OK(ncclGetUniqueId(
                          &id)); /* a parent that made the id and never used the driver */
                      EXPECT_EQ(0, in_children(nranks, [&](int rank) {
                                    every_collective(rank, nranks, id, 1003);
                                }));
                  }))
            << nranks;
    }
}

template <typename T> void reduce_as(ncclDataType_t type, T one, T two, T three, T sum, T average)
{
    as_threads(3, [=](int rank, const ncclUniqueId &id) {
        Rank self(rank, 3, id);
        T *data = self.buffer<T>(5);
        T *out = self.buffer<T>(5);
        for (int i = 0; i < 5; i++) {
            data[i] = rank == 0 ? one : rank == 1 ? two : three;
        }
        NC_OK(ncclAllReduce(data, out, 5, type, ncclSum, self.comm, self.stream));
        NC_OK(ncclAllReduce(data, data, 5, type, ncclAvg, self.comm, self.stream));
        CU_OK(cuStreamSynchronize(self.stream));
        for (int i = 0; i < 5; i++) {
            EXPECT_EQ(sum, out[i]) << type;
            EXPECT_EQ(average, data[i]) << type;
        }
        self.finish();
    });
}

TEST(EmulatedNccl, EveryTypeIsReducedInItsOwnWay)
{
    EXPECT_EQ(0, in_child([] {
                  reduce_as<int8_t>(ncclInt8, 100, 100, 100, 44, 14);
                  reduce_as<uint8_t>(ncclUint8, 1, 2, 3, 6, 2);
                  reduce_as<int32_t>(ncclInt32, -1, -2, -3, -6, -2);
                  reduce_as<uint32_t>(ncclUint32, 1, 2, 3, 6, 2);
                  reduce_as<int64_t>(ncclInt64, int64_t(1) << 40, 2, 3, (int64_t(1) << 40) + 5,
                                     366503875927);
                  reduce_as<uint64_t>(ncclUint64, ~uint64_t(0), 2, 3, 4, 1);
                  /* fp16: 1, 2^-11, 2^-11: the halves survive only in a wider accumulator */
                  reduce_as<uint16_t>(ncclFloat16, 0x3c00, 0x1000, 0x1000, 0x3c01, 0x3557);
                  /* bf16: 1, 2^-8, 2^-8 */
                  reduce_as<uint16_t>(ncclBfloat16, 0x3f80, 0x3b80, 0x3b80, 0x3f81, 0x3eac);
                  reduce_as<float>(ncclFloat32, 1e8f, 1.0f, -1e8f, 0.0f, 0.0f); /* rank order */
                  reduce_as<double>(ncclFloat64, 1.5, 2.5, 2.0, 6.0, 2.0);
              }));
}

TEST(EmulatedNccl, PreMultipliedSumsScaleTheInputs)
{
    EXPECT_EQ(
        0, in_child([] {
            as_threads(2, [](int rank, const ncclUniqueId &id) {
                Rank self(rank, 2, id);
                float *data = self.buffer<float>(1);
                float *scalar = self.buffer<float>(1);
                float factor = rank == 0 ? 2.0f : 10.0f;
                ncclRedOp_t host;
                ncclRedOp_t device;
                NC_OK(ncclRedOpCreatePreMulSum(&host, &factor, ncclFloat32, ncclScalarHostImmediate,
                                               self.comm));
                NC_OK(ncclRedOpCreatePreMulSum(&device, scalar, ncclFloat32, ncclScalarDevice,
                                               self.comm));
                EXPECT_EQ(ncclInvalidArgument,
                          ncclAllReduce(data, data, 1, ncclFloat64, host, self.comm, self.stream));
                *data = 3.0f;
                *scalar = 5.0f;
                NC_OK(ncclGroupStart());
                NC_OK(ncclAllReduce(data, data, 1, ncclFloat32, host, self.comm, self.stream));
                NC_OK(ncclRedOpDestroy(host, self.comm)); /* before the group ends */
                NC_OK(ncclGroupEnd());
                NC_OK(ncclAllReduce(data, data, 1, ncclFloat32, device, self.comm, self.stream));
                CU_OK(cuStreamSynchronize(self.stream));
                EXPECT_EQ(360.0f, *data);
                EXPECT_EQ(ncclInvalidArgument, ncclRedOpDestroy(host, self.comm));
                self.finish();
            });
        }));
}

TEST(EmulatedNccl, OneThreadDrivesSeveralGpusInAGroup)
{
    EXPECT_EQ(0, in_child([] {
                  setenv("LAMPREY_EMULATOR_GPUS", "4", 1);
                  ncclComm_t comms[4];
                  CUstream streams[4];
                  int *data[4];
                  NC_OK(ncclCommInitAll(comms, 4, nullptr));
                  for (int i = 0; i < 4; i++) {
                      use_device(i);
                      CUdeviceptr pointer = 0;
                      CU_OK(cuStreamCreate(&streams[i], 0));
                      CU_OK(cuMemAlloc(&pointer, 4));
                      data[i] = reinterpret_cast<int *>(pointer);
                      *data[i] = i + 1;
                      int device = -1;
                      NC_OK(ncclCommCuDevice(comms[i], &device));
                      EXPECT_EQ(i, device);
                  }
                  NC_OK(ncclGroupStart());
                  for (int repeat = 0; repeat < 2; repeat++) {
                      NC_OK(ncclGroupStart());
                      for (int i = 0; i < 4; i++) {
                          NC_OK(ncclAllReduce(data[i], data[i], 1, ncclInt32, ncclSum, comms[i],
                                              streams[i]));
                      }
                      NC_OK(ncclGroupEnd());
                  }
                  CUdevice current = -1;
                  CU_OK(cuCtxGetDevice(&current));
                  EXPECT_EQ(1, *data[0]); /* nothing is launched before the outermost end */
                  NC_OK(ncclGroupEnd());
                  for (int i = 0; i < 4; i++) {
                      CU_OK(cuStreamSynchronize(streams[i]));
                      EXPECT_EQ(40, *data[i]);
                      NC_OK(ncclCommDestroy(comms[i]));
                  }
                  CUdevice after = -1;
                  CU_OK(cuCtxGetDevice(&after));
                  EXPECT_EQ(current, after);
              }));
}

TEST(EmulatedNccl, AnErrorInAGroupLaunchesNothing)
{
    EXPECT_EQ(
        0, in_child([] {
            as_threads(2, [](int rank, const ncclUniqueId &id) {
                Rank self(rank, 2, id);
                int *data = self.buffer<int>(1);
                *data = 1;
                NC_OK(ncclGroupStart());
                NC_OK(ncclAllReduce(data, data, 1, ncclInt32, ncclSum, self.comm, self.stream));
                EXPECT_EQ(ncclInvalidArgument, ncclAllReduce(data, data, 1, ncclDataType_t(99),
                                                             ncclSum, self.comm, self.stream));
                EXPECT_EQ(ncclInvalidArgument, ncclGroupEnd());
                CU_OK(cuStreamSynchronize(self.stream));
                EXPECT_EQ(1, *data);
                EXPECT_EQ(ncclInvalidUsage, ncclGroupEnd());
                NC_OK(ncclAllReduce(data, data, 1, ncclInt32, ncclSum, self.comm, self.stream));
                CU_OK(cuStreamSynchronize(self.stream));
                EXPECT_EQ(2, *data);
                self.finish();
            });
        }));
}

TEST(EmulatedNccl, BadArgumentsGetNcclsCodes)
{
    EXPECT_EQ(
        0, in_child([] {
            ncclUniqueId id;
            ncclUniqueId nonsense = {};
            ncclComm_t comm = nullptr;
            NC_OK(ncclGetUniqueId(&id));
            EXPECT_EQ(ncclInvalidArgument, ncclGetUniqueId(nullptr));
            EXPECT_EQ(ncclInvalidArgument, ncclCommInitRank(&comm, 1, nonsense, 0));
            EXPECT_EQ(ncclInvalidArgument, ncclCommInitRank(&comm, 1, id, 1));
            EXPECT_EQ(ncclInvalidArgument, ncclCommInitRank(nullptr, 1, id, 0));
            Rank self(0, 1, id);
            int *data = self.buffer<int>(1);
            CUstream s = self.stream;
            comm = self.comm;
            EXPECT_EQ(ncclInvalidArgument,
                      ncclAllReduce(data, data, 1, ncclInt32, ncclSum, nullptr, s));
            EXPECT_EQ(ncclInvalidArgument, ncclAllReduce(data, data, 1, ncclInt32, ncclSum,
                                                         reinterpret_cast<ncclComm_t>(&id), s));
            EXPECT_EQ(ncclInvalidArgument,
                      ncclAllReduce(data, data, 1, ncclInt32, ncclRedOp_t(5), comm, s));
            EXPECT_EQ(ncclInvalidArgument,
                      ncclAllReduce(data, data, 1, ncclInt32, ncclRedOp_t(-1), comm, s));
            EXPECT_EQ(ncclInvalidArgument,
                      ncclAllReduce(data, data, 0, ncclDataType_t(-1), ncclSum, comm, s));
            EXPECT_EQ(ncclInvalidArgument, ncclBroadcast(data, data, 1, ncclInt32, 1, comm, s));
            EXPECT_EQ(ncclInvalidArgument, ncclSend(data, 1, ncclInt32, -1, comm, s));
            EXPECT_EQ(ncclSuccess, ncclAllReduce(nullptr, nullptr, 0, ncclInt32, ncclSum, comm, s));
            EXPECT_EQ(ncclSuccess, ncclCommDestroy(nullptr));
            EXPECT_EQ(ncclInvalidArgument, ncclCommCount(nullptr, nullptr));
            ncclConfig_t config = {};
            EXPECT_EQ(ncclInvalidArgument, ncclCommInitRankConfig(&comm, 1, id, 0, &config));
            NC_OK(ncclCommFinalize(self.comm));
            EXPECT_EQ(ncclInvalidArgument, ncclCommFinalize(self.comm));
            comm = self.comm;
            self.finish();
            EXPECT_EQ(ncclInvalidArgument, ncclCommDestroy(comm));
            EXPECT_EQ(ncclInvalidArgument,
                      ncclAllReduce(data, data, 1, ncclInt32, ncclSum, comm, s));
        }));
}

TEST(EmulatedNccl, AnIdServesOneSetOfRanks)
{
    EXPECT_EQ(0, in_child([] {
                  as_threads(2, [&](int, const ncclUniqueId &id) {
                      use_device(0);
                      ncclComm_t comm = nullptr;
                      /* whoever comes first waits for a rank 1 that never comes */
                      EXPECT_EQ(ncclInvalidUsage, ncclCommInitRank(&comm, 2, id, 0));
                      /* two were served */
                      EXPECT_EQ(ncclSystemError, ncclCommInitRank(&comm, 2, id, 1));
                      fflush(stdout);
                      _exit(testing::Test::HasFailure());
                  });
              }));
}

TEST(EmulatedNccl, WorkOfACommunicatorIsInOrderOnAnyStreams)
{
    EXPECT_EQ(
        0, in_child([] {
            as_threads(2, [](int rank, const ncclUniqueId &id) {
                Rank self(rank, 2, id);
                CUstream others[3];
                int *data = self.buffer<int>(1);
                *data = 1;
                for (CUstream &stream : others) {
                    CU_OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
                }
                for (int i = 0; i < 18; i++) {
                    NC_OK(
                        ncclAllReduce(data, data, 1, ncclInt32, ncclSum, self.comm, others[i % 3]));
                }
                CU_OK(cuStreamSynchronize(others[17 % 3]));
                EXPECT_EQ(1 << 18, *data);
                /* in a group the streams join: all of them wait for all */
                NC_OK(ncclGroupStart());
                for (CUstream stream : others) {
                    NC_OK(ncclAllReduce(data, data, 1, ncclInt32, ncclSum, self.comm, stream));
                }
                NC_OK(ncclGroupEnd());
                CU_OK(cuStreamSynchronize(others[0]));
                EXPECT_EQ(1 << 21, *data);
                self.finish();
            });
        }));
}

TEST(EmulatedNccl, ReplaysAndLiveCallsMixInOrder)
{
    EXPECT_EQ(
        0, in_child([] {
            as_threads(2, [](int rank, const ncclUniqueId &id) {
                Rank self(rank, 2, id);
                CUstream live = nullptr;
                CUstream forked = nullptr;
                CUevent fork = nullptr;
                CUevent join = nullptr;
                CUgraph graph = nullptr;
                CUgraphExec exec = nullptr;
                unsigned *data = self.buffer<unsigned>(1);
                *data = 1;
                CU_OK(cuStreamCreate(&live, CU_STREAM_NON_BLOCKING));
                CU_OK(cuStreamCreate(&forked, CU_STREAM_NON_BLOCKING));
                CU_OK(cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING));
                CU_OK(cuEventCreate(&join, CU_EVENT_DISABLE_TIMING));
                CU_OK(cuStreamBeginCapture(self.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
                CU_OK(cuEventRecord(fork, self.stream));
                CU_OK(cuStreamWaitEvent(forked, fork, 0));
                NC_OK(ncclAllReduce(data, data, 1, ncclUint32, ncclSum, self.comm, self.stream));
                NC_OK(ncclAllReduce(data, data, 1, ncclUint32, ncclSum, self.comm, forked));
                CU_OK(cuEventRecord(join, forked));
                CU_OK(cuStreamWaitEvent(self.stream, join, 0));
                CU_OK(cuStreamEndCapture(self.stream, &graph));
                CU_OK(cuGraphInstantiate(&exec, graph, 0));
                CU_OK(cuGraphDestroy(graph));
                for (int i = 0; i < 10; i++) {
                    CU_OK(cuGraphLaunch(exec, self.stream));
                    NC_OK(ncclAllReduce(data, data, 1, ncclUint32, ncclSum, self.comm, live));
                }
                CU_OK(cuStreamSynchronize(live));
                EXPECT_EQ(1u << 30, *data);
                CU_OK(cuGraphExecDestroy(exec));
                self.finish();
            });
        }));
}

TEST(EmulatedNccl, SplitAndShrinkMakeChildren)
{
    EXPECT_EQ(
        0, in_child([] {
            as_threads(4, [](int rank, const ncclUniqueId &id) {
                Rank self(rank, 4, id);
                ncclComm_t child = nullptr;
                int *data = self.buffer<int>(1);
                int size = 0;
                int place = -1;
                /* ranks 0, 1, 3 by falling key; rank 2 stays out */
                NC_OK(ncclCommSplit(self.comm, rank == 2 ? NCCL_SPLIT_NOCOLOR : 5, -rank, &child,
                                    nullptr));
                if (rank == 2) {
                    EXPECT_EQ(nullptr, child);
                } else {
                    NC_OK(ncclCommCount(child, &size));
                    NC_OK(ncclCommUserRank(child, &place));
                    EXPECT_EQ(3, size);
                    EXPECT_EQ(rank == 3 ? 0 : rank == 1 ? 1 : 2, place);
                    *data = rank;
                    NC_OK(ncclAllReduce(data, data, 1, ncclInt32, ncclSum, child, self.stream));
                    CU_OK(cuStreamSynchronize(self.stream));
                    EXPECT_EQ(4, *data);
                    NC_OK(ncclCommDestroy(child));
                }
                if (rank != 0) {
                    int excluded[] = {0};
                    NC_OK(ncclCommShrink(self.comm, excluded, 1, &child, nullptr,
                                         NCCL_SHRINK_DEFAULT));
                    *data = rank;
                    NC_OK(ncclAllReduce(data, data, 1, ncclInt32, ncclSum, child, self.stream));
                    CU_OK(cuStreamSynchronize(self.stream));
                    EXPECT_EQ(6, *data);
                    NC_OK(ncclCommDestroy(child));
                }
                self.finish();
            });
        }));
}

TEST(EmulatedNccl, AbortAndRevokeEndWaits)
{
    EXPECT_EQ(
        0, in_child([] {
            as_threads(2, [](int rank, const ncclUniqueId &id) {
                Rank self(rank, 2, id);
                int *data = self.buffer<int>(1);
                if (rank == 0) {
                    NC_OK(ncclAllReduce(data, data, 1, ncclInt32, ncclSum, self.comm, self.stream));
                    usleep(10000);
                    EXPECT_EQ(CUDA_ERROR_NOT_READY, cuStreamQuery(self.stream));
                    NC_OK(ncclCommRevoke(self.comm, 0));
                    CU_OK(cuStreamSynchronize(self.stream));
                    EXPECT_EQ(ncclInvalidUsage, ncclAllReduce(data, data, 1, ncclInt32, ncclSum,
                                                              self.comm, self.stream));
                    NC_OK(ncclCommAbort(self.comm));
                } else {
                    NC_OK(ncclRecv(data, 1, ncclInt32, 0, self.comm, self.stream));
                    std::thread watchdog([&] {
                        usleep(10000);
                        EXPECT_EQ(ncclSuccess, ncclCommAbort(self.comm));
                    });
                    CU_OK(cuStreamSynchronize(self.stream));
                    watchdog.join();
                }
            });
        }));
}

TEST(EmulatedNccl, RanksThatDisagreeAreReported)
{
    EXPECT_EQ(0, in_child([] {
                  as_threads(2, [](int rank, const ncclUniqueId &id) {
                      Rank self(rank, 2, id);
                      int *data = self.buffer<int>(8);
                      ncclResult_t error = ncclSuccess;
                      NC_OK(ncclAllReduce(data, data, rank == 0 ? 4 : 5, ncclInt32, ncclSum,
                                          self.comm, self.stream));
                      CU_OK(cuStreamSynchronize(self.stream));
                      NC_OK(ncclCommGetAsyncError(self.comm, &error));
                      EXPECT_EQ(ncclInvalidUsage, error);
                      EXPECT_EQ(ncclInvalidUsage, ncclAllReduce(data, data, 1, ncclInt32, ncclSum,
                                                                self.comm, self.stream));
                      NC_OK(ncclCommAbort(self.comm));
                  });
              }));
}

TEST(EmulatedNccl, AStreamOfAnotherDeviceIsRefused)
{
    EXPECT_EQ(0, in_child([] {
                  ncclUniqueId id;
                  NC_OK(ncclGetUniqueId(&id));
                  Rank self(0, 1, id);
                  int *data = self.buffer<int>(1);
                  CUstream foreign = nullptr;
                  use_device(1);
                  CU_OK(cuStreamCreate(&foreign, 0));
                  EXPECT_EQ(ncclUnhandledCudaError,
                            ncclAllReduce(data, data, 1, ncclInt32, ncclSum, self.comm, foreign));
                  self.finish();
              }));
}

TEST(EmulatedNccl, EveryNameHasItsTwinAtTheSameAddress)
{
    for (const char *name : {"ncclAllReduce", "ncclCommInitRank", "ncclGroupEnd", "ncclCommDestroy",
                             "ncclGetVersion", "ncclCommGetAsyncError"}) {
        void *weak = dlsym(RTLD_DEFAULT, name);
        void *strong = dlsym(RTLD_DEFAULT, (std::string("p") + name).c_str());
        EXPECT_NE(nullptr, weak) << name;
        EXPECT_EQ(weak, strong) << name;
        EXPECT_EQ(0u, reinterpret_cast<uintptr_t>(weak) % 16) << name;
    }
    EXPECT_EQ(0, in_child([] {
                  int version = 0;
                  NC_OK(ncclGetVersion(&version));
                  EXPECT_EQ(22809, version);
              }));
}

TEST(EmulatedNccl, FailsWhereItIsAskedTo)
{
    EXPECT_EQ(
        0, in_child([] {
            setenv("LAMPREY_EMULATOR_NCCL_FAIL", "ncclAllGather:2,ncclGroupEnd:1:2", 1);
            ncclUniqueId id;
            NC_OK(ncclGetUniqueId(&id));
            Rank self(0, 1, id);
            int *data = self.buffer<int>(1);
            int *out = self.buffer<int>(1);
            *data = 4;
            EXPECT_EQ(ncclSuccess, ncclAllGather(data, out, 1, ncclInt32, self.comm, self.stream));
            EXPECT_EQ(ncclInternalError,
                      ncclAllGather(data, out, 1, ncclInt32, self.comm, self.stream));
            EXPECT_EQ(ncclSuccess, ncclAllGather(data, out, 1, ncclInt32, self.comm, self.stream));
            NC_OK(ncclGroupStart());
            EXPECT_EQ(ncclSystemError, ncclGroupEnd());
            self.finish();
        }));
}

TEST(EmulatedNccl, MemoryOfItsAllocatorWorks)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(1);
                  void *pointer = nullptr;
                  NC_OK(ncclMemAlloc(&pointer, 100));
                  CU_OK(cuMemsetD8(reinterpret_cast<CUdeviceptr>(pointer), 3, 100));
                  EXPECT_EQ(3, static_cast<char *>(pointer)[99]);
                  NC_OK(ncclMemFree(pointer));
                  EXPECT_EQ(ncclUnhandledCudaError, ncclMemFree(pointer));
              }));
}

} // namespace
