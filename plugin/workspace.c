/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/workspace.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/check.h"

#define ALARMS 1024     /* a cache line apart; more than programs have communicators */
#define ALARM_STRIDE 16 /* in words */

_Static_assert(LAMPREY_ALARM_WORDS <= ALARM_STRIDE, "one communicator's, one stride");

/* Pages of alarms, never freed: freeing pinned memory waits for the whole GPU. */
struct alarm_page {
    struct alarm_page *next;
    const struct lamprey_device *device;
    uint32_t *words;
    bool used[ALARMS];
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* of the pages */
static struct alarm_page *pages;

/* Released, but perhaps not idle. A stack without a lock, since graphs' destructors push to it from
 * a thread of the driver's. */
static _Atomic(struct lamprey_workspace *) dead;

static enum lamprey_status add_page(const struct lamprey_device *device)
{
    struct alarm_page *page = calloc(1, sizeof *page);
    if (!page) {
        return LAMPREY_ERROR_MEMORY;
    }
    enum lamprey_status status =
        lamprey_driver_check(device->driver->MemHostAlloc(
                                 (void **)&page->words, ALARMS * ALARM_STRIDE * sizeof(uint32_t),
                                 CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP),
                             "cuMemHostAlloc");
    if (status) {
        free(page);
        return status;
    }
    page->device = device;
    page->next = pages;
    pages = page;
    return LAMPREY_OK;
}

static atomic_uint *find_free_alarm(const struct lamprey_device *device)
{
    for (struct alarm_page *page = pages; page; page = page->next) {
        for (int i = 0; i < ALARMS; i++) {
            if (page->device == device && !page->used[i]) {
                page->used[i] = true;
                return (atomic_uint *)(page->words + i * ALARM_STRIDE);
            }
        }
    }
    return NULL;
}

static void silence(atomic_uint *alarm)
{
    for (int i = 0; i < LAMPREY_ALARM_WORDS; i++) {
        atomic_store(&alarm[i], 0);
    }
}

static enum lamprey_status take_alarm(const struct lamprey_device *device, atomic_uint **word)
{
    enum lamprey_status status = LAMPREY_OK;
    pthread_mutex_lock(&mutex);
    *word = find_free_alarm(device);
    if (!*word) {
        status = add_page(device);
        *word = find_free_alarm(device);
    }
    pthread_mutex_unlock(&mutex);
    if (*word) {
        silence(*word);
    }
    return status;
}

static void return_alarm(atomic_uint *word)
{
    pthread_mutex_lock(&mutex);
    for (struct alarm_page *page = pages; page; page = page->next) {
        ptrdiff_t offset = (uint32_t *)word - page->words;
        if (offset >= 0 && offset < ALARMS * ALARM_STRIDE) {
            page->used[offset / ALARM_STRIDE] = false;
        }
    }
    pthread_mutex_unlock(&mutex);
}

static void destroy(struct lamprey_workspace *workspace)
{
    const struct lamprey_device *device = workspace->device;
    for (uint32_t rank = 0; rank < LAMPREY_MAX_RANKS; rank++) {
        lamprey_memory_destroy(device, &workspace->peers[rank]);
    }
    lamprey_memory_destroy(device, &workspace->own);
    if (workspace->serial) {
        device->driver->EventDestroy(workspace->serial);
    }
    if (workspace->join) {
        device->driver->EventDestroy(workspace->join);
    }
    if (workspace->alarm) {
        return_alarm(workspace->alarm);
    }
    free(workspace);
}

size_t lamprey_workspace_bytes(uint32_t nranks, uint32_t lanes, uint32_t slot_cells)
{
    return lamprey_staging_bytes(lanes, slot_cells) + lanes * sizeof(struct lamprey_lane) +
           LAMPREY_SCRATCH_BYTES + lamprey_check_bytes(nranks) + sizeof(struct lamprey_check_state);
}

enum lamprey_status lamprey_workspace_clear(struct lamprey_workspace *workspace, CUstream stream)
{
    const struct lamprey_driver *driver = workspace->device->driver;
    const size_t staging = lamprey_staging_bytes(workspace->lanes, workspace->slot_cells);
    const size_t bytes =
        lamprey_workspace_bytes(workspace->nranks, workspace->lanes, workspace->slot_cells);
    enum lamprey_status status = lamprey_driver_check(
        driver->MemsetD8Async(workspace->own.address, 0xff, staging, stream), "cuMemsetD8Async");
    if (!status) {
        status = lamprey_driver_check(
            driver->MemsetD8Async(workspace->lane_states, 0, bytes - staging, stream),
            "cuMemsetD8Async");
    }
    if (!status) { /* whoever frees the memory waits for this */
        status =
            lamprey_driver_check(driver->EventRecord(workspace->serial, stream), "cuEventRecord");
    }
    return status;
}

static enum lamprey_status fill(struct lamprey_workspace *workspace, enum lamprey_sharing sharing,
                                CUstream stream)
{
    const struct lamprey_driver *driver = workspace->device->driver;
    const size_t bytes =
        lamprey_workspace_bytes(workspace->nranks, workspace->lanes, workspace->slot_cells);
    enum lamprey_status status = take_alarm(workspace->device, &workspace->alarm);
    if (!status) {
        status = lamprey_driver_check(
            driver->MemHostGetDevicePointer(&workspace->device_alarm, workspace->alarm, 0),
            "cuMemHostGetDevicePointer");
    }
    if (!status) {
        status = lamprey_driver_check(
            driver->EventCreate(&workspace->serial, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    }
    if (!status) {
        status = lamprey_driver_check(
            driver->EventCreate(&workspace->join, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    }
    if (!status) {
        status = lamprey_memory_create(workspace->device, bytes, sharing, &workspace->own);
    }
    if (status) {
        return status;
    }
    workspace->lane_states =
        workspace->own.address + lamprey_staging_bytes(workspace->lanes, workspace->slot_cells);
    workspace->scratch = workspace->lane_states + workspace->lanes * sizeof(struct lamprey_lane);
    workspace->check_cells = workspace->scratch + LAMPREY_SCRATCH_BYTES;
    workspace->check_state = workspace->check_cells + lamprey_check_bytes(workspace->nranks);
    return lamprey_workspace_clear(workspace, stream);
}

enum lamprey_status lamprey_workspace_create(const struct lamprey_device *device, uint32_t rank,
                                             uint32_t nranks, uint32_t lanes, uint32_t slot_cells,
                                             enum lamprey_sharing sharing, CUstream stream,
                                             struct lamprey_workspace **workspace)
{
    struct lamprey_workspace *made = calloc(1, sizeof *made);
    if (!made) {
        return LAMPREY_ERROR_MEMORY;
    }
    atomic_init(&made->references, 1);
    made->device = device;
    made->rank = rank;
    made->nranks = nranks;
    made->lanes = lanes;
    made->slot_cells = slot_cells;
    enum lamprey_status status = fill(made, sharing, stream);
    if (status) {
        destroy(made);
        return status;
    }
    *workspace = made;
    return LAMPREY_OK;
}

static void bury(struct lamprey_workspace *workspace)
{
    workspace->next_dead = atomic_load(&dead);
    while (!atomic_compare_exchange_weak(&dead, &workspace->next_dead, workspace)) {
    }
}

void lamprey_workspace_release(struct lamprey_workspace *workspace)
{
    if (workspace && atomic_fetch_sub(&workspace->references, 1) == 1) {
        bury(workspace);
    }
}

static void CUDA_CB release_from_graph(void *context)
{
    lamprey_workspace_release(context);
}

enum lamprey_status lamprey_workspace_retain_by_graph(struct lamprey_workspace *workspace,
                                                      CUgraph graph)
{
    const struct lamprey_driver *driver = workspace->device->driver;
    CUuserObject object = NULL;
    atomic_fetch_add(&workspace->references, 1);
    enum lamprey_status status =
        lamprey_driver_check(driver->UserObjectCreate(&object, workspace, release_from_graph, 1,
                                                      CU_USER_OBJECT_NO_DESTRUCTOR_SYNC),
                             "cuUserObjectCreate");
    if (status) {
        atomic_fetch_sub(&workspace->references, 1);
        return status;
    }
    status = lamprey_driver_check(
        driver->GraphRetainUserObject(graph, object, 1, CU_GRAPH_USER_OBJECT_MOVE),
        "cuGraphRetainUserObject");
    if (status) {
        driver->UserObjectRelease(object, 1); /* runs the destructor */
    }
    return status;
}

/* A dead context counts as idle: nothing runs there any more. */
bool lamprey_workspace_idle(const struct lamprey_workspace *workspace)
{
    return workspace->device->driver->EventQuery(workspace->serial) != CUDA_ERROR_NOT_READY;
}

void lamprey_workspace_reap(void)
{
    struct lamprey_workspace *list = atomic_exchange(&dead, NULL);
    while (list) {
        struct lamprey_workspace *workspace = list;
        list = list->next_dead;
        if (lamprey_device_lost(workspace->device)) {
            free(workspace); /* all else went with the context */
            continue;
        }
        struct lamprey_visit visit;
        if (lamprey_visit_begin(workspace->device, &visit) != LAMPREY_OK) {
            bury(workspace);
            continue;
        }
        if (lamprey_workspace_idle(workspace)) {
            destroy(workspace);
        } else {
            bury(workspace);
        }
        lamprey_visit_end(&visit);
    }
}

void lamprey_workspace_abort(struct lamprey_workspace *workspace)
{
    atomic_store(&workspace->alarm[LAMPREY_ALARM_ABORT], 1);
}

void lamprey_workspace_rearm(struct lamprey_workspace *workspace)
{
    silence(workspace->alarm);
    atomic_store(&workspace->mismatch_told, false);
}

bool lamprey_workspace_timed_out(const struct lamprey_workspace *workspace)
{
    return atomic_load(&workspace->alarm[LAMPREY_ALARM_TIMED_OUT]) != 0;
}
