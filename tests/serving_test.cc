// SPDX-License-Identifier: Apache-2.0
// Whole programs against the plugin that ships: ranks as processes and as threads, in the emulator.
// Every scenario checks the sums bit for bit and what became of the calls.
#include <cuda.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <nccl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "plugin/lamprey.h"
#include "tests/reference.h"

extern "C" void lampreyEmulatorCounts(size_t *mappings, size_t *allocations, size_t *handles,
                                      size_t *streams, size_t *events);

namespace {

using lamprey_test::element_type;

constexpr int kDeadlineSeconds = 120;

// What a child finds wrong ends it with a message; the parent sees the exit code.
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: rank %d: %s doesn't hold\n", __FILE__, __LINE__, current_rank, \
                    #condition);                                                                   \
            _exit(3);                                                                              \
        }                                                                                          \
    } while (0)

thread_local int current_rank = -1;

struct Shared {
    ncclUniqueId id;
    int id_ready;
    int arrived;
    int settled[64];
    char note[8][256];
};

Shared *shared;

void meet(int nranks)
{
    const int ticket = __atomic_fetch_add(&shared->arrived, 1, __ATOMIC_SEQ_CST);
    const int target = (ticket / nranks + 1) * nranks;
    while (__atomic_load_n(&shared->arrived, __ATOMIC_SEQ_CST) < target) {
        usleep(200);
    }
}

void share_id(int rank)
{
    if (rank == 0) {
        REQUIRE(ncclGetUniqueId(&shared->id) == ncclSuccess);
        __atomic_store_n(&shared->id_ready, 1, __ATOMIC_RELEASE);
    }
    while (!__atomic_load_n(&shared->id_ready, __ATOMIC_ACQUIRE)) {
        usleep(200);
    }
}

lampreyStats stats_of(ncclComm_t comm)
{
    using function = ncclResult_t (*)(ncclComm_t, lampreyStats *);
    static function get = [] {
        void *library = dlopen(getenv("LAMPREY_TEST_PLUGIN"), RTLD_NOW | RTLD_NOLOAD);
        return library ? (function)dlsym(library, "lampreyGetStats") : nullptr;
    }();
    lampreyStats stats = {};
    stats.size = sizeof stats;
    REQUIRE(get != nullptr);
    REQUIRE(get(comm, &stats) == ncclSuccess);
    return stats;
}

size_t streams()
{
    size_t counts[5];
    lampreyEmulatorCounts(&counts[0], &counts[1], &counts[2], &counts[3], &counts[4]);
    return counts[3];
}

// One rank's buffers on one GPU.
struct Rank {
    int rank;
    int nranks;
    CUcontext context = nullptr;
    CUstream stream = nullptr;
    ncclComm_t comm = nullptr;
    CUdeviceptr send = 0;
    CUdeviceptr recv = 0;
    static constexpr size_t bytes = 4 << 20;

    Rank(int rank_, int nranks_) : rank(rank_), nranks(nranks_)
    {
        CUdevice device;
        int gpus = 0;
        current_rank = rank;
        REQUIRE(cuInit(0) == CUDA_SUCCESS && cuDeviceGetCount(&gpus) == CUDA_SUCCESS);
        REQUIRE(cuDeviceGet(&device, rank % gpus) == CUDA_SUCCESS);
        REQUIRE(cuDevicePrimaryCtxRetain(&context, device) == CUDA_SUCCESS);
        REQUIRE(cuCtxSetCurrent(context) == CUDA_SUCCESS);
        REQUIRE(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
        REQUIRE(cuMemAlloc(&send, bytes) == CUDA_SUCCESS &&
                cuMemAlloc(&recv, bytes) == CUDA_SUCCESS);
    }

    void use() const
    {
        current_rank = rank;
        REQUIRE(cuCtxSetCurrent(context) == CUDA_SUCCESS);
    }

    std::vector<uint8_t> input_of(int other, element_type type, size_t count, uint64_t seed) const
    {
        return lamprey_test::make_data(type, count, lamprey_test::data_kind::numbers,
                                       seed * 64 + other);
    }

    void fill(element_type type, size_t count, uint64_t seed)
    {
        const std::vector<uint8_t> own = input_of(rank, type, count, seed);
        REQUIRE(cuMemcpyHtoDAsync(send, own.data(), own.size(), stream) == CUDA_SUCCESS);
        REQUIRE(cuMemsetD8Async(recv, 0x5a, own.size(), stream) == CUDA_SUCCESS);
        REQUIRE(cuStreamSynchronize(stream) == CUDA_SUCCESS);
    }

    // exact: the plugin's sums; else NCCL's, which may round otherwise.
    void check(element_type type, size_t count, uint64_t seed, bool exact)
    {
        std::vector<std::vector<uint8_t>> inputs;
        for (int other = 0; other < nranks; other++) {
            inputs.push_back(input_of(other, type, count, seed));
        }
        const std::vector<uint8_t> expected = lamprey_test::all_reduce_sum(type, inputs);
        std::vector<uint8_t> got(expected.size());
        REQUIRE(cuStreamSynchronize(stream) == CUDA_SUCCESS);
        REQUIRE(cuMemcpyDtoH(got.data(), recv, got.size()) == CUDA_SUCCESS);
        if (exact) {
            REQUIRE(memcmp(got.data(), expected.data(), got.size()) == 0);
            return;
        }
        for (size_t i = 0; i < count; i++) {
            const float a = lamprey_test::load_element(type, got.data(), i);
            const float b = lamprey_test::load_element(type, expected.data(), i);
            REQUIRE(fabsf(a - b) <= 0.05f * nranks);
        }
    }

    static ncclDataType_t nccl_type(element_type type)
    {
        return type == LAMPREY_REFERENCE_F16    ? ncclFloat16
               : type == LAMPREY_REFERENCE_BF16 ? ncclBfloat16
                                                : ncclFloat32;
    }

    ncclResult_t all_reduce(element_type type, size_t count)
    {
        return ncclAllReduce((void *)send, (void *)recv, count, nccl_type(type), ncclSum, comm,
                             (cudaStream_t)stream);
    }

    // A first call whose peer doesn't come: another thread aborts it after meanwhile has returned,
    // in the exchange, which has a stream of its own.
    void all_reduce_until_abort(size_t count, const std::function<void()> &meanwhile)
    {
        const size_t before = streams();
        std::thread aborter([&] {
            while (streams() == before) {
                usleep(200);
            }
            meanwhile();
            REQUIRE(ncclCommAbort(comm) == ncclSuccess);
        });
        all_reduce(LAMPREY_REFERENCE_BF16, count);
        aborter.join();
    }

    void round(element_type type, size_t count, uint64_t seed, bool exact = true)
    {
        fill(type, count, seed);
        REQUIRE(all_reduce(type, count) == ncclSuccess);
        check(type, count, seed, exact);
    }

    void init()
    {
        share_id(rank);
        REQUIRE(ncclCommInitRank(&comm, nranks, shared->id, rank) == ncclSuccess);
    }
};

class Serving : public ::testing::Test {
  protected:
    void SetUp() override
    {
        shared = (Shared *)mmap(nullptr, sizeof *shared, PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        ASSERT_NE(shared, MAP_FAILED);
        char here[4096];
        ASSERT_NE(getcwd(here, sizeof here), nullptr);
        plugin_ = std::string(here) + "/plugin/liblamprey.so";
        setenv("LAMPREY_TEST_PLUGIN", plugin_.c_str(), 1);
        setenv("NCCL_TUNER_PLUGIN", plugin_.c_str(), 1);
        setenv("LAMPREY_TOPOLOGY", (std::string(here) + "/tests/fixtures/emulator-8.xml").c_str(),
               1);
        setenv("LAMPREY_EMULATOR_GPUS", "8", 1);
        install_beside();
    }

    void TearDown() override
    {
        munmap(shared, sizeof *shared);
    }

    // The topology library lies beside the plugin in an install; in the build tree it doesn't.
    void install_beside()
    {
        const char *parent = getenv("TEST_TMPDIR");
        std::string directory = std::string(parent ? parent : ".") + "/lamprey-serving-XXXXXX";
        ASSERT_NE(mkdtemp(&directory[0]), nullptr);
        directory_ = directory;
        copy("plugin/liblamprey.so", "liblamprey.so");
        copy("topology/liblamprey-topology.so", "liblamprey-topology.so");
        plugin_ = directory_ + "/liblamprey.so";
        setenv("LAMPREY_TEST_PLUGIN", plugin_.c_str(), 1);
        setenv("NCCL_TUNER_PLUGIN", plugin_.c_str(), 1);
    }

    void copy(const char *from, const char *to)
    {
        const std::string command = std::string("cp -L ") + from + " " + directory_ + "/" + to;
        ASSERT_EQ(system(command.c_str()), 0) << command;
    }

    ~Serving() override
    {
        if (!directory_.empty()) {
            unlink((directory_ + "/liblamprey.so").c_str());
            unlink((directory_ + "/liblamprey-topology.so").c_str());
            rmdir(directory_.c_str());
        }
    }

    // One process per rank; every one must end well before the deadline.
    void processes(int nranks, const std::function<void(int)> &body)
    {
        std::vector<pid_t> children;
        fflush(stdout);
        for (int rank = 0; rank < nranks; rank++) {
            pid_t child = fork();
            if (child == 0) {
                current_rank = rank;
                alarm(kDeadlineSeconds + 30);
                body(rank);
                fflush(nullptr);
                _exit(0);
            }
            children.push_back(child);
        }
        const auto deadline =
            std::chrono::steady_clock::now() + std::chrono::seconds(kDeadlineSeconds);
        bool failed = false;
        for (size_t left = children.size(); left > 0;) {
            int status = 0;
            pid_t child = waitpid(-1, &status, WNOHANG);
            if (child > 0) {
                left--;
                EXPECT_EQ(status, 0) << "a rank ended with status " << status;
                failed = failed || status != 0;
            } else if (failed || std::chrono::steady_clock::now() > deadline) {
                EXPECT_TRUE(failed) << "the ranks hang";
                for (pid_t victim : children) {
                    kill(victim, SIGKILL);
                }
                while (waitpid(-1, &status, 0) > 0) {
                }
                return;
            } else {
                usleep(2000);
            }
        }
    }

    // One thread per rank, in a child process.
    void threads(int nranks, const std::function<void(int)> &body)
    {
        processes(1, [&](int) {
            std::vector<std::thread> ranks;
            for (int rank = 0; rank < nranks; rank++) {
                ranks.emplace_back([&, rank] { body(rank); });
            }
            for (std::thread &rank : ranks) {
                rank.join();
            }
        });
    }

    void expect_refused(int nranks, const std::function<void(int)> &prepare)
    {
        processes(nranks, [&](int rank) {
            prepare(rank);
            Rank self(rank, nranks);
            self.init();
            for (uint64_t i = 0; i < 3; i++) {
                self.round(LAMPREY_REFERENCE_F32, 1000, i, false);
            }
            const lampreyStats stats = stats_of(self.comm);
            REQUIRE(stats.served == 0);
            REQUIRE(stats.fallback_communicator == 3);
            REQUIRE(stats.communicators_refused == 1);
            REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
        });
    }

    std::string plugin_;
    std::string directory_;
};

void mixed_rounds(int rank, int nranks)
{
    Rank self(rank, nranks);
    self.init();
    uint64_t seed = 0;
    for (element_type type :
         {LAMPREY_REFERENCE_F16, LAMPREY_REFERENCE_BF16, LAMPREY_REFERENCE_F32}) {
        for (size_t count : {(size_t)1, (size_t)7, (size_t)4096, (size_t)30001}) {
            self.round(type, count, seed++);
        }
    }
    const lampreyStats stats = stats_of(self.comm);
    REQUIRE(stats.served == 12);
    REQUIRE(stats.communicators_served == 1);
    REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
}

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

// Captures count calls into a graph on rank's stream.
CUgraphExec capture(Rank &self, element_type type, size_t elements, int calls)
{
    CUgraph graph = nullptr;
    CUgraphExec executable = nullptr;
    REQUIRE(cuStreamBeginCapture(self.stream, CU_STREAM_CAPTURE_MODE_GLOBAL) == CUDA_SUCCESS);
    for (int i = 0; i < calls; i++) {
        REQUIRE(self.all_reduce(type, elements) == ncclSuccess);
    }
    REQUIRE(cuStreamEndCapture(self.stream, &graph) == CUDA_SUCCESS);
    REQUIRE(cuGraphInstantiate(&executable, graph, 0) == CUDA_SUCCESS);
    REQUIRE(cuGraphDestroy(graph) == CUDA_SUCCESS);
    return executable;
}

TEST_F(Serving, SetsUpInsideACaptureOnOneRankOnly)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.fill(LAMPREY_REFERENCE_BF16, 777, 9);
        if (rank == 0) {
            CUgraphExec graph = capture(self, LAMPREY_REFERENCE_BF16, 777, 1);
            REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS);
        } else {
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_BF16, 777) == ncclSuccess);
        }
        self.check(LAMPREY_REFERENCE_BF16, 777, 9, true);
        REQUIRE(stats_of(self.comm).served == 1);
        REQUIRE(stats_of(self.comm).served_captured == (rank == 0 ? 1u : 0u));
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

TEST_F(Serving, OrdersReplaysWithLiveCallsAndOtherReplays)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        CUstream other = nullptr;
        REQUIRE(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
        self.fill(LAMPREY_REFERENCE_F32, 2048, 3);
        CUgraphExec a = capture(self, LAMPREY_REFERENCE_F32, 2048, 5);
        { // NCCL's own calls in a capture; Bcast calls Broadcast, an empty one adds nothing
            CUgraph graph = nullptr;
            REQUIRE(cuStreamBeginCapture(self.stream, CU_STREAM_CAPTURE_MODE_RELAXED) ==
                    CUDA_SUCCESS);
            REQUIRE(ncclBcast((void *)(self.recv + (2 << 20)), 64, ncclFloat32, 0, self.comm,
                              (cudaStream_t)self.stream) == ncclSuccess);
            REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 0, ncclFloat32, ncclSum,
                                  self.comm, (cudaStream_t)self.stream) == ncclSuccess);
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 64) == ncclSuccess);
            REQUIRE(cuStreamEndCapture(self.stream, &graph) == CUDA_SUCCESS);
            REQUIRE(cuGraphDestroy(graph) == CUDA_SUCCESS);
        }
        CUgraphExec b = capture(self, LAMPREY_REFERENCE_F32, 512, 3);
        for (int i = 0; i < 40; i++) { // nothing joins the two streams but the communicator
            REQUIRE(cuGraphLaunch(a, i % 2 ? self.stream : other) == CUDA_SUCCESS);
            REQUIRE(cuGraphLaunch(b, i % 2 ? other : self.stream) == CUDA_SUCCESS);
            REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 2048, ncclFloat32, ncclSum,
                                  self.comm,
                                  (cudaStream_t)(i % 3 ? self.stream : other)) == ncclSuccess);
            if (i % 5 == 0) { // NCCL's own, on either stream
                REQUIRE(ncclAllGather((void *)self.send, (void *)(self.recv + (1 << 20)), 128,
                                      ncclFloat32, self.comm,
                                      (cudaStream_t)(i % 2 ? other : self.stream)) == ncclSuccess);
            }
        }
        REQUIRE(cuStreamSynchronize(other) == CUDA_SUCCESS);
        self.check(LAMPREY_REFERENCE_F32, 2048, 3, true);
        REQUIRE(cuGraphExecDestroy(a) == CUDA_SUCCESS);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
        REQUIRE(cuGraphExecDestroy(b) == CUDA_SUCCESS); // after the communicator
    });
}

TEST_F(Serving, KeepsOrderOverChangingAndDestroyedStreams)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.fill(LAMPREY_REFERENCE_BF16, 3000, 4);
        for (int i = 0; i < 60; i++) {
            CUstream stream = nullptr;
            REQUIRE(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
            REQUIRE(ncclAllReduce((void *)self.send, (void *)self.recv, 3000, ncclBfloat16, ncclSum,
                                  self.comm, (cudaStream_t)stream) == ncclSuccess);
            REQUIRE(cuStreamDestroy(stream) == CUDA_SUCCESS); // its work goes on
        }
        REQUIRE(self.all_reduce(LAMPREY_REFERENCE_BF16, 3000) == ncclSuccess);
        self.check(LAMPREY_REFERENCE_BF16, 3000, 4, true);
        REQUIRE(stats_of(self.comm).served == 61);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

TEST_F(Serving, LeavesKernelsAndSetUpsOnAbort)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_BF16, 100, 1);
        if (rank == 0) { // its peer doesn't come
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_BF16, 100) == ncclSuccess);
            usleep(50000);
            REQUIRE(cuStreamQuery(self.stream) == CUDA_ERROR_NOT_READY);
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        }
        meet(2);
        if (rank == 1) {
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
        }
    });
    memset(shared, 0, sizeof *shared);
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        if (rank == 0) {
            self.all_reduce_until_abort(100, [] {});
        }
        meet(2);
        if (rank == 1) {
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
        }
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

TEST_F(Serving, LeavesWorldsBeyondEightToNccl)
{
    processes(9, [](int rank) {
        Rank self(rank, 9);
        self.init();
        self.round(LAMPREY_REFERENCE_F32, 100, 1, false);
        REQUIRE(stats_of(self.comm).fallback_communicator == 1);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// The process that makes the id forks its ranks afterwards: they are served like any.
TEST_F(Serving, ServesRanksForkedAfterItWasLoaded)
{
    const std::string env = plugin_;
    processes(1, [&](int) {
        setenv("NCCL_ENV_PLUGIN", env.c_str(), 1);
        REQUIRE(ncclGetUniqueId(&shared->id) == ncclSuccess);
        shared->id_ready = 1;
        pid_t children[2];
        for (int rank = 0; rank < 2; rank++) {
            children[rank] = fork();
            if (children[rank] == 0) {
                Rank self(rank, 2);
                REQUIRE(ncclCommInitRank(&self.comm, 2, shared->id, rank) == ncclSuccess);
                self.round(LAMPREY_REFERENCE_BF16, 1000, 1);
                REQUIRE(stats_of(self.comm).served == 1);
                REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
                _exit(0);
            }
        }
        for (pid_t child : children) {
            int status = -1;
            REQUIRE(waitpid(child, &status, 0) == child && status == 0);
        }
    });
}

// A rank that can't even enter the exchange must not run another collective into it.
TEST_F(Serving, FailsWhereTheExchangeCannotBeEntered)
{
    processes(2, [](int rank) {
        if (rank == 1) {
            setenv("LAMPREY_EMULATOR_FAIL", "cuMemCreate:1,cuMemHostAlloc:1", 1);
        }
        Rank self(rank, 2);
        self.init();
        if (rank == 1) {
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 100) == ncclUnhandledCudaError);
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 100) == ncclUnhandledCudaError);
            REQUIRE(ncclGroupStart() == ncclSuccess);
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_F32, 100) == ncclUnhandledCudaError);
            ncclGroupEnd();
            meet(2);
        } else {
            self.all_reduce_until_abort(100, [] { meet(2); });
        }
        meet(2);
        if (rank == 1) {
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
        }
    });
}

TEST_F(Serving, RefusesWhereCommunicatorsAreNonBlocking)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;
        ncclComm_t parent = self.comm;
        ncclResult_t state = ncclCommSplit(parent, 0, rank, &self.comm, &config);
        while (state == ncclInProgress) {
            REQUIRE(ncclCommGetAsyncError(parent, &state) == ncclSuccess);
        }
        REQUIRE(state == ncclSuccess);
        self.round(LAMPREY_REFERENCE_F32, 100, 1, false);
        REQUIRE(stats_of(self.comm).served == 0);
        REQUIRE(stats_of(self.comm).communicators_refused == 1);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
        REQUIRE(ncclCommDestroy(parent) == ncclSuccess);
    });
}

TEST_F(Serving, LeaksNothingOverManyCommunicators)
{
    processes(2, [](int rank) {
        auto counts = [](size_t *c) { lampreyEmulatorCounts(&c[0], &c[1], &c[2], &c[3], &c[4]); };
        auto descriptors = [] {
            int open = 0;
            for (int fd = 0; fd < 1024; fd++) {
                open += fcntl(fd, F_GETFD) >= 0;
            }
            return open;
        };
        Rank self(rank, 2);
        auto communicator = [&](uint64_t seed, bool with_graph) {
            if (rank == 0) {
                shared->id_ready = 0;
            }
            meet(2);
            self.init();
            self.round(LAMPREY_REFERENCE_BF16, 100, seed);
            if (with_graph) {
                CUgraphExec graph = capture(self, LAMPREY_REFERENCE_BF16, 100, 2);
                REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS);
                REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
                REQUIRE(cuGraphExecDestroy(graph) == CUDA_SUCCESS);
            }
            REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
            meet(2);
        };
        size_t first[5];
        size_t now[5];
        for (uint64_t i = 0; i < 4; i++) {
            communicator(i, false);
        }
        counts(first);
        const int open_first = descriptors();
        for (uint64_t i = 4; i < 12; i++) {
            communicator(i, true);
        }
        // A graph's references go in the background, and the next set-up cleans up.
        for (uint64_t i = 0;; i++) {
            REQUIRE(i < sizeof shared->settled / sizeof shared->settled[0]);
            communicator(i, false);
            counts(now);
            const int settled = memcmp(first, now, sizeof now) == 0 && descriptors() == open_first;
            __atomic_fetch_add(&shared->settled[i], settled, __ATOMIC_SEQ_CST);
            meet(2);
            if (shared->settled[i] == 2) {
                break;
            }
            usleep(100000);
        }
    });
}

// Every set-up gets as far as one rank's fault lets it, and gives all of it back.
TEST_F(Serving, LeaksNothingWhereSetUpsFail)
{
    for (const char *fault : {"cuMemImportFromShareableHandle:0", "cuMemExportToShareableHandle:0",
                              "cuLibraryGetKernel:0"}) {
        SCOPED_TRACE(fault);
        memset(shared, 0, sizeof *shared);
        processes(2, [&](int rank) {
            struct Counts {
                size_t driver[5];
                int descriptors;
            };
            auto count = [] {
                Counts c = {};
                lampreyEmulatorCounts(&c.driver[0], &c.driver[1], &c.driver[2], &c.driver[3],
                                      &c.driver[4]);
                for (int fd = 0; fd < 1024; fd++) {
                    c.descriptors += fcntl(fd, F_GETFD) >= 0;
                }
                return c;
            };
            if (rank == 1) {
                setenv("LAMPREY_EMULATOR_FAIL", fault, 1);
            }
            Rank self(rank, 2);
            Counts first = {};
            for (uint64_t i = 0; i < 8; i++) {
                if (rank == 0) {
                    shared->id_ready = 0;
                }
                meet(2);
                self.init();
                self.round(LAMPREY_REFERENCE_F32, 100, i, false);
                REQUIRE(stats_of(self.comm).communicators_refused == 1);
                REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
                meet(2);
                const Counts now = count();
                first = i == 2 ? now : first; // what is kept for the next set-up is there by then
                REQUIRE(i <= 2 || memcmp(first.driver, now.driver, sizeof now.driver) == 0);
                REQUIRE(i <= 2 || first.descriptors == now.descriptors);
            }
        });
    }
}

TEST_F(Serving, StandsDownTogetherWhenOneRankIsDisabled)
{
    expect_refused(3, [](int rank) {
        if (rank == 1) {
            setenv("LAMPREY_DISABLE", "1", 1);
        }
    });
}

TEST_F(Serving, StandsDownUnderNcclsOwnSettings)
{
    for (const char *setting : {"NCCL_P2P_DISABLE=1", "NCCL_P2P_LEVEL=LOC", "NCCL_CHECK_POINTERS=1",
                                "NCCL_CHECK_MODE=DEBUG_LOCAL", "NCCL_LAUNCH_ORDER_IMPLICIT=1"}) {
        memset(shared, 0, sizeof *shared);
        expect_refused(2, [&](int rank) {
            const std::string text = setting;
            const size_t equals = text.find('=');
            if (rank == 0) { // one rank's environment is enough
                setenv(text.substr(0, equals).c_str(), text.substr(equals + 1).c_str(), 1);
            }
        });
    }
}

TEST_F(Serving, RefusesRanksThatDisagree)
{
    expect_refused(2, [](int rank) { setenv("LAMPREY_MAX_BYTES", rank ? "64K" : "32K", 1); });
    memset(shared, 0, sizeof *shared);
    expect_refused(2, [](int rank) { setenv("LAMPREY_MAX_CTAS", rank ? "16" : "32", 1); });
}

TEST_F(Serving, FallsBackTogetherWhenMemoryOrMappingFails)
{
    // The first allocation of a process is the exchange's, the second the staging memory's.
    for (const char *fault :
         {"cuMemCreate:2", "cuMemExportToShareableHandle:1", "cuMemImportFromShareableHandle:1",
          "cuMemHostAlloc:1", "cuLibraryLoadData:1", "cuLibraryGetKernel:5", "cuMemMap:3"}) {
        SCOPED_TRACE(fault);
        memset(shared, 0, sizeof *shared);
        expect_refused(2, [&](int rank) {
            if (rank == 1) {
                setenv("LAMPREY_EMULATOR_FAIL", fault, 1);
            }
        });
    }
}

TEST_F(Serving, RefusesAnOldDriver)
{
    expect_refused(2, [](int rank) {
        if (rank == 1) {
            setenv("LAMPREY_EMULATOR_DRIVER_VERSION", "12000", 1);
        }
    });
}

TEST_F(Serving, RefusesWithoutTopology)
{
    unlink((directory_ + "/liblamprey-topology.so").c_str());
    expect_refused(2, [](int) {});
}

TEST_F(Serving, RefusesGpusThatTheTopologyDoesNotKnow)
{
    FILE *file = fopen((directory_ + "/broken.xml").c_str(), "w");
    ASSERT_NE(file, nullptr);
    fputs("<?xml version=\"1.0\"?>\n<topology version=\"2.0\"><obj", file);
    fclose(file);
    expect_refused(
        2, [this](int) { setenv("LAMPREY_TOPOLOGY", (directory_ + "/broken.xml").c_str(), 1); });
    unlink((directory_ + "/broken.xml").c_str());
}

TEST_F(Serving, RefusesTwoRanksOnOneGpuUnlessToldOtherwise)
{
    expect_refused(2, [](int) { setenv("LAMPREY_EMULATOR_GPUS", "1", 1); });
    memset(shared, 0, sizeof *shared);
    processes(2, [](int rank) {
        setenv("LAMPREY_EMULATOR_GPUS", "1", 1);
        setenv("LAMPREY_SHARE_GPU", "1", 1);
        mixed_rounds(rank, 2);
    });
}

TEST_F(Serving, WarnsOfMalformedSettingsAndUsesDefaults)
{
    processes(2, [](int rank) {
        setenv("LAMPREY_MAX_BYTES", "lots", 1);
        setenv("LAMPREY_PDL", "maybe", 1);
        mixed_rounds(rank, 2);
    });
}

TEST_F(Serving, LeavesAChildOfAForkAlone)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_BF16, 100, 1);
        pid_t child = fork();
        if (child == 0) {
            // CUDA is gone here; what matters is that nothing of ours runs or hangs.
            _exit(ncclAllReduce(nullptr, nullptr, 1, ncclFloat32, ncclSum, nullptr, nullptr) ==
                          ncclInvalidArgument
                      ? 0
                      : 4);
        }
        int status = -1;
        REQUIRE(waitpid(child, &status, 0) == child && status == 0);
        self.round(LAMPREY_REFERENCE_BF16, 100, 2);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

} // namespace
