/* SPDX-License-Identifier: Apache-2.0 */
/* The fatbin that is embedded in the library: every instance of instances.h, and the check. */
#include "kernels/all_reduce.cuh"
#include "kernels/check.cuh"
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

extern "C" __global__ void __launch_bounds__(1)
    lamprey_check(const __grid_constant__ lamprey_check_params params)
{
    check(params);
}
