/* SPDX-License-Identifier: Apache-2.0 */
/* The second fatbin of the library: every instance of row_instances.h. */
#include "kernels/row_instances.h"
#include "kernels/row_plan.h"
#include "kernels/rows.cuh"

using namespace lamprey;

#define LAMPREY_DEFINE(name, algorithm, element, ranks, form)                                      \
    extern "C" __global__ void __launch_bounds__(LAMPREY_ROW_THREADS, 1)                           \
        name(const __grid_constant__ row_params_for<ranks>::type params)                           \
    {                                                                                              \
        all_reduce_rows<algorithm, element, ranks, form>(params);                                  \
    }

LAMPREY_ROW_KERNELS(LAMPREY_DEFINE)
