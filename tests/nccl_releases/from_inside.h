/* SPDX-License-Identifier: Apache-2.0 */
/* Old plugin tables have no logger: the library tells its caller by the return address. */
#ifndef LAMPREY_TESTS_NCCL_RELEASES_FROM_INSIDE_H
#define LAMPREY_TESTS_NCCL_RELEASES_FROM_INSIDE_H

#include <stdint.h>

/* Calls function with six register arguments as if from inside the object that handle names: it
 * returns to a return instruction there, which leads back here. Aborts if there is none. */
uintptr_t lamprey_call_from_inside(void *handle, void *function, uintptr_t a, uintptr_t b,
                                   uintptr_t c, uintptr_t d, uintptr_t e, uintptr_t f);

#endif
