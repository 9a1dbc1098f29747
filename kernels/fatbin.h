/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LAMPREY_KERNELS_FATBIN_H
#define LAMPREY_KERNELS_FATBIN_H

/* Every kernel for every architecture, as cuLibraryLoadData takes it: those of instances.h, and
 * those of row_instances.h. */
extern const unsigned char lamprey_fatbin[] __attribute__((visibility("hidden")));
extern const unsigned char lamprey_row_fatbin[] __attribute__((visibility("hidden")));

#endif
