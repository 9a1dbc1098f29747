/* SPDX-License-Identifier: Apache-2.0 */
/* What every exported function starts with: initialised, not forked, not inside a callback, and no
 * failure asked for. */
#include "tests/emulator/cuda/emulator.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FAULTS 32

struct fault {
    char name[64];
    unsigned long nth; /* 0: every call */
    atomic_ulong calls;
    CUresult result;
};

struct deferred {
    void (*function)(void *argument);
    void *argument;
    struct deferred *next;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct deferred *deferred_list;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct fault faults[MAX_FAULTS];
static size_t fault_count;
static atomic_bool initialised;
static atomic_bool forked;
static _Thread_local bool in_callback;

static void after_fork(void)
{
    /* Only a process that used the driver can't use it in its children. */
    if (atomic_load(&initialised)) {
        atomic_store(&forked, true);
    }
}

static CUresult fault_default(const char *name)
{
    if (strstr(name, "Import") != NULL || strstr(name, "Export") != NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* LAMPREY_EMULATOR_FAIL=function:n[:result],...: the n-th call fails, 0 for every call. */
static void parse_faults(void)
{
    const char *text = getenv("LAMPREY_EMULATOR_FAIL");
    while (text != NULL && *text != '\0') {
        size_t length = strcspn(text, ",");
        char item[128] = {0};
        snprintf(item, sizeof(item), "%.*s", (int)length, text);
        struct fault *fault = &faults[fault_count];
        unsigned long nth = 0;
        int result = 0;
        int fields = sscanf(item, "%63[^:]:%lu:%d", fault->name, &nth, &result);
        if (fields < 2 || fault_count + 1 == MAX_FAULTS) {
            fprintf(stderr, "emulator: LAMPREY_EMULATOR_FAIL: \"%s\" is not function:n[:result]\n",
                    item);
        } else {
            fault->nth = nth;
            fault->result = fields == 3 ? (CUresult)result : fault_default(fault->name);
            fault_count++;
        }
        text += length + (text[length] == ',');
    }
}

static void start(void)
{
    parse_faults();
    pthread_atfork(NULL, NULL, after_fork);
}

static CUresult injected(const char *function)
{
    for (size_t i = 0; i < fault_count; i++) {
        struct fault *fault = &faults[i];
        size_t length = strlen(fault->name);
        if (strncmp(function, fault->name, length) != 0 ||
            (function[length] != '\0' && strncmp(function + length, "_v", 2) != 0)) {
            continue;
        }
        unsigned long call = atomic_fetch_add(&fault->calls, 1) + 1;
        if (fault->nth == 0 || fault->nth == call) {
            return fault->result;
        }
    }
    return CUDA_SUCCESS;
}

CUresult emulator_enter(const char *function)
{
    if (!atomic_load_explicit(&initialised, memory_order_acquire) || atomic_load(&forked)) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (in_callback) {
        return CUDA_ERROR_NOT_PERMITTED;
    }
    return fault_count > 0 ? injected(function) : CUDA_SUCCESS;
}

bool emulator_in_callback(bool inside)
{
    bool before = in_callback;
    in_callback = inside;
    return before;
}

int emulator_lock(void)
{
    pthread_mutex_lock(&mutex);
    return 0;
}

void emulator_unlock(const int *token)
{
    (void)token;
    struct deferred *list = deferred_list;
    deferred_list = NULL;
    pthread_mutex_unlock(&mutex);
    while (list != NULL) {
        struct deferred *next = list->next;
        bool before = emulator_in_callback(true);
        list->function(list->argument);
        emulator_in_callback(before);
        free(list);
        list = next;
    }
}

pthread_mutex_t *emulator_mutex(void)
{
    return &mutex;
}

void emulator_defer(void (*function)(void *argument), void *argument)
{
    struct deferred *item = malloc(sizeof(*item));
    if (item == NULL) {
        return; /* a destructor that never runs is the smaller evil */
    }
    *item = (struct deferred){function, argument, NULL};
    struct deferred **link = &deferred_list;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = item;
}

CUresult cuInit(unsigned int flags)
{
    pthread_once(&once, start);
    if (atomic_load(&forked)) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (flags != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = fault_count > 0 ? injected("cuInit") : CUDA_SUCCESS;
    if (result != CUDA_SUCCESS) {
        return result;
    }
    if (emulator_device_count() == 0) {
        return CUDA_ERROR_NO_DEVICE;
    }
    atomic_store_explicit(&initialised, true, memory_order_release);
    return CUDA_SUCCESS;
}

EMULATOR_EXPORT void lampreyEmulatorCounts(size_t *mappings, size_t *allocations, size_t *handles,
                                           size_t *streams, size_t *events);

/* What is live now: VMM mappings, cuMemAlloc and host allocations, VMM handles, streams and events
 * of the program. */
void lampreyEmulatorCounts(size_t *mappings, size_t *allocations, size_t *handles, size_t *streams,
                           size_t *events)
{
    LOCKED();
    size_t handle_count = 0;
    size_t mapping_count = 0;
    size_t allocation_count = 0;
    emulator_memory_count(&mapping_count, &allocation_count);
    handle_count = emulator_handle_count();
    if (mappings != NULL) {
        *mappings = mapping_count;
    }
    if (allocations != NULL) {
        *allocations = allocation_count;
    }
    if (handles != NULL) {
        *handles = handle_count;
    }
    if (streams != NULL) {
        *streams = emulator_stream_count();
    }
    if (events != NULL) {
        *events = emulator_event_count();
    }
}
