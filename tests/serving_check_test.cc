// SPDX-License-Identifier: Apache-2.0
// LAMPREY_CHECK=1: calls that differ over the ranks are an error on every rank, not a hang.
#include "tests/serving_world.h"

namespace {

using namespace serving_test;

struct Call {
    size_t count = 100;
    ncclDataType_t type = ncclFloat32;
    ncclRedOp_t op = ncclSum;
};

ncclResult_t issue(Rank &self, const Call &call)
{
    return ncclAllReduce((void *)self.send, (void *)self.recv, call.count, call.type, call.op,
                         self.comm, (cudaStream_t)self.stream);
}

ncclResult_t async_error(const Rank &self)
{
    ncclResult_t error = ncclSuccess;
    REQUIRE(ncclCommGetAsyncError(self.comm, &error) == ncclSuccess);
    return error;
}

// What this process writes to stderr until it is asked for.
class Captured {
  public:
    Captured()
    {
        fflush(stderr);
        REQUIRE(pipe(ends_) == 0);
        kept_ = dup(2);
        dup2(ends_[1], 2);
    }
    // Only once something was written.
    std::string line() const
    {
        std::string text;
        char c = 0;
        while (read(ends_[0], &c, 1) == 1 && c != '\n') {
            text += c;
        }
        dup2(kept_, 2);
        return text;
    }

  private:
    int ends_[2];
    int kept_;
};

class ServingCheck : public Serving {
  protected:
    // Every rank's own call comes after good ones; all of them hear of what differs.
    void expect_mismatch(int nranks, const std::function<Call(int)> &call_of,
                         const std::function<void(Rank &, const Call &)> &start,
                         const std::vector<std::string> &lines)
    {
        memset(shared, 0, sizeof *shared);
        processes(nranks, [&](int rank) {
            Rank self(rank, nranks);
            self.init();
            for (uint64_t seed = 0; seed < 3; seed++) {
                self.round(LAMPREY_REFERENCE_BF16, 1000 * (seed + 1), seed);
            }
            REQUIRE(async_error(self) == ncclSuccess);
            const Captured captured;
            start(self, call_of(rank));
            const std::string line = captured.line();
            if (line.find(lines[(size_t)rank]) == std::string::npos) {
                fprintf(stderr, "rank %d said: %s\n", rank, line.c_str());
                _exit(4);
            }
            REQUIRE(async_error(self) == ncclInvalidUsage);
            meet(nranks);
            REQUIRE(ncclCommAbort(self.comm) == ncclSuccess);
            meet(nranks);
        });
    }
};

void start_eager(Rank &self, const Call &call)
{
    REQUIRE(issue(self, call) == ncclSuccess);
    REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS); // our kernels don't hang
    REQUIRE(issue(self, call) == ncclInvalidUsage);
}

TEST_F(ServingCheck, TellsEveryRankWhatDiffers)
{
    setenv("LAMPREY_CHECK", "1", 1);
    const struct {
        Call first;
        Call second;
        const char *first_words;
        const char *second_words;
    } cases[] = {
        // The same grid.
        {{100}, {101}, "100 elements of float32, sum", "101 elements of float32, sum"},
        // More lanes and threads; two-shot.
        {{100}, {90000}, "100 elements of float32, sum", "90000 elements of float32, sum"},
        {{100, ncclInt8},
         {100, ncclUint8},
         "100 elements of int8, sum",
         "100 elements of uint8, sum"},
        {{100, ncclBfloat16},
         {50, ncclFloat32},
         "100 elements of bfloat16, sum",
         "50 elements of float32, sum"},
        {{7, ncclInt64, ncclMax},
         {7, ncclInt64, ncclAvg},
         "7 elements of int64, max",
         "7 elements of int64, avg"},
    };
    for (const auto &c : cases) {
        const std::string first = std::string("with ") + c.first_words;
        const std::string second = std::string("with ") + c.second_words;
        const std::string number = " called all-reduce number 4 of its communicator ";
        expect_mismatch(3, [&](int rank) { return rank == 1 ? c.second : c.first; }, start_eager,
                        {"rank 0 of 3" + number + first + "; rank 1 " + second,
                         "rank 1 of 3" + number + second + "; rank 0 " + first,
                         "rank 2 of 3" + number + first + "; rank 1 " + second});
    }
}

// The calls before were the same on all ranks, so the first of a swapped pair is what differs.
TEST_F(ServingCheck, SeesCallsInAnotherOrder)
{
    setenv("LAMPREY_CHECK", "1", 1);
    for (const bool grouped : {false, true}) {
        expect_mismatch(
            2, [](int) { return Call(); },
            [grouped](Rank &self, const Call &) {
                const size_t counts[] = {64, 4096};
                REQUIRE(!grouped || ncclGroupStart() == ncclSuccess);
                for (int i = 0; i < 2; i++) {
                    const ncclResult_t result = issue(self, {counts[(i + self.rank) % 2]});
                    REQUIRE(result == ncclSuccess || (!grouped && result == ncclInvalidUsage));
                }
                if (grouped) {
                    const ncclResult_t result = ncclGroupEnd();
                    REQUIRE(result == ncclSuccess || result == ncclInvalidUsage);
                }
                REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
            },
            {"number 4 of its communicator with 64 elements of float32, sum; rank 1 with 4096 ",
             "number 4 of its communicator with 4096 elements of float32, sum; rank 0 with 64 "});
    }
}

// The graphs' second replays meet a call that one rank has made between: it is the fifth.
TEST_F(ServingCheck, CountsReplays)
{
    setenv("LAMPREY_CHECK", "1", 1);
    expect_mismatch(
        2, [](int) { return Call(); },
        [](Rank &self, const Call &) {
            CUgraphExec graph = capture(self, LAMPREY_REFERENCE_F16, 300, 1);
            REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS);
            if (self.rank == 1) {
                REQUIRE(issue(self, {77, ncclInt32}) == ncclSuccess);
            }
            REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS);
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
            REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS); // nothing to wait for
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
            REQUIRE(cuGraphExecDestroy(graph) == CUDA_SUCCESS);
        },
        {"number 5 of its communicator with 300 elements of float16, sum; rank 1 with 77 ",
         "number 5 of its communicator with 77 elements of int32, sum; rank 0 with 300 "});
}

// One rank's call is NCCL's, by its size; NCCL's kernel waits for its peer until the abort.
TEST_F(ServingCheck, SeesThatOnlyOneCallIsOurs)
{
    setenv("LAMPREY_CHECK", "1", 1);
    setenv("LAMPREY_MAX_BYTES", "65536", 1);
    for (const bool grouped : {false, true}) {
        expect_mismatch(
            2, [](int rank) { return Call{rank == 0 ? (size_t)100 : (size_t)500000}; },
            [grouped](Rank &self, const Call &call) {
                REQUIRE(!grouped || ncclGroupStart() == ncclSuccess);
                REQUIRE(issue(self, call) == ncclSuccess);
                REQUIRE(!grouped || ncclGroupEnd() == ncclSuccess);
            },
            {"with 100 elements of float32, sum; rank 1 with 500000 ",
             "with 500000 elements of float32, sum; rank 0 with 100 "});
    }
    unsetenv("LAMPREY_MAX_BYTES");
}

// One rank asks; ours and NCCL's, grouped by one rank and not by another, over two communicators.
TEST_F(ServingCheck, LetsEqualCallsPass)
{
    processes(3, [](int rank) {
        if (rank == 1) {
            setenv("LAMPREY_CHECK", "1", 1);
        }
        setenv("LAMPREY_MAX_BYTES", "65536", 1);
        Rank self(rank, 3);
        self.init();
        ncclComm_t second = nullptr;
        REQUIRE(ncclCommSplit(self.comm, 0, rank, &second, nullptr) == ncclSuccess);
        CUstream other = nullptr;
        REQUIRE(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
        for (uint64_t seed = 0; seed < 6; seed++) {
            const bool grouped = (seed + (uint64_t)rank) % 2;
            self.fill(LAMPREY_REFERENCE_BF16, 999, seed);
            REQUIRE(!grouped || ncclGroupStart() == ncclSuccess);
            REQUIRE(self.all_reduce(LAMPREY_REFERENCE_BF16, 999) == ncclSuccess);
            REQUIRE(!grouped || ncclGroupEnd() == ncclSuccess);
            self.check(LAMPREY_REFERENCE_BF16, 999, seed, true);
            self.round(LAMPREY_REFERENCE_F32, 100000, seed, false); // NCCL's
            REQUIRE(ncclGroupStart() == ncclSuccess);
            for (int i = 0; i < 8; i++) {
                // A place for each communicator: nothing orders the two.
                REQUIRE(ncclAllReduce((void *)self.send,
                                      (void *)(self.recv + (i < 4 ? 0 : 1 << 20)),
                                      i % 4 > 1 ? 200 : 50000, ncclFloat32,
                                      i % 4 > 1 ? ncclMin : ncclSum, i < 4 ? self.comm : second,
                                      (cudaStream_t)(i % 2 ? other : self.stream)) == ncclSuccess);
            }
            REQUIRE(ncclGroupEnd() == ncclSuccess);
        }
        CUgraphExec graph = capture(self, LAMPREY_REFERENCE_F32, 20000, 2); // NCCL's
        REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS);
        REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS);
        REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
        REQUIRE(cuGraphExecDestroy(graph) == CUDA_SUCCESS);
        REQUIRE(async_error(self) == ncclSuccess);
        REQUIRE(stats_of(self.comm).served == 6 + 6 * 2);
        REQUIRE(stats_of(self.comm).fallback_size == 6 + 6 * 2 + 2);
        REQUIRE(stats_of(second).served == 6 * 2);
        REQUIRE(ncclCommDestroy(second) == ncclSuccess);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

} // namespace
