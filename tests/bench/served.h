/* SPDX-License-Identifier: Apache-2.0 */
/* Whether Lamprey is in this process, and what it serves. */
#ifndef LAMPREY_TESTS_BENCH_SERVED_H
#define LAMPREY_TESTS_BENCH_SERVED_H

#include <nccl.h>
#include <stdint.h>

/* Calls of this communicator that Lamprey has served so far; -1 where it isn't loaded. */
int64_t bench_served(ncclComm_t comm);

#endif
