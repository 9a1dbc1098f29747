/* SPDX-License-Identifier: Apache-2.0 */
/* A host thread's stores to staging memory, held back and performed in any order, as a GPU may; a
 * processor that keeps stores in order would hide a missing fence. For tests:
 * LAMPREY_EMULATOR_DELAYED_STORES=1. */
#ifndef LAMPREY_KERNELS_STORE_BUFFER_H
#define LAMPREY_KERNELS_STORE_BUFFER_H

#include <stdint.h>

namespace lamprey {

class store_buffer {
  public:
    void add(uint32_t *address, uint32_t value)
    {
        add({address, value, false});
    }
    void add(uint64_t *address, uint64_t value)
    {
        add({address, value, true});
    }

    bool empty() const
    {
        return count_ == 0;
    }

    /* What a thread does now and then, and while it waits. */
    void perform_one()
    {
        if (count_ > 0) {
            seed_ = seed_ * 1664525u + 1013904223u;
            perform((seed_ >> 8) % count_);
        }
    }

    /* At a fence, and when a CTA ends. */
    void perform_all()
    {
        while (count_ > 0) {
            perform_one();
        }
    }

  private:
    struct store {
        void *address;
        uint64_t value;
        bool wide;
    };
    static constexpr unsigned capacity = 96;

    void add(const store &added)
    {
        if (count_ == capacity) {
            perform_one();
        }
        stores_[count_++] = added;
    }

    /* Stores to one address stay in order. */
    void perform(unsigned index)
    {
        for (unsigned i = 0; i < index; i++) {
            if (stores_[i].address == stores_[index].address) {
                index = i;
            }
        }
        const store chosen = stores_[index];
        for (unsigned i = index + 1; i < count_; i++) {
            stores_[i - 1] = stores_[i];
        }
        count_--;
        if (chosen.wide) {
            __atomic_store_n(static_cast<uint64_t *>(chosen.address), chosen.value,
                             __ATOMIC_RELAXED);
        } else {
            __atomic_store_n(static_cast<uint32_t *>(chosen.address), (uint32_t)chosen.value,
                             __ATOMIC_RELAXED);
        }
    }

    store stores_[capacity];
    unsigned count_ = 0;
    uint32_t seed_ = 12345;
};

extern bool stores_are_delayed;
extern thread_local store_buffer delayed_stores;

template <class T> inline void perform_store(T *address, T value)
{
    if (stores_are_delayed) {
        delayed_stores.add(address, value);
    } else {
        __atomic_store_n(address, value, __ATOMIC_RELAXED);
    }
}

} // namespace lamprey

#endif
