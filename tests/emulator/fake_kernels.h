/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LAMPREY_TESTS_EMULATOR_FAKE_KERNELS_H
#define LAMPREY_TESTS_EMULATOR_FAKE_KERNELS_H

#include <stdint.h>

/* fake_add and fake_report_block */
struct fake_add {
    uint32_t *counter;
    uint32_t value;
};

struct fake_meet {
    uint32_t *mine;
    uint32_t *theirs;
};

#endif
