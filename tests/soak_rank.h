// SPDX-License-Identifier: Apache-2.0
// One rank of a random program.
#ifndef LAMPREY_TESTS_SOAK_RANK_H
#define LAMPREY_TESTS_SOAK_RANK_H

#include <cuda.h>
#include <nccl.h>
#include <stdio.h>
#include <unistd.h>

#include <vector>

#include "tests/soak_program.h"

namespace soak {

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: seed %llu: %s doesn't hold\n", __FILE__, __LINE__,             \
                    (unsigned long long)current_seed, #condition);                                 \
            _exit(3);                                                                              \
        }                                                                                          \
    } while (0)

inline uint64_t current_seed;

// What the ranks share, in memory of all processes.
struct World {
    int nranks;
    bool as_processes;
    uint64_t seed;
    int phases;
    ncclUniqueId id;
    int arrived;
    uint64_t served; // summed over the ranks
    uint64_t calls;
    uint64_t changes[5]; // by Event
};

class Rank {
  public:
    Rank(World &world, int rank);
    void run();

  private:
    // soak_rank.cc: communicators, buffers, results
    void meet();
    std::vector<int> members(int comm) const;
    bool served(const Op &op) const;
    void make_world();
    void make_child(int comm);
    void destroy(int comm, bool finalize_first);
    void first_calls(const std::vector<int> &comms, bool grouped);
    void fill(const Phase &phase, uint64_t data);
    void check(const Phase &phase, uint64_t data);
    void check_op(const Op &op, uint64_t data, int index);
    void synchronize();
    void check_counts();

    // soak_calls.cc: calls and graphs
    CUstream any_stream();
    CUdeviceptr place(CUdeviceptr base, int index) const;
    void issue(const Op &op, int index, CUstream stream);
    void issue_group(const Segment &segment, int first, CUstream only);
    void issue_ungrouped(const Segment &segment, int first, CUstream one, CUstream other);
    void issue_forked(const Segment &segment, int first, CUstream stream);
    void run_segment(const Segment &segment, int first);
    CUgraphExec executable_of(CUgraph graph);
    void capture(const Segment &segment, int first);

    // soak_changes.cc: what happens between phases
    void replace_a_stream();
    void change(const Change &change);
    void remake_world(bool finalize_first);
    void abort_child(const Change &change);
    void get_stuck(int comm, int way, bool fresh);
    void revoke_child(const Change &change);

    World &world_;
    int rank_;
    size_t max_bytes_;
    int phase_ = 0;
    Random local_; // what NCCL leaves to each rank
    CUcontext context_ = nullptr;
    static constexpr int kStreams = 3;
    CUstream streams_[kStreams] = {};
    CUevent fork_ = nullptr;
    CUevent join_ = nullptr;
    CUdeviceptr send_ = 0;
    CUdeviceptr recv_ = 0;
    ncclComm_t comms_[kComms] = {};
    uint64_t expected_[kComms] = {}; // calls that must be counted as served
    std::vector<CUgraphExec> graphs_;
};

} // namespace soak

#endif
