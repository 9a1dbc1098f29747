/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels for rows, on a device. */
#ifndef LAMPREY_PLUGIN_ROW_KERNELS_H
#define LAMPREY_PLUGIN_ROW_KERNELS_H

#include "plugin/device.h"

/* Loads them, and finds how many CTAs fit the device: none where they can't be loaded, which is no
 * reason to do without the others. For lamprey_device_load_kernels, which holds its lock and has
 * made the context current. */
void lamprey_row_kernels_load(struct lamprey_device *device);

#endif
