/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/row_kernels.h"

#include <pthread.h>

#include "kernels/fatbin.h"
#include "kernels/row_plan.h"
#include "plugin/log.h"

#define FIRST_GPU_WITH_CLUSTERS 90

/* One for all devices; the caller's lock is one device's. */
static CUlibrary library;
static pthread_mutex_t library_mutex = PTHREAD_MUTEX_INITIALIZER;

/* CTAs of the largest size that fit the GPU together, in clusters of device->row_cluster. */
static enum lamprey_status count_ctas(const struct lamprey_device *device, CUfunction function,
                                      uint32_t *ctas)
{
    const struct lamprey_driver *driver = device->driver;
    int count = 0;
    if (device->row_cluster == 1) {
        enum lamprey_status status = lamprey_driver_check(
            driver->OccupancyMaxActiveBlocksPerMultiprocessor(&count, function, LAMPREY_ROW_THREADS,
                                                              LAMPREY_ROW_SHARED_BYTES),
            "cuOccupancyMaxActiveBlocksPerMultiprocessor");
        *ctas = (uint32_t)(count * device->multiprocessors);
        return status;
    }
    CUlaunchAttribute cluster = {
        .id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        .value.clusterDim = {device->row_cluster, 1, 1},
    };
    const CUlaunchConfig config = {
        .gridDimX = device->row_cluster,
        .gridDimY = 1,
        .gridDimZ = 1,
        .blockDimX = LAMPREY_ROW_THREADS,
        .blockDimY = 1,
        .blockDimZ = 1,
        .sharedMemBytes = LAMPREY_ROW_SHARED_BYTES,
        .attrs = &cluster,
        .numAttrs = 1,
    };
    enum lamprey_status status =
        lamprey_driver_check(driver->OccupancyMaxActiveClusters(&count, function, &config),
                             "cuOccupancyMaxActiveClusters");
    *ctas = (uint32_t)count * device->row_cluster;
    return status;
}

static enum lamprey_status load(struct lamprey_device *device, int index)
{
    const struct lamprey_driver *driver = device->driver;
    CUkernel kernel = NULL;
    CUfunction function = NULL;
    uint32_t ctas = 0;
    enum lamprey_status status = lamprey_driver_check(
        driver->LibraryGetKernel(&kernel, library, lamprey_row_kernel_name(index)),
        "cuLibraryGetKernel");
    if (!status) {
        status = lamprey_driver_check(driver->KernelGetFunction(&function, kernel),
                                      "cuKernelGetFunction");
    }
    if (!status && driver->FuncLoad) {
        status = lamprey_driver_check(driver->FuncLoad(function), "cuFuncLoad");
    }
    if (!status) {
        status = lamprey_driver_check(
            driver->FuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                     LAMPREY_ROW_SHARED_BYTES),
            "cuFuncSetAttribute");
    }
    if (!status) {
        status = count_ctas(device, function, &ctas);
    }
    if (!status) {
        device->row_ctas = ctas < device->row_ctas ? ctas : device->row_ctas;
        device->row_kernels[index] = function;
    }
    return status;
}

static enum lamprey_status load_library(const struct lamprey_driver *driver)
{
    enum lamprey_status status = LAMPREY_OK;
    pthread_mutex_lock(&library_mutex);
    if (!library) {
        status = lamprey_driver_check(
            driver->LibraryLoadData(&library, lamprey_row_fatbin, NULL, NULL, 0, NULL, NULL, 0),
            "cuLibraryLoadData");
    }
    pthread_mutex_unlock(&library_mutex);
    return status;
}

static void do_without(struct lamprey_device *device, const char *missing)
{
    device->row_ctas = 0;
    lamprey_info("all-reduces with an epilogue are not served: %s can't be loaded", missing);
}

void lamprey_row_kernels_load(struct lamprey_device *device)
{
    const struct lamprey_driver *driver = device->driver;
    device->row_ctas = UINT32_MAX;
    device->row_cluster =
        device->capability >= FIRST_GPU_WITH_CLUSTERS && driver->OccupancyMaxActiveClusters
            ? LAMPREY_MAX_CLUSTER
            : 1;
    if (load_library(driver) != LAMPREY_OK) {
        do_without(device, "their library");
        return;
    }
    for (int i = 0; i < LAMPREY_ROW_KERNEL_COUNT; i++) {
        if (load(device, i) != LAMPREY_OK) {
            do_without(device, lamprey_row_kernel_name(i));
            return;
        }
    }
}
