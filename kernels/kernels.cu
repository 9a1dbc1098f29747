/* SPDX-License-Identifier: Apache-2.0 */
/* The fatbin that is embedded in the library: every instance of instances.h. */
#include "kernels/instances.h"
#include "kernels/one_shot.cuh"

#define LAMPREY_DEFINE(name, type, ranks)                                                          \
    extern "C" __global__ void __launch_bounds__(LAMPREY_CTA_THREADS)                              \
        name(const __grid_constant__ lamprey_all_reduce_params params)                             \
    {                                                                                              \
        lamprey::one_shot<type, ranks>(params).run();                                              \
    }

LAMPREY_ONE_SHOT_KERNELS(LAMPREY_DEFINE)
