/* SPDX-License-Identifier: Apache-2.0 */
/* The sizes of lamprey.h's structs, as each standard of C and C++ sees them. */
#ifndef LAMPREY_TESTS_HEADER_STANDARD_H
#define LAMPREY_TESTS_HEADER_STANDARD_H

#include <stddef.h>

#define LAMPREY_HEADER_STRUCTS 6

#ifdef __cplusplus
extern "C" {
#endif

void lamprey_header_c99(size_t *sizes);
void lamprey_header_c11(size_t *sizes);
void lamprey_header_c17(size_t *sizes);
void lamprey_header_cxx11(size_t *sizes);
void lamprey_header_cxx17(size_t *sizes);
void lamprey_header_cxx20(size_t *sizes);

#ifdef __cplusplus
}
#endif

#endif
