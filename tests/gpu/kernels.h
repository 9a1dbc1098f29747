/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LAMPREY_TESTS_GPU_KERNELS_H
#define LAMPREY_TESTS_GPU_KERNELS_H

/* The kernels of kernels.cu. */
extern "C" const unsigned char lamprey_gpu_tests_fatbin[] __attribute__((visibility("hidden")));

#endif
