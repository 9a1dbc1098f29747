/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/limits.h"

#include <stddef.h>

/* 2 ranks: measured on 2 x H200 (README, Figures). With two ranks both algorithms send the same
 * bytes, and two-shot waits twice.
 *
 * More ranks: a model, from what was measured with two. One-shot takes
 *     1.7 us + (n - 1) * bytes / 369 GB/s
 * and two-shot
 *     2.6 us + 2 * (n - 1) / n * bytes / 369 GB/s,
 * which are equal at 0.33 MB / ((n - 1) * (1 - 2 / n)). The largest size stays far below where NCCL
 * would win by the same model. */
static const struct row {
    uint32_t max_ranks;
    struct lamprey_limits limits;
} rows[] = {
    {2, {UINT64_MAX, 4 << 20}},  {4, {192 << 10, 2 << 20}},  {8, {64 << 10, 1 << 20}},
    {16, {24 << 10, 512 << 10}}, {36, {8 << 10, 512 << 10}}, {UINT32_MAX, {4 << 10, 256 << 10}},
};

struct lamprey_limits lamprey_limits_of(uint32_t nranks, enum lamprey_algorithm_choice choice)
{
    size_t row = 0;
    while (nranks > rows[row].max_ranks) {
        row++;
    }
    struct lamprey_limits limits = rows[row].limits;
    if (choice != LAMPREY_ALGORITHM_AUTO) {
        limits.one_shot_bytes = choice == LAMPREY_ALGORITHM_ONE_SHOT ? UINT64_MAX : 0;
    }
    return limits;
}
