/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LAMPREY_KERNELS_FATBIN_H
#define LAMPREY_KERNELS_FATBIN_H

/* Every kernel for every architecture, as cuLibraryLoadData takes it. */
extern const unsigned char lamprey_fatbin[] __attribute__((visibility("hidden")));

#endif
