/* SPDX-License-Identifier: Apache-2.0 */
/* Parameters of the kernels in soak_calls.cuh. */
#ifndef LAMPREY_TESTS_GPU_SOAK_CALLS_H
#define LAMPREY_TESTS_GPU_SOAK_CALLS_H

#include <stdint.h>

/* The first wrong vector is described. */
struct soak_calls_report {
    uint64_t mismatches; /* vectors of 16 bytes */
    uint64_t key;
    uint64_t index;
    uint32_t got[4];
    uint32_t expected[4];
};

struct soak_calls_params {
    void *message; /* the input to fill, or the output to check */
    uint64_t count;
    uint64_t key;            /* of the call: all inputs follow from it */
    const uint32_t *replays; /* so far; gives each replay data of its own. NULL: a live call */
    struct soak_calls_report *report;
    uint32_t vectors;
    uint32_t element; /* enum lamprey_element */
    uint32_t rank;    /* whose input */
    uint32_t wide;    /* the message lies at a multiple of 16, and so does its end */
};

struct soak_calls_replay_params {
    uint32_t *replays;
};

#endif
