/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/instances.h"

#include "kernels/plan.h"

static const struct {
    const char *name;
    const char *fused_name;
    enum lamprey_algorithm algorithm;
    enum lamprey_element element;
    enum lamprey_operators operators;
    uint32_t ranks;
} kernels[LAMPREY_KERNEL_COUNT] = {
#define LAMPREY_ROW(name, algorithm, element, operators, ranks)                                    \
    {#name,     operators == LAMPREY_ANY_OPERATOR ? #name "_fused" : NULL,                         \
     algorithm, element,                                                                           \
     operators, ranks},
    LAMPREY_KERNELS(LAMPREY_ROW)
#undef LAMPREY_ROW
};

const char *lamprey_kernel_name(int kernel)
{
    return kernels[kernel].name;
}

const char *lamprey_fused_kernel_name(int kernel)
{
    return kernels[kernel].fused_name;
}

uint32_t lamprey_kernel_threads(int kernel)
{
    return lamprey_max_threads(kernels[kernel].algorithm, kernels[kernel].ranks);
}

int lamprey_kernel_of(enum lamprey_algorithm algorithm, enum lamprey_element element,
                      enum lamprey_operator op, uint32_t nranks)
{
    int best = -1;
    int best_fit = -1;
    for (int i = 0; i < LAMPREY_KERNEL_COUNT; i++) {
        const int sum_only = kernels[i].operators == LAMPREY_SUM_ONLY;
        const int exact = kernels[i].ranks == nranks;
        const int fit = 2 * sum_only + exact;
        if (kernels[i].algorithm == algorithm && kernels[i].element == element &&
            (op == LAMPREY_SUM || !sum_only) && (exact || kernels[i].ranks == 0) &&
            fit > best_fit) {
            best = i;
            best_fit = fit;
        }
    }
    return best;
}

int lamprey_fused_kernel_of(enum lamprey_algorithm algorithm, enum lamprey_element element,
                            uint32_t nranks)
{
    return lamprey_kernel_of(algorithm, element, LAMPREY_MAX, nranks); /* not the sum alone */
}

uint32_t lamprey_element_bytes(enum lamprey_element element)
{
    switch (element) {
    case LAMPREY_F64:
    case LAMPREY_I64:
        return 8;
    case LAMPREY_F32:
    case LAMPREY_I32:
        return 4;
    case LAMPREY_E4M3:
    case LAMPREY_E5M2:
    case LAMPREY_I8:
        return 1;
    default:
        return 2;
    }
}

uint32_t lamprey_element_vector_cells(enum lamprey_element element)
{
    return element >= LAMPREY_I8 ? 2 : 1;
}
