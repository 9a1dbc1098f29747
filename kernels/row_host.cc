// SPDX-License-Identifier: Apache-2.0
#include "kernels/host_kernel.h"
#include "kernels/row_instances.h"
#include "kernels/rows.cuh"

namespace {

template <int ALGORITHM, int ELEMENT, int RANKS, int FORM> void run_kernel(const void *params)
{
    lamprey::all_reduce_rows<ALGORITHM, ELEMENT, RANKS, FORM>(
        *static_cast<const typename lamprey::row_params_for<RANKS>::type *>(params));
}

} // namespace

const lamprey_host_kernel lamprey_host_row_kernels[] = {
#define LAMPREY_ROW(name, algorithm, element, ranks, form)                                         \
    {#name, sizeof(lamprey::row_params_for<ranks>::type),                                          \
     run_kernel<algorithm, element, ranks, form>, false},
    LAMPREY_ROW_KERNELS(LAMPREY_ROW)
#undef LAMPREY_ROW
};
const size_t lamprey_host_row_kernel_count = LAMPREY_ROW_KERNEL_COUNT;
