// SPDX-License-Identifier: Apache-2.0
// Whole programs against the plugin that ships: ranks as processes and as threads, in the emulator.
// Every scenario checks the sums bit for bit and what became of the calls.
#ifndef LAMPREY_TESTS_SERVING_WORLD_H
#define LAMPREY_TESTS_SERVING_WORLD_H

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

#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "plugin/lamprey.h"
#include "tests/reference.h"

extern "C" void lampreyEmulatorCounts(size_t *mappings, size_t *allocations, size_t *handles,
                                      size_t *streams, size_t *events);

namespace serving_test {

using lamprey_test::element_type;

constexpr int kDeadlineSeconds = 120;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized =
    true; // memory isn't used again soon, and what an exit leaves is reported
#else
constexpr bool kSanitized = false;
#endif

// What a child finds wrong ends it with a message; the parent sees the exit code.
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: rank %d: %s doesn't hold\n", __FILE__, __LINE__, current_rank, \
                    #condition);                                                                   \
            _exit(3);                                                                              \
        }                                                                                          \
    } while (0)

inline thread_local int current_rank = -1;

struct Shared {
    ncclUniqueId id;
    int id_ready;
    int arrived;
    int settled[64];
    char note[8][256];
};

inline Shared *shared;

inline void meet(int nranks)
{
    const int ticket = __atomic_fetch_add(&shared->arrived, 1, __ATOMIC_SEQ_CST);
    const int target = (ticket / nranks + 1) * nranks;
    while (__atomic_load_n(&shared->arrived, __ATOMIC_SEQ_CST) < target) {
        usleep(200);
    }
}

inline void share_id(int rank)
{
    if (rank == 0) {
        REQUIRE(ncclGetUniqueId(&shared->id) == ncclSuccess);
        __atomic_store_n(&shared->id_ready, 1, __ATOMIC_RELEASE);
    }
    while (!__atomic_load_n(&shared->id_ready, __ATOMIC_ACQUIRE)) {
        usleep(200);
    }
}

inline lampreyStats stats_of(ncclComm_t comm)
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

inline CUstream make_stream(unsigned flags = CU_STREAM_NON_BLOCKING)
{
    CUstream stream = nullptr;
    REQUIRE(cuStreamCreate(&stream, flags) == CUDA_SUCCESS);
    return stream;
}

// What this process holds now.
struct Counts {
    size_t mappings, allocations, handles, streams, events;
    size_t descriptors = 0;

    Counts()
    {
        lampreyEmulatorCounts(&mappings, &allocations, &handles, &streams, &events);
        for (int fd = 0; fd < 1024; fd++) {
            descriptors += fcntl(fd, F_GETFD) >= 0;
        }
    }

    bool operator==(const Counts &other) const
    {
        return memcmp(this, &other, sizeof other) == 0;
    }
};

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
            const float a = lamprey_reference_load(type, got.data(), i);
            const float b = lamprey_reference_load(type, expected.data(), i);
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
    // in the exchange, which has a stream of its own. NCCL must not see the dead handle then: it
    // would answer ncclInvalidArgument, or worse.
    void all_reduce_until_abort(size_t count, bool grouped, const std::function<void()> &meanwhile)
    {
        const size_t before = Counts().streams;
        std::thread aborter([&] {
            while (Counts().streams == before) {
                usleep(200);
            }
            meanwhile();
            REQUIRE(ncclCommAbort(comm) == ncclSuccess);
        });
        if (grouped) {
            REQUIRE(ncclGroupStart() == ncclSuccess);
            REQUIRE(all_reduce(LAMPREY_REFERENCE_BF16, count) == ncclSuccess);
            REQUIRE(ncclGroupEnd() == ncclInternalError);
        } else {
            REQUIRE(all_reduce(LAMPREY_REFERENCE_BF16, count) == ncclInternalError);
        }
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

// One buffer of the ranks that every step multiplies by their number: steps that overlap, or run
// twice or never, show.
class Chain {
  public:
    explicit Chain(const Rank &self) : self_(self)
    {
        const std::vector<uint64_t> ones(kCount, 1);
        REQUIRE(cuMemAlloc(&at_, kCount * sizeof ones[0]) == CUDA_SUCCESS);
        REQUIRE(cuMemcpyHtoD(at_, ones.data(), kCount * sizeof ones[0]) == CUDA_SUCCESS);
        uint64_t one = 1;
        REQUIRE(ncclRedOpCreatePreMulSum(&scaled_, &one, ncclUint64, ncclScalarHostImmediate,
                                         self.comm) == ncclSuccess);
    }

    ncclResult_t call(bool ours, CUstream stream)
    {
        return ncclAllReduce((void *)at_, (void *)at_, kCount, ncclUint64, ours ? ncclSum : scaled_,
                             self_.comm, (cudaStream_t)stream);
    }

    // A step, now or when a graph is replayed.
    void step(bool ours, CUstream stream)
    {
        REQUIRE(call(ours, stream) == ncclSuccess);
    }

    // After this many steps; waits for the whole GPU.
    void expect(int steps)
    {
        std::vector<uint64_t> got(kCount);
        uint64_t expected = 1;
        for (int i = 0; i < steps; i++) {
            expected *= (uint64_t)self_.nranks;
        }
        REQUIRE(cuCtxSynchronize() == CUDA_SUCCESS);
        REQUIRE(cuMemcpyDtoH(got.data(), at_, kCount * sizeof got[0]) == CUDA_SUCCESS);
        for (const uint64_t &value : got) {
            if (value != expected) {
                fprintf(stderr, "element %zu is %llx, not %llx\n", &value - got.data(),
                        (unsigned long long)value, (unsigned long long)expected);
            }
            REQUIRE(value == expected);
        }
    }

  private:
    static constexpr size_t kCount = 300;
    const Rank &self_;
    CUdeviceptr at_ = 0;
    ncclRedOp_t scaled_;
};

// Captures count calls into a graph on rank's stream.
inline CUgraphExec capture(Rank &self, element_type type, size_t elements, int calls)
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

    // Scenarios that mostly wait, side by side; each in a process, with its own ranks.
    void at_once(const std::vector<std::function<void()>> &scenarios)
    {
        std::vector<pid_t> children;
        fflush(stdout);
        for (const std::function<void()> &scenario : scenarios) {
            pid_t child = fork();
            if (child == 0) {
                shared = (Shared *)mmap(nullptr, sizeof *shared, PROT_READ | PROT_WRITE,
                                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
                scenario();
                fflush(nullptr);
                _exit(HasFailure());
            }
            children.push_back(child);
        }
        for (size_t i = 0; i < children.size(); i++) {
            int status = -1;
            EXPECT_EQ(waitpid(children[i], &status, 0), children[i]);
            EXPECT_EQ(status, 0) << "scenario " << i << " failed";
        }
    }

    // Processes in whose logs every rank says that.
    void expect_told(int nranks, const std::string &what, const std::function<void(int)> &body)
    {
        const std::string scenario = std::to_string(getpid());
        auto log_of = [&](int rank) {
            return directory_ + "/rank-" + std::to_string(rank) + "-of-" + scenario + ".log";
        };
        memset(shared, 0, sizeof *shared);
        processes(nranks, [&](int rank) {
            setenv("NCCL_DEBUG", "INFO", 1);
            setenv("NCCL_DEBUG_FILE", log_of(rank).c_str(), 1);
            body(rank);
        });
        for (int rank = 0; rank < nranks; rank++) {
            std::stringstream log;
            log << std::ifstream(log_of(rank)).rdbuf();
            EXPECT_NE(log.str().find(what), std::string::npos)
                << "rank " << rank << " doesn't say \"" << what << "\":\n"
                << log.str();
            unlink(log_of(rank).c_str());
        }
    }

    // All ranks leave their communicator to NCCL, for the same reason.
    void expect_refused(int nranks, const std::string &reason,
                        const std::function<void(int)> &prepare)
    {
        expect_told(nranks, "is left to NCCL: " + reason, [&](int rank) {
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

    // Every set-up gets as far as it can, and gives all of it back.
    void expect_refused_without_leaks(int nranks, const std::function<void(int)> &prepare)
    {
        processes(nranks, [&](int rank) {
            prepare(rank);
            Rank self(rank, nranks);
            Counts first = {};
            for (uint64_t i = 0; i < 8; i++) {
                if (rank == 0) {
                    shared->id_ready = 0;
                }
                meet(nranks);
                self.init();
                self.round(LAMPREY_REFERENCE_F32, 100, i, false);
                REQUIRE(stats_of(self.comm).communicators_refused == 1);
                REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
                meet(nranks);
                const Counts now;
                first = i == 2 ? now : first; // what is kept for the next set-up is there by then
                REQUIRE(i <= 2 || first == now);
            }
        });
    }

    std::string plugin_;
    std::string directory_;
};

inline void mixed_rounds(int rank, int nranks)
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

} // namespace serving_test

#endif
