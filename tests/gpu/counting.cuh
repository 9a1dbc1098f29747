/* SPDX-License-Identifier: Apache-2.0 */
/* What kernels that check something share. Like the product's, they compile for the host too. */
#ifndef LAMPREY_TESTS_GPU_COUNTING_CUH
#define LAMPREY_TESTS_GPU_COUNTING_CUH

#include "kernels/primitives.cuh"

namespace lamprey {

/* A thread's first index in a loop over the whole grid, and the step. */
LAMPREY_DEVICE uint32_t first_index()
{
    return block_index() * block_size() + thread_index();
}
LAMPREY_DEVICE uint32_t all_threads()
{
    return grid_size() * block_size();
}

LAMPREY_DEVICE bool same(const vector &a, const vector &b)
{
    return a.word[0] == b.word[0] && a.word[1] == b.word[1] && a.word[2] == b.word[2] &&
           a.word[3] == b.word[3];
}

/* Adds to a counter of all threads; returns what it was. */
LAMPREY_DEVICE uint64_t count(uint64_t *counter, uint64_t amount)
{
#ifdef __CUDACC__
    return atomicAdd(reinterpret_cast<unsigned long long *>(counter), (unsigned long long)amount);
#else
    return __atomic_fetch_add(counter, amount, __ATOMIC_RELAXED);
#endif
}

} // namespace lamprey

#endif
