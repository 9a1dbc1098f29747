/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/order.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PER_THREAD_STREAM ((CUstream)0x2)

static bool mixing_off;

static void read_mixing(void)
{
    const char *mixing = getenv("NCCL_GRAPH_MIXING_SUPPORT");
    mixing_off = mixing && strcmp(mixing, "0") == 0;
}

/* A stream's address may be used again after its destruction; its id isn't. Never 0. */
static uint64_t identity(const struct lamprey_driver *driver, CUstream stream)
{
    unsigned long long id = 0;
    if (driver->StreamGetId && driver->StreamGetId(stream, &id) == CUDA_SUCCESS) {
        return id + 1;
    }
    /* The per-thread stream is another one in each thread. */
    return stream == PER_THREAD_STREAM ? (uint64_t)pthread_self() | 1
                                       : (uint64_t)(uintptr_t)stream + 1;
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

static enum lamprey_status before_captured(struct lamprey_order *order,
                                           struct lamprey_workspace *workspace, CUstream stream,
                                           cuuint64_t id, struct lamprey_order_step *step)
{
    const struct lamprey_driver *driver = workspace->device->driver;
    step->capture = capture_of(order, id);
    enum lamprey_status status = LAMPREY_OK;
    if (!step->capture->last) {
        status = lamprey_workspace_retain_by_graph(workspace, step->graph);
        if (!status && !step->skip) {
            order->captured = true;
            status = lamprey_driver_check(
                driver->StreamWaitEvent(stream, workspace->serial, CU_EVENT_WAIT_EXTERNAL),
                "cuStreamWaitEvent");
        }
    } else if (step->capture->stream != step->stream) {
        status = lamprey_driver_check(
            driver->StreamUpdateCaptureDependencies(stream, &step->capture->last, NULL, 1,
                                                    CU_STREAM_ADD_CAPTURE_DEPENDENCIES),
            "cuStreamUpdateCaptureDependencies");
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
    step->stream = identity(driver, stream);
    step->skip = mixing_off;
    enum lamprey_status status = lamprey_driver_check(
        driver->StreamGetCaptureInfo(stream, &capturing, &id, &step->graph, NULL, NULL, NULL),
        "cuStreamGetCaptureInfo");
    if (status) {
        return status;
    }
    if (capturing == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        return before_captured(order, workspace, stream, id, step);
    }
    if (order->captured || (order->used && order->stream != step->stream)) {
        status = lamprey_driver_check(
            driver->StreamWaitEvent(stream, workspace->serial, CU_EVENT_WAIT_DEFAULT),
            "cuStreamWaitEvent");
    }
    return status;
}

static enum lamprey_status after_captured(struct lamprey_workspace *workspace, CUstream stream,
                                          const struct lamprey_order_step *step)
{
    const struct lamprey_driver *driver = workspace->device->driver;
    struct lamprey_capture *capture = step->capture;
    CUstreamCaptureStatus capturing = CU_STREAM_CAPTURE_STATUS_NONE;
    const CUgraphNode *nodes = NULL;
    size_t count = 0;
    const CUgraphEdgeData *edges = NULL;
    enum lamprey_status status = lamprey_driver_check(
        driver->StreamGetCaptureInfo(stream, &capturing, NULL, NULL, &nodes, &edges, &count),
        "cuStreamGetCaptureInfo");
    if (status || capturing != CU_STREAM_CAPTURE_STATUS_ACTIVE || count == 0) {
        return status;
    }
    capture->stream = step->stream;
    capture->last = nodes[count - 1];
    if (step->skip) {
        return LAMPREY_OK;
    }
    if (!capture->record) {
        return lamprey_driver_check(driver->GraphAddEventRecordNode(&capture->record, step->graph,
                                                                    nodes, count,
                                                                    workspace->serial),
                                    "cuGraphAddEventRecordNode");
    }
    for (size_t i = 0; i < count && !status; i++) {
        status = lamprey_driver_check(
            driver->GraphAddDependencies(step->graph, &nodes[i], &capture->record, NULL, 1),
            "cuGraphAddDependencies");
    }
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
