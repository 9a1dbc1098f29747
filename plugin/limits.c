/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/limits.h"

#include <stddef.h>

/* 2 ranks: measured on 2 x H200, in graphs, us: floats of 4 MiB 21.7 (NCCL 31.8), of 8 MiB 46.3
 * (46.2); integers of 256 KiB 5.5 (8.1), of 1 MiB 14.1 (13.5). With two ranks both algorithms send
 * the same bytes, and two-shot waits twice: 8 KiB 2.06 and 4.34.
 *
 * More ranks: a model, from what was measured with two. One-shot takes
 *     1.7 us + (n - 1) * bytes / 369 GB/s
 * and two-shot
 *     4.0 us + 2 * (n - 1) / n * bytes / 369 GB/s,
 * which are equal at 0.85 MB / ((n - 1) * (1 - 2 / n)). The largest size stays far below where NCCL
 * would win by the same model. */
static const struct row {
    uint32_t max_ranks;
    struct lamprey_limits limits;
} rows[] = {
    {2, {UINT64_MAX, 4 << 20, 512 << 10}},  {4, {512 << 10, 2 << 20, 512 << 10}},
    {8, {160 << 10, 1 << 20, 256 << 10}},   {16, {64 << 10, 512 << 10, 128 << 10}},
    {36, {24 << 10, 512 << 10, 128 << 10}}, {UINT32_MAX, {12 << 10, 256 << 10, 64 << 10}},
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
