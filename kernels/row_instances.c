/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/row_instances.h"

static const struct {
    const char *name;
    enum lamprey_algorithm algorithm;
    enum lamprey_element element;
    uint32_t ranks;
    enum lamprey_row_form form;
} kernels[LAMPREY_ROW_KERNEL_COUNT] = {
#define LAMPREY_ROW(name, algorithm, element, ranks, form) {#name, algorithm, element, ranks, form},
    LAMPREY_ROW_KERNELS(LAMPREY_ROW)
#undef LAMPREY_ROW
};

const char *lamprey_row_kernel_name(int kernel)
{
    return kernels[kernel].name;
}

bool lamprey_row_kernel_is_near(int kernel)
{
    return kernels[kernel].ranks != 0;
}

int lamprey_row_kernel_of(enum lamprey_algorithm algorithm, enum lamprey_element element,
                          uint32_t nranks, enum lamprey_row_form form)
{
    int general = -1;
    for (int i = 0; i < LAMPREY_ROW_KERNEL_COUNT; i++) {
        if (kernels[i].algorithm != algorithm || kernels[i].element != element) {
            continue;
        }
        if (kernels[i].form == LAMPREY_ROWS_ANY) {
            general = i;
        } else if (kernels[i].form == form && kernels[i].ranks == nranks) {
            return i;
        }
    }
    return general;
}
