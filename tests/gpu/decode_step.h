/* SPDX-License-Identifier: Apache-2.0 */
/* Parameters of the kernel in decode_step.cuh. */
#ifndef LAMPREY_TESTS_GPU_DECODE_STEP_H
#define LAMPREY_TESTS_GPU_DECODE_STEP_H

#include <stdint.h>

struct decode_step_params {
    const void *weights; /* zeros */
    uint64_t weight_vectors;
    const void *activations; /* what the all-reduce before it wrote; activation_vectors */
    const void *source;      /* of the output; activation_vectors too */
    void *output;            /* the input of the next all-reduce */
    uint64_t activation_vectors;
    uint32_t signal; /* non-zero: let the next kernel start early */
    uint32_t reserved;
};

#endif
