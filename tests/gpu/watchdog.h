// SPDX-License-Identifier: Apache-2.0
// Ends the program when a rank is stuck, so that a hang is a failure with a text and the GPUs are
// free again.
#ifndef LAMPREY_TESTS_GPU_WATCHDOG_H
#define LAMPREY_TESTS_GPU_WATCHDOG_H

#include <stdint.h>
#include <stdio.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/gpu/gpu_pair.h"

namespace lamprey_gpu {

class Watchdog {
  public:
    // name: the program's.
    Watchdog(const char *name, uint32_t *abort_word)
        : name_(name), abort_word_(abort_word), thread_([this] { watch(); })
    {
    }

    ~Watchdog()
    {
        done_ = true;
        thread_.join();
    }

    // The rank is about to do something that may wait: for the peer, or for room in a queue.
    // progress: what the rank has done so far, to be named if it ends here.
    void alive(int rank, uint64_t progress)
    {
        progress_[rank] = progress;
        beats_[rank]++;
    }

  private:
    static constexpr int kSeconds = 20;

    void watch()
    {
        using clock = std::chrono::steady_clock;
        uint64_t seen[kRanks] = {};
        clock::time_point since[kRanks];
        for (clock::time_point &time : since) {
            time = clock::now();
        }
        while (!done_) {
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            for (int rank = 0; rank < kRanks; rank++) {
                const uint64_t beats = beats_[rank];
                if (beats != seen[rank]) {
                    seen[rank] = beats;
                    since[rank] = clock::now();
                } else if (clock::now() - since[rank] > std::chrono::seconds(kSeconds)) {
                    end(rank);
                }
            }
        }
    }

    [[noreturn]] void end(int rank)
    {
        fprintf(stderr,
                "%s: rank %d got no further for %d s; done: %llu by rank 0, %llu by rank 1\n",
                name_, rank, kSeconds, (unsigned long long)progress_[0].load(),
                (unsigned long long)progress_[1].load());
        fflush(stderr);
        __atomic_store_n(abort_word_, 1u, __ATOMIC_RELEASE);
        std::this_thread::sleep_for(std::chrono::seconds(1)); // the kernels leave
        leave();
    }

    const char *const name_;
    uint32_t *const abort_word_;
    std::atomic<bool> done_{false};
    std::atomic<uint64_t> beats_[kRanks] = {};
    std::atomic<uint64_t> progress_[kRanks] = {};
    std::thread thread_; // the last: it uses the others
};

} // namespace lamprey_gpu

#endif
