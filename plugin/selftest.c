/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/selftest.h"

#include <string.h>

#include "plugin/launch.h"

#define WORDS_PER_RANK (LAMPREY_VECTOR_BYTES / 4)

/* Another value for every rank and place. */
static uint32_t word_of(uint32_t rank, uint32_t index)
{
    return (rank * 4099 + index + 1) * 2654435761u;
}

/* Sums words, WORDS_PER_RANK for each rank, over the ranks. */
static enum lamprey_status sum(struct lamprey_exchange *exchange,
                               const struct lamprey_agreed *agreed,
                               struct lamprey_workspace *workspace, uint32_t timeout_ms,
                               uint32_t *words)
{
    const size_t bytes = agreed->nranks * WORDS_PER_RANK * sizeof *words;
    const struct lamprey_driver *driver = workspace->device->driver;
    const CUdeviceptr recv = workspace->scratch + LAMPREY_SCRATCH_BYTES / 2;
    const struct lamprey_call call = {
        .send = (const void *)workspace->scratch,
        .recv = (void *)recv,
        .count = bytes / sizeof *words,
        .type = ncclUint32,
        .op = ncclSum,
        .stream = exchange->stream,
    };
    /* Two-shot: a rank sends each peer another part of its words, which tells the peers apart. */
    struct lamprey_agreed two_shot = *agreed;
    two_shot.one_shot_bytes = 0;
    const struct lamprey_way way = lamprey_way_of(&two_shot, call.count, call.type, call.op);
    enum lamprey_status status = lamprey_driver_check(
        driver->MemcpyHtoDAsync(workspace->scratch, words, bytes, exchange->stream),
        "cuMemcpyHtoDAsync");
    if (!status) {
        status = lamprey_launch_kernel(workspace, &call, &way, timeout_ms);
    }
    if (!status) { /* whoever frees the memory waits for this */
        status = lamprey_driver_check(driver->EventRecord(workspace->serial, exchange->stream),
                                      "cuEventRecord");
    }
    if (!status) {
        status = lamprey_exchange_wait(exchange);
    }
    if (!status) {
        status = lamprey_driver_check(driver->MemcpyDtoHAsync(words, recv, bytes, exchange->stream),
                                      "cuMemcpyDtoHAsync");
    }
    if (!status) {
        status = lamprey_exchange_wait(exchange);
    }
    if (status) {
        lamprey_workspace_abort(workspace);
    }
    return status;
}

enum lamprey_status lamprey_selftest(struct lamprey_exchange *exchange,
                                     const struct lamprey_agreed *agreed,
                                     struct lamprey_workspace *workspace, uint32_t timeout_ms)
{
    uint32_t words[LAMPREY_MAX_RANKS * WORDS_PER_RANK];
    const uint32_t count = agreed->nranks * WORDS_PER_RANK;
    for (uint32_t i = 0; i < count; i++) {
        words[i] = word_of(workspace->rank, i);
    }
    enum lamprey_status status = sum(exchange, agreed, workspace, timeout_ms, words);
    if (status) {
        return status;
    }
    if (lamprey_workspace_timed_out(workspace)) {
        return LAMPREY_ERROR_SYSTEM;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t expected = 0;
        for (uint32_t rank = 0; rank < agreed->nranks; rank++) {
            expected += word_of(rank, i);
        }
        if (words[i] != expected) {
            return LAMPREY_ERROR_SYSTEM;
        }
    }
    return LAMPREY_OK;
}

enum lamprey_status lamprey_selftest_vote(struct lamprey_exchange *exchange,
                                          const struct lamprey_agreed *agreed,
                                          struct lamprey_workspace *workspace, uint32_t timeout_ms,
                                          bool refuses, int *refusing)
{
    uint32_t words[LAMPREY_MAX_RANKS * WORDS_PER_RANK] = {0};
    words[workspace->rank * WORDS_PER_RANK] = refuses;
    enum lamprey_status status = sum(exchange, agreed, workspace, timeout_ms, words);
    if (!status && lamprey_workspace_timed_out(workspace)) {
        status = LAMPREY_ERROR_TIMEOUT;
    }
    *refusing = -1;
    for (int rank = (int)agreed->nranks - 1; rank >= 0 && !status; rank--) {
        *refusing = words[rank * WORDS_PER_RANK] ? rank : *refusing;
    }
    return status;
}
