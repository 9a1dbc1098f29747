/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/order.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/log.h"

#define PER_THREAD_STREAM ((CUstream)0x2)

static bool mixing_off;

static void read_mixing(void)
{
    const char *mixing = getenv("NCCL_GRAPH_MIXING_SUPPORT");
    mixing_off = mixing && strcmp(mixing, "0") == 0;
}

/* The per-thread stream is another one in each thread. Never 0. */
static uint64_t handle_identity(CUstream stream)
{
    return stream == PER_THREAD_STREAM ? (uint64_t)pthread_self() | 1
                                       : (uint64_t)(uintptr_t)stream + 1;
}

/* A stream's address may be used again after its destruction; its id isn't. Not for a capturing
 * stream: asking for its id ends the capture, though no documentation says so. */
static uint64_t identity(const struct lamprey_driver *driver, CUstream stream)
{
    unsigned long long id = 0;
    if (driver->StreamGetId && driver->StreamGetId(stream, &id) == CUDA_SUCCESS) {
        return id + 1;
    }
    return handle_identity(stream);
}

static struct lamprey_capture *capture_of(struct lamprey_order *order, cuuint64_t id)
{
    struct lamprey_capture *found = &order->captures[0];
    for (int i = 0; i < LAMPREY_CAPTURES; i++) {
        struct lamprey_capture *capture = &order->captures[i];
        if (capture->id == id) {
            found = capture;
            break;
        }
        if (capture->last_use < found->last_use) {
            found = capture;
        }
    }
    if (found->id != id) {
        memset(found, 0, sizeof *found);
        found->id = id;
    }
    found->last_use = ++order->uses;
    return found;
}

static bool contains(const CUgraphNode *nodes, size_t count, CUgraphNode node)
{
    for (size_t i = 0; i < count; i++) {
        if (nodes[i] == node) {
            return true;
        }
    }
    return false;
}

/* What the stream's next node will depend on: the driver's array, until the next call for it. */
static enum lamprey_status stream_tips(const struct lamprey_driver *driver, CUstream stream,
                                       const CUgraphNode **tips, size_t *count)
{
    CUstreamCaptureStatus capturing = CU_STREAM_CAPTURE_STATUS_NONE;
    const CUgraphEdgeData *edges = NULL;
    *tips = NULL;
    *count = 0;
    enum lamprey_status status = lamprey_driver_check(
        driver->StreamGetCaptureInfo(stream, &capturing, NULL, NULL, tips, &edges, count),
        "cuStreamGetCaptureInfo");
    if (status || capturing != CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        *count = 0;
    }
    return status;
}

/* A capture over several streams: this piece comes after the latest one on another stream. */
static enum lamprey_status chain(const struct lamprey_driver *driver, CUstream stream,
                                 const struct lamprey_capture *capture)
{
    const CUgraphNode *present = NULL; /* any number: the program may have joined many streams */
    CUgraphNode added[LAMPREY_TIPS];
    size_t present_count = 0;
    size_t added_count = 0;
    enum lamprey_status status = stream_tips(driver, stream, &present, &present_count);
    for (size_t i = 0; i < capture->tip_count; i++) {
        if (!contains(present, present_count, capture->tips[i])) {
            added[added_count++] = capture->tips[i];
        }
    }
    if (status || added_count == 0) {
        return status;
    }
    return lamprey_driver_check(
        driver->StreamUpdateCaptureDependencies(stream, added, NULL, added_count,
                                                CU_STREAM_ADD_CAPTURE_DEPENDENCIES),
        "cuStreamUpdateCaptureDependencies");
}

static enum lamprey_status before_captured(struct lamprey_order *order,
                                           struct lamprey_workspace *workspace, CUstream stream,
                                           cuuint64_t id, struct lamprey_order_step *step)
{
    const struct lamprey_driver *driver = workspace->device->driver;
    step->capture = capture_of(order, id);
    if (step->capture->tip_count > 0) {
        return step->capture->stream == step->stream ? LAMPREY_OK
                                                     : chain(driver, stream, step->capture);
    }
    enum lamprey_status status = lamprey_workspace_retain_by_graph(workspace, step->graph);
    if (!status && !step->skip) {
        order->captured = true;
        status = lamprey_driver_check(
            driver->StreamWaitEvent(stream, workspace->serial, CU_EVENT_WAIT_EXTERNAL),
            "cuStreamWaitEvent");
    }
    return status;
}

enum lamprey_status lamprey_order_before(struct lamprey_order *order,
                                         struct lamprey_workspace *workspace, CUstream stream,
                                         struct lamprey_order_step *step)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_mixing);
    const struct lamprey_driver *driver = workspace->device->driver;
    CUstreamCaptureStatus capturing = CU_STREAM_CAPTURE_STATUS_NONE;
    cuuint64_t id = 0;
    memset(step, 0, sizeof *step);
    step->skip = mixing_off;
    enum lamprey_status status = lamprey_driver_check(
        driver->StreamGetCaptureInfo(stream, &capturing, &id, &step->graph, NULL, NULL, NULL),
        "cuStreamGetCaptureInfo");
    if (status) {
        return status;
    }
    if (capturing == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        /* A stream can't be destroyed before its capture ends, so the address will do. */
        step->stream = handle_identity(stream);
        return before_captured(order, workspace, stream, id, step);
    }
    step->stream = identity(driver, stream);
    if (order->captured || (order->used && order->stream != step->stream)) {
        status = lamprey_driver_check(
            driver->StreamWaitEvent(stream, workspace->serial, CU_EVENT_WAIT_DEFAULT),
            "cuStreamWaitEvent");
    }
    return status;
}

/* Makes the record node wait for the piece that ends in tips instead of the one before, which comes
 * first anyway: kernels that the record node waits for can't overlap with those behind them. */
static enum lamprey_status move_record(const struct lamprey_driver *driver,
                                       const struct lamprey_order_step *step,
                                       const CUgraphNode *tips, size_t count)
{
    struct lamprey_capture *capture = step->capture;
    enum lamprey_status status = LAMPREY_OK;
    for (size_t i = 0; i < count && !status; i++) {
        if (!contains(capture->tips, capture->tip_count, tips[i])) {
            status = lamprey_driver_check(
                driver->GraphAddDependencies(step->graph, &tips[i], &capture->record, NULL, 1),
                "cuGraphAddDependencies");
        }
    }
    for (size_t i = 0; i < capture->tip_count && !status; i++) {
        if (!contains(tips, count, capture->tips[i])) {
            status =
                lamprey_driver_check(driver->GraphRemoveDependencies(step->graph, &capture->tips[i],
                                                                     &capture->record, NULL, 1),
                                     "cuGraphRemoveDependencies");
        }
    }
    return status;
}

static enum lamprey_status after_captured(struct lamprey_workspace *workspace, CUstream stream,
                                          const struct lamprey_order_step *step)
{
    const struct lamprey_driver *driver = workspace->device->driver;
    struct lamprey_capture *capture = step->capture;
    const CUgraphNode *present = NULL;
    CUgraphNode tips[LAMPREY_TIPS];
    size_t count = 0;
    enum lamprey_status status = stream_tips(driver, stream, &present, &count);
    if (status || count == 0) {
        return status;
    }
    if (count > LAMPREY_TIPS) {
        lamprey_warn("a captured call ends in %zu graph nodes, more than the %d expected", count,
                     LAMPREY_TIPS);
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    memcpy(tips, present, count * sizeof *tips);
    if (!step->skip && !capture->record) {
        status =
            lamprey_driver_check(driver->GraphAddEventRecordNode(&capture->record, step->graph,
                                                                 tips, count, workspace->serial),
                                 "cuGraphAddEventRecordNode");
    } else if (!step->skip) {
        status = move_record(driver, step, tips, count);
    }
    capture->stream = step->stream;
    capture->tip_count = count;
    memcpy(capture->tips, tips, count * sizeof *tips);
    return status;
}

enum lamprey_status lamprey_order_after(struct lamprey_order *order,
                                        struct lamprey_workspace *workspace, CUstream stream,
                                        const struct lamprey_order_step *step)
{
    if (step->capture) {
        return after_captured(workspace, stream, step);
    }
    order->used = true;
    order->stream = step->stream;
    return lamprey_driver_check(workspace->device->driver->EventRecord(workspace->serial, stream),
                                "cuEventRecord");
}
