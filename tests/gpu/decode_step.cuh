/* SPDX-License-Identifier: Apache-2.0 */
/* What a model does between two all-reduces of a decode step, as far as time goes: reads weights
 * from memory, reads what the all-reduce before it wrote, and writes the next one's input. The
 * input comes from a copy, so that results can be checked. */
#ifndef LAMPREY_TESTS_GPU_DECODE_STEP_CUH
#define LAMPREY_TESTS_GPU_DECODE_STEP_CUH

#include "kernels/primitives.cuh"
#include "tests/gpu/counting.cuh"
#include "tests/gpu/decode_step.h"

namespace lamprey {

LAMPREY_DEVICE void decode_step(const decode_step_params &p)
{
    wait_for_dependencies();
    if (p.signal) {
        launch_dependents();
    }
    uint32_t seen = 0;
    for (uint64_t index = first_index(); index < p.weight_vectors; index += all_threads()) {
        const vector v = load(static_cast<const vector *>(p.weights) + index);
        seen |= v.word[0] | v.word[1] | v.word[2] | v.word[3];
    }
    for (uint64_t index = first_index(); index < p.activation_vectors; index += all_threads()) {
        const vector activation = load(static_cast<const vector *>(p.activations) + index);
        vector v = load(static_cast<const vector *>(p.source) + index);
        v.word[0] ^= seen; /* nothing, but the compiler can't know */
        v.word[1] ^= seen & activation.word[1];
        store(static_cast<vector *>(p.output) + index, v);
    }
}

} // namespace lamprey

#endif
