/* SPDX-License-Identifier: Apache-2.0 */
/* Copies and fills. */
#include "tests/emulator/cuda/emulator.h"

#include <stdlib.h>
#include <string.h>

enum side {
    SIDE_DEVICE, /* must be memory that the driver knows */
    SIDE_HOST,
    SIDE_ANY,
};

static bool side_fits(const void *address, size_t bytes, enum side side)
{
    return side != SIDE_DEVICE || emulator_range_covers(address, bytes);
}

static void *pointer_of(CUdeviceptr address)
{
    return (void *)(uintptr_t)address;
}

static CUresult wait_for(struct emulator_point *point)
{
    emulator_point_wait(point);
    emulator_point_drop(point);
    return CUDA_SUCCESS;
}

/* Pageable memory: a source is copied before the call returns, a target is complete when it does.
 */
static CUresult copy_on(CUstream handle, bool synchronous, void *to, enum side to_side,
                        const void *from, enum side from_side, size_t bytes)
{
    struct emulator_point *point = NULL;
    {
        LOCKED();
        struct emulator_stream *stream = NULL;
        CUresult result = emulator_stream_resolve(handle, &stream);
        if (result == CUDA_SUCCESS && synchronous) {
            result = emulator_capture_unsafe();
        }
        if (result != CUDA_SUCCESS || bytes == 0) {
            return result;
        }
        if (!side_fits(to, bytes, to_side) || !side_fits(from, bytes, from_side)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        struct emulator_work work = {.kind = EMULATOR_WORK_COPY,
                                     .copy = {.to = to, .from = from, .bytes = bytes, .rows = 1}};
        bool wait = synchronous || !emulator_range_covers(to, bytes);
        if (!wait && stream->capture == NULL && !emulator_range_covers(from, bytes)) {
            work.copy.staged = malloc(bytes);
            if (work.copy.staged == NULL) {
                return CUDA_ERROR_OUT_OF_MEMORY;
            }
            memcpy(work.copy.staged, from, bytes);
            work.copy.from = work.copy.staged;
        }
        result = emulator_submit(stream, &work, wait ? &point : NULL);
        if (result != CUDA_SUCCESS || point == NULL) {
            return result;
        }
    }
    return wait_for(point);
}

CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    ENTER();
    return copy_on(NULL, true, pointer_of(to), SIDE_ANY, pointer_of(from), SIDE_ANY, bytes);
}

CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    ENTER();
    return copy_on(stream, false, pointer_of(to), SIDE_ANY, pointer_of(from), SIDE_ANY, bytes);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
    ENTER();
    return copy_on(NULL, true, pointer_of(to), SIDE_DEVICE, from, SIDE_HOST, bytes);
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
    ENTER();
    return copy_on(NULL, true, to, SIDE_HOST, pointer_of(from), SIDE_DEVICE, bytes);
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    ENTER();
    return copy_on(NULL, true, pointer_of(to), SIDE_DEVICE, pointer_of(from), SIDE_DEVICE, bytes);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
    ENTER();
    return copy_on(stream, false, pointer_of(to), SIDE_DEVICE, from, SIDE_HOST, bytes);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    ENTER();
    return copy_on(stream, false, to, SIDE_HOST, pointer_of(from), SIDE_DEVICE, bytes);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    ENTER();
    return copy_on(stream, false, pointer_of(to), SIDE_DEVICE, pointer_of(from), SIDE_DEVICE,
                   bytes);
}

CUresult cuMemcpyPeer(CUdeviceptr to, CUcontext to_context, CUdeviceptr from,
                      CUcontext from_context, size_t bytes)
{
    ENTER();
    (void)to_context;
    (void)from_context;
    return copy_on(NULL, true, pointer_of(to), SIDE_DEVICE, pointer_of(from), SIDE_DEVICE, bytes);
}

CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from,
                           CUcontext from_context, size_t bytes, CUstream stream)
{
    ENTER();
    (void)to_context;
    (void)from_context;
    return copy_on(stream, false, pointer_of(to), SIDE_DEVICE, pointer_of(from), SIDE_DEVICE,
                   bytes);
}

/* value of width bytes, count of them a row. A pitch of 0 means one row. */
static CUresult set_on(CUstream handle, bool synchronous, CUdeviceptr to, size_t pitch,
                       uint32_t value, unsigned width, size_t count, size_t rows)
{
    struct emulator_point *point = NULL;
    {
        LOCKED();
        struct emulator_stream *stream = NULL;
        CUresult result = emulator_stream_resolve(handle, &stream);
        if (result == CUDA_SUCCESS && synchronous) {
            result = emulator_capture_unsafe();
        }
        if (result != CUDA_SUCCESS || count == 0 || rows == 0) {
            return result;
        }
        size_t bytes = (rows - 1) * pitch + count * width;
        if (to % width != 0 || pitch % width != 0 ||
            !emulator_range_covers(pointer_of(to), bytes)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        struct emulator_work work = {.kind = EMULATOR_WORK_SET,
                                     .set = {pointer_of(to), value, width, count, rows, pitch}};
        result = emulator_submit(stream, &work, synchronous ? &point : NULL);
        if (result != CUDA_SUCCESS || point == NULL) {
            return result;
        }
    }
    return wait_for(point);
}

CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count)
{
    ENTER();
    return set_on(NULL, true, to, 0, value, 1, count, 1);
}

CUresult cuMemsetD16_v2(CUdeviceptr to, unsigned short value, size_t count)
{
    ENTER();
    return set_on(NULL, true, to, 0, value, 2, count, 1);
}

CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned int value, size_t count)
{
    ENTER();
    return set_on(NULL, true, to, 0, value, 4, count, 1);
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream)
{
    ENTER();
    return set_on(stream, false, to, 0, value, 1, count, 1);
}

CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, CUstream stream)
{
    ENTER();
    return set_on(stream, false, to, 0, value, 2, count, 1);
}

CUresult cuMemsetD32Async(CUdeviceptr to, unsigned int value, size_t count, CUstream stream)
{
    ENTER();
    return set_on(stream, false, to, 0, value, 4, count, 1);
}

CUresult cuMemsetD2D8Async(CUdeviceptr to, size_t pitch, unsigned char value, size_t width,
                           size_t height, CUstream stream)
{
    ENTER();
    return set_on(stream, false, to, pitch, value, 1, width, height);
}

CUresult cuMemsetD2D32Async(CUdeviceptr to, size_t pitch, unsigned int value, size_t width,
                            size_t height, CUstream stream)
{
    ENTER();
    return set_on(stream, false, to, pitch, value, 4, width, height);
}
