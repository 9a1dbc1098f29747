/* SPDX-License-Identifier: Apache-2.0 */
/* Which messages are served, and how: the one place for numbers that were measured. */
#ifndef LAMPREY_PLUGIN_LIMITS_H
#define LAMPREY_PLUGIN_LIMITS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The setting LAMPREY_ALGORITHM. */
enum lamprey_algorithm_choice {
    LAMPREY_ALGORITHM_AUTO,
    LAMPREY_ALGORITHM_ONE_SHOT,
    LAMPREY_ALGORITHM_TWO_SHOT,
};

struct lamprey_limits {
    uint64_t one_shot_bytes; /* up to here one-shot is faster than two-shot, in bytes on the wire */
    uint64_t max_bytes;      /* up to here NCCL is slower: floats */
    uint64_t max_integer_bytes; /* integers, which take twice their bytes on the wire */
};

/* nranks: at least 2. */
struct lamprey_limits lamprey_limits_of(uint32_t nranks, enum lamprey_algorithm_choice choice);

#ifdef __cplusplus
}
#endif

#endif
