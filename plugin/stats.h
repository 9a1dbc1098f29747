/* SPDX-License-Identifier: Apache-2.0 */
/* Counters, per communicator and for the process. The fields are those of struct lampreyStats. */
#ifndef LAMPREY_PLUGIN_STATS_H
#define LAMPREY_PLUGIN_STATS_H

#include <stdatomic.h>
#include <stdint.h>

struct lampreyStats;

/* X(field of struct lampreyStats), in its order */
#define LAMPREY_COUNTERS(X)                                                                        \
    X(served)                                                                                      \
    X(served_captured)                                                                             \
    X(served_grouped)                                                                              \
    X(fallback_communicator)                                                                       \
    X(fallback_type)                                                                               \
    X(fallback_operator)                                                                           \
    X(fallback_size)                                                                               \
    X(fallback_empty)                                                                              \
    X(fallback_closed)                                                                             \
    X(failed)                                                                                      \
    X(communicators_served)                                                                        \
    X(communicators_refused)

enum lamprey_counter {
#define LAMPREY_COUNTER_NAME(field) LAMPREY_COUNT_##field,
    LAMPREY_COUNTERS(LAMPREY_COUNTER_NAME)
#undef LAMPREY_COUNTER_NAME
        LAMPREY_COUNTS,
};

struct lamprey_counters {
    _Atomic uint64_t value[LAMPREY_COUNTS];
};

extern struct lamprey_counters lamprey_process_counters;

/* Counts in own (may be NULL) and in the process. */
static inline void lamprey_count(struct lamprey_counters *own, enum lamprey_counter counter)
{
    if (own) {
        atomic_fetch_add_explicit(&own->value[counter], 1, memory_order_relaxed);
    }
    atomic_fetch_add_explicit(&lamprey_process_counters.value[counter], 1, memory_order_relaxed);
}

/* Writes the fields behind size, as far as size reaches. */
void lamprey_counters_read(const struct lamprey_counters *counters, struct lampreyStats *stats);

#endif
