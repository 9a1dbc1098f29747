/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the emulated CUDA driver. One lock guards all bookkeeping; work runs outside of it, on
 * one thread per stream. Handles are numbers that are never used twice, so a stale one is always
 * recognised. */
#ifndef LAMPREY_TESTS_EMULATOR_CUDA_EMULATOR_H
#define LAMPREY_TESTS_EMULATOR_CUDA_EMULATOR_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)
#include <cuda.h>
#include <cudaTypedefs.h>
#pragma GCC visibility pop

#include "kernels/host.h"

#define EMULATOR_MAX_GPUS 8
#define EMULATOR_GRANULARITY ((size_t)2 << 20)
#define EMULATOR_EXPORT __attribute__((visibility("default")))

/* objects.c: handles */
enum emulator_kind {
    EMULATOR_CONTEXT = 1,
    EMULATOR_STREAM,
    EMULATOR_EVENT,
    EMULATOR_GRAPH,
    EMULATOR_NODE,
    EMULATOR_EXEC,
    EMULATOR_LIBRARY,
    EMULATOR_KERNEL,
    EMULATOR_FUNCTION,
    EMULATOR_MODULE,
    EMULATOR_ALLOCATION,
    EMULATOR_USER_OBJECT,
};

struct emulator_object {
    enum emulator_kind kind;
    uint64_t id;
    int references; /* under the lock */
    struct emulator_object *next;
    void (*release)(struct emulator_object *object);
};

/* All of these want the lock held. publish gives the object a handle and one reference for it;
 * retire takes the handle out of use and drops that reference. */
void emulator_object_publish(struct emulator_object *object, enum emulator_kind kind,
                             void (*release)(struct emulator_object *object));
/* Gives a retired object that is still in use a new handle, and one more reference for it. */
void emulator_object_publish_again(struct emulator_object *object);
void emulator_object_retire(struct emulator_object *object);
void emulator_object_hold(struct emulator_object *object);
void emulator_object_drop(struct emulator_object *object);
struct emulator_object *emulator_object_find(uint64_t handle, enum emulator_kind kind);

#define EMULATOR_HANDLE(type, thing) ((type)(uintptr_t)(thing)->object.id)
#define EMULATOR_FIND(type, kind, handle)                                                          \
    ((struct emulator_##type *)emulator_object_find((uint64_t)(uintptr_t)(handle), kind))

/* entry.c: what every exported function starts with */
CUresult emulator_enter(const char *function);
int emulator_lock(void);
void emulator_unlock(const int *token);
/* Runs function(argument) right after the lock is given up: destructors of user objects may not run
 * under it. */
void emulator_defer(void (*function)(void *argument), void *argument);
/* The callback flag: a host function must not call the driver. Returns the old value. */
bool emulator_in_callback(bool inside);
/* The lock itself, for condition variables. */
pthread_mutex_t *emulator_mutex(void);

#define ENTER()                                                                                    \
    do {                                                                                           \
        CUresult entered_ = emulator_enter(__func__);                                              \
        if (entered_ != CUDA_SUCCESS) {                                                            \
            return entered_;                                                                       \
        }                                                                                          \
    } while (0)
#define LOCKED() __attribute__((cleanup(emulator_unlock), unused)) int lock_token_ = emulator_lock()

/* point.c: something that will have happened. Reference counts are atomic; waiting needs no lock.
 */
struct emulator_point {
    atomic_int references;
    atomic_uint done;
    uint64_t time_ns;
};
struct emulator_point *emulator_point_create(void);
struct emulator_point *emulator_point_hold(struct emulator_point *point);
void emulator_point_drop(struct emulator_point *point);
void emulator_point_signal(struct emulator_point *point);
void emulator_point_wait(struct emulator_point *point);
bool emulator_point_reached(const struct emulator_point *point);

/* device.c */
int emulator_device_count(void);
bool emulator_device_valid(CUdevice device);
int emulator_driver_version(void);
int emulator_multiprocessors(void);
int emulator_block_threads(unsigned launched);
int emulator_launch_queue(void);
int emulator_host(void);
int emulator_imex_channel(void); /* -1: none can be opened here */

/* context.c */
struct emulator_stream;
struct emulator_context {
    struct emulator_object object;
    CUdevice device;
    bool primary;
    int retained;    /* primary contexts only */
    uint64_t resets; /* likewise; the handle stays, the id doesn't */
    unsigned flags;
    struct emulator_stream *legacy;
    struct emulator_stream *streams;
    struct emulator_context *next;
};
/* The current context of this thread, or NULL when there is none or it was destroyed. */
struct emulator_context *emulator_context_current(void);
/* A capture may have streams of several contexts. */
void emulator_context_each(void (*visit)(struct emulator_context *context, void *argument),
                           void *argument);

/* work.c: what a stream or a graph node does */
enum emulator_work_kind {
    EMULATOR_WORK_EMPTY,
    EMULATOR_WORK_KERNEL,
    EMULATOR_WORK_COPY,
    EMULATOR_WORK_SET,
    EMULATOR_WORK_HOST,
    EMULATOR_WORK_RECORD, /* in graphs only; outside, an event is the point of an empty operation */
    EMULATOR_WORK_WAIT,   /* in graphs only */
    EMULATOR_WORK_WRITE_VALUE,
    EMULATOR_WORK_WAIT_VALUE,
};

struct emulator_event;
struct emulator_work {
    enum emulator_work_kind kind;
    union {
        struct {
            const struct lamprey_host_kernel *kernel;
            struct lamprey_host_launch launch;
            void *parameters;
            size_t parameter_bytes;
        } kernel;
        struct {
            char *to;
            const char *from;
            size_t bytes;
            size_t rows;
            size_t to_pitch;
            size_t from_pitch;
            void *staged; /* a copy of pageable source memory, owned */
        } copy;
        struct {
            char *to;
            uint32_t value;
            unsigned width;
            size_t count;
            size_t rows;
            size_t pitch;
        } set;
        struct {
            CUhostFn function;
            void *data;
        } host;
        struct {
            struct emulator_event *event; /* a reference */
        } event;
        struct {
            void *address;
            uint64_t value;
            unsigned flags;
            unsigned width;
        } word;
    };
};
/* False when memory runs out. The lock is held. */
bool emulator_work_copy(struct emulator_work *to, const struct emulator_work *from);
void emulator_work_drop(struct emulator_work *work);
/* Without the lock. */
void emulator_work_run(struct emulator_work *work);

/* stream.c */
struct emulator_node;
struct emulator_capture;
struct emulator_operation;
struct emulator_stream {
    struct emulator_object object;
    struct emulator_context *context; /* NULL after the context is gone */
    CUdevice device;
    unsigned flags;
    int priority;
    bool legacy;
    bool internal; /* a lane of a graph: no handle, never blocks on the legacy stream */
    bool closing;
    bool started;
    const void *owner_thread; /* per-thread default streams */
    struct emulator_stream *next;
    struct emulator_operation *head;
    struct emulator_operation *end;
    size_t queued;               /* operations that have not run yet */
    struct emulator_point *tail; /* of the operation pushed last, or NULL */
    void *wake;                  /* pthread_cond_t */
    struct emulator_capture *capture;
    struct emulator_node **deps;
    size_t dep_count;
    CUgraphNode *dep_handles;
};
struct emulator_stream *emulator_stream_make(struct emulator_context *context, unsigned flags,
                                             int priority);
void emulator_stream_close(struct emulator_stream *stream);
/* Without the lock: waits until the stream can take another launch (LAMPREY_EMULATOR_QUEUE). A
 * capturing stream takes any number. */
void emulator_stream_await_room(CUstream handle);
/* handle -> stream of a live context, NULL and per-thread streams included */
CUresult emulator_stream_resolve(CUstream handle, struct emulator_stream **stream);
/* Takes work over. The returned point is the stream's tail, borrowed. NULL: out of memory, work
 * dropped. */
struct emulator_point *emulator_stream_push(struct emulator_stream *stream,
                                            struct emulator_work *work,
                                            struct emulator_point *const *waits, size_t wait_count,
                                            struct emulator_object *hold);
/* Captures or pushes; takes work over whatever happens. With wait_after set, also returns a held
 * point to wait on (NULL if the work was captured). */
CUresult emulator_submit(struct emulator_stream *stream, struct emulator_work *work,
                         struct emulator_point **wait_after);
size_t emulator_stream_count(void);
/* What the context's streams have not done yet: an array (freed by the caller) of held points.
 * NULL: out of memory. */
struct emulator_point **emulator_context_tails(const struct emulator_context *context,
                                               size_t *count);
/* Waits, without the lock, for everything that the context's streams have been given so far. */
void emulator_context_drain(struct emulator_context *context);

/* capture.c */
struct emulator_capture {
    uint64_t id;
    struct emulator_graph *graph;
    CUstreamCaptureMode mode;
    CUstreamCaptureStatus status;
    struct emulator_stream *origin;
    const void *owner;
    struct emulator_capture *next;
};
const void *emulator_thread_identity(void);
/* For calls that a capture may forbid (allocation, synchronisation); invalidates the captures that
 * forbid it. */
CUresult emulator_capture_unsafe(void);
/* For work on the legacy stream: an error while a blocking stream of the context captures. */
CUresult emulator_capture_implicit(struct emulator_stream *legacy);
void emulator_capture_invalidate(struct emulator_capture *capture);
CUresult emulator_capture_add(struct emulator_stream *stream, struct emulator_work *work,
                              struct emulator_node **node);
bool emulator_capture_set_deps(struct emulator_stream *stream, struct emulator_node *const *nodes,
                               size_t count, bool add);
struct emulator_capture *emulator_capture_by_id(uint64_t id);

/* event.c */
struct emulator_event {
    struct emulator_object object;
    CUdevice device;
    struct emulator_context *context;
    unsigned flags;
    struct emulator_point *latest;
    uint64_t capture_id; /* non-zero: last recorded in that capture */
    struct emulator_node **deps;
    size_t dep_count;
};
/* Makes point (a new reference is taken) what the event stands for. */
void emulator_event_set(struct emulator_event *event, struct emulator_point *point);
size_t emulator_event_count(void);

/* graph.c, exec.c */
struct emulator_user_object {
    struct emulator_object object;
    void *pointer;
    CUhostFn destroy;
    unsigned long long count;
};
struct emulator_retained {
    struct emulator_user_object *object;
    unsigned long long count;
};
struct emulator_node {
    struct emulator_object object;
    struct emulator_graph *graph;
    struct emulator_work work;
    struct emulator_node **deps;
    size_t dep_count;
    size_t index;
};
struct emulator_graph {
    struct emulator_object object;
    struct emulator_node **nodes;
    size_t node_count;
    struct emulator_retained *retained;
    size_t retained_count;
};
struct emulator_graph *emulator_graph_make(void);
/* Takes work over. */
struct emulator_node *emulator_graph_add(struct emulator_graph *graph, struct emulator_work *work,
                                         struct emulator_node *const *deps, size_t count);
bool emulator_node_depend(struct emulator_node *node, struct emulator_node *on);
/* True if from is to or comes before it. */
bool emulator_node_precedes(const struct emulator_node *from, const struct emulator_node *to);
bool emulator_retain(struct emulator_retained **list, size_t *list_count,
                     struct emulator_user_object *object, unsigned long long count);
void emulator_user_object_release(struct emulator_user_object *object, unsigned long long count);
bool emulator_append(void *array, size_t *count, size_t element_bytes, const void *element);

/* library.c */
struct emulator_library {
    struct emulator_object object;
};
struct emulator_function {
    struct emulator_object object;
    struct emulator_library *library;
    struct emulator_context *context; /* NULL for a CUkernel */
    const struct lamprey_host_kernel *kernel;
    size_t max_shared_bytes; /* dynamic */
    struct emulator_function *next;
};

/* memory.c: known address ranges */
enum emulator_range_kind {
    EMULATOR_RANGE_DEVICE,
    EMULATOR_RANGE_HOST,
    EMULATOR_RANGE_RESERVED,
    EMULATOR_RANGE_MAPPED,
};
struct emulator_allocation {
    struct emulator_object object;
    int fd;
    size_t bytes;
    CUdevice device;
    unsigned types;   /* CUmemAllocationHandleType bits that it can be exported as */
    unsigned handles; /* cuMemRelease calls still due */
};
struct emulator_range {
    enum emulator_range_kind kind;
    char *base;
    size_t bytes;
    CUdevice device;
    struct emulator_context *context;
    struct emulator_allocation *allocation; /* of a mapping, a reference */
    size_t offset;
    bool registered; /* memory of the program, not to be freed */
    unsigned long long id;
    struct emulator_range *next;
};
/* The innermost range that contains address: a mapping before the reservation around it. */
struct emulator_range *emulator_range_at(const void *address);
struct emulator_range *emulator_range_add(enum emulator_range_kind kind, void *base, size_t bytes);
void emulator_range_remove(struct emulator_range *range);
/* True if all bytes lie in device memory that is known. */
bool emulator_range_covers(const void *address, size_t bytes);
void emulator_memory_free_context(struct emulator_context *context);
void emulator_memory_count(size_t *mappings, size_t *allocations);
/* virtual.c */
size_t emulator_handle_count(void);
/* A new allocation with one handle; takes the file over. The lock is held. */
CUresult emulator_allocation_adopt(int fd, size_t bytes, CUdevice device, unsigned types,
                                   CUmemGenericAllocationHandle *handle);
/* share.c: memory in several processes */
bool emulator_handle_types_known(unsigned types);
bool emulator_handle_types_permitted(unsigned types);
/* The file of a new allocation; -1: there can't be one. */
int emulator_share_file(CUdevice device, size_t bytes);
/* link.c: where stores to an imported allocation's file go; takes the file over. -1: nowhere. */
int emulator_link(int far, size_t bytes, CUdevice device);

#endif
