/* SPDX-License-Identifier: Apache-2.0 */
/* One NCCL image that we are attached to: its originals, as they were before the redirection. A
 * process may hold two NCCLs; a communicator only ever goes back to the one that made it. */
#ifndef LAMPREY_PLUGIN_NCCL_H
#define LAMPREY_PLUGIN_NCCL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "plugin/hook.h"
#include "plugin/image.h"
#include "plugin/nccl_functions.h"

#define LAMPREY_MAX_IMAGES 4

struct lamprey_nccl {
    int index;
    int version;             /* ncclGetVersion */
    bool over_got;           /* redirected over GOT slots without being asked to: serves nothing */
    atomic_bool nonblocking; /* a communicator was made with blocking = 0 */
    atomic_bool shares_resources; /* some communicator shares its streams with its children */
    struct lamprey_image image;
    _Atomic(struct lamprey_hooks *) hooks; /* set once installed */
#define LAMPREY_MEMBER(name, parameters, arguments) ncclResult_t(*name) parameters;
    LAMPREY_NCCL_INTERCEPTED(LAMPREY_MEMBER)
    LAMPREY_NCCL_ORDERED(LAMPREY_MEMBER)
#undef LAMPREY_MEMBER
#define LAMPREY_MEMBER(name, parameters) ncclResult_t(*name) parameters;
    LAMPREY_NCCL_CALLED(LAMPREY_MEMBER)
#undef LAMPREY_MEMBER
};

/* The way to a redirected function's original; NULL where the image hasn't got it. It is published
 * just before the redirection, which no memory model knows of: hence the acquire, which also covers
 * the other fields. */
#define LAMPREY_ORIGINAL(nccl, name) __atomic_load_n(&(nccl)->name, __ATOMIC_ACQUIRE)

/* Slot by slot; only attach.c writes, before the redirection becomes visible. */
extern struct lamprey_nccl lamprey_nccls[LAMPREY_MAX_IMAGES];

/* What replaces the functions of image index, in the order of the lists: intercepted, then ordered.
 */
extern void *const lamprey_replacements[LAMPREY_MAX_IMAGES][64];

/* Set in the child of a fork, where CUDA is gone: everything passes through. */
extern atomic_bool lamprey_forked;

#endif
