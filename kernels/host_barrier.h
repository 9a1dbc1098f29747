/* SPDX-License-Identifier: Apache-2.0 */
/* A barrier of host threads that stand for a CTA's or a cluster's. Who waits goes on performing the
 * stores that it holds back (store_buffer.h), since others may wait for them elsewhere; but to have
 * met doesn't mean that they are performed. */
#ifndef LAMPREY_KERNELS_HOST_BARRIER_H
#define LAMPREY_KERNELS_HOST_BARRIER_H

#include <sched.h>

#include <condition_variable>
#include <mutex>

#include "kernels/store_buffer.h"

namespace lamprey {

class host_barrier {
  public:
    explicit host_barrier(unsigned threads) : threads_(threads)
    {
    }

    /* Whether any thread brought true. */
    bool wait(bool here = false)
    {
        std::unique_lock<std::mutex> lock(mutex_);
        const unsigned meeting = meetings_;
        gathering_ = gathering_ || here;
        if (++arrived_ == threads_) {
            arrived_ = 0;
            meetings_++;
            any_[meeting % 2] = gathering_;
            gathering_ = false;
            all_here_.notify_all();
            return any_[meeting % 2];
        }
        while (meetings_ == meeting) {
            if (delayed_stores.empty()) {
                all_here_.wait(lock);
            } else {
                lock.unlock();
                delayed_stores.perform_one();
                sched_yield();
                lock.lock();
            }
        }
        return any_[meeting % 2]; /* the next but one meeting needs this thread */
    }

  private:
    const unsigned threads_;
    unsigned arrived_ = 0;
    unsigned meetings_ = 0;
    bool gathering_ = false;
    bool any_[2] = {false, false};
    std::mutex mutex_;
    std::condition_variable all_here_;
};

} // namespace lamprey

#endif
