/* SPDX-License-Identifier: Apache-2.0 */
/* The fatbin that is embedded in the library: every instance of instances.h. */
#include "kernels/all_reduce.cuh"
#include "kernels/plan.h"

using namespace lamprey;

#define LAMPREY_DEFINE(name, algorithm, element, operators, ranks)                                 \
    extern "C" __global__ void __launch_bounds__(ranks == 2 ? LAMPREY_MAX_THREADS_PAIR             \
                                                            : LAMPREY_MAX_THREADS)                 \
        name(const __grid_constant__ params_for<ranks>::type params)                               \
    {                                                                                              \
        all_reduce<algorithm, element, operators, ranks>(params);                                  \
    }

LAMPREY_KERNELS(LAMPREY_DEFINE)
