// SPDX-License-Identifier: Apache-2.0
#ifndef LAMPREY_TESTS_DOORS_BAD_CALLS_H
#define LAMPREY_TESTS_DOORS_BAD_CALLS_H

// Calls NCCL in every wrong way, and prints what it says: lines of "bad=CASE: CODE TEXT". With two
// GPUs also on communicators, of which the first one is in use.
void bad_calls(void *nccl, bool with_gpus);

#endif
