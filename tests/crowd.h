/* SPDX-License-Identifier: Apache-2.0 */
/* Takes the room around code, so that redirections have to look for it further away. */
#ifndef LAMPREY_TESTS_CROWD_H
#define LAMPREY_TESTS_CROWD_H

#include <stddef.h>
#include <stdint.h>

#include "plugin/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How far an instruction of this processor jumps at most. */
#ifdef __aarch64__
#define LAMPREY_TEST_JUMP_REACH ((uintptr_t)1 << 27)
#else
#define LAMPREY_TEST_JUMP_REACH ((uintptr_t)1 << 31)
#endif

struct lamprey_test_crowded {
    struct {
        void *start;
        size_t bytes;
    } * gaps;
    size_t count;
};

/* Maps every gap within reach of all that lies from low to high, readable to nobody. */
enum lamprey_status lamprey_test_crowd(struct lamprey_test_crowded *crowded, uintptr_t low,
                                       uintptr_t high, uintptr_t reach);
void lamprey_test_uncrowd(struct lamprey_test_crowded *crowded);

#ifdef __cplusplus
}
#endif

#endif
