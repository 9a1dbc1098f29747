/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/device.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/check.h"
#include "kernels/fatbin.h"
#include "plugin/row_kernels.h"
#include "topology/topology.h"

#define MAX_DEVICES 64

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* never held while kernels are loaded */
static struct lamprey_device *devices[MAX_DEVICES];
static atomic_bool any_open;
static pthread_mutex_t library_mutex = PTHREAD_MUTEX_INITIALIZER;
static CUlibrary library; /* one for all contexts */

static enum lamprey_status describe(struct lamprey_device *device)
{
    const struct lamprey_driver *driver = device->driver;
    int major = 0;
    int minor = 0;
    int domain = 0;
    int bus = 0;
    int slot = 0;
    const struct {
        CUdevice_attribute attribute;
        int *value;
    } wanted[] = {
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &major},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &minor},
        /* Under MPS this is the client's share. */
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &device->multiprocessors},
        {CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, &domain},
        {CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, &bus},
        {CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, &slot},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        enum lamprey_status status = lamprey_driver_check(
            driver->DeviceGetAttribute(wanted[i].value, wanted[i].attribute, device->device),
            "cuDeviceGetAttribute");
        if (status) {
            return status;
        }
    }
    device->capability = major * 10 + minor;
    device->pci_id = lamprey_pci_id((uint32_t)domain, (uint32_t)bus, (uint32_t)slot, 0);
    CUuuid uuid;
    if (driver->DeviceGetUuid && driver->DeviceGetUuid(&uuid, device->device) == CUDA_SUCCESS) {
        memcpy(device->uuid, uuid.bytes, sizeof device->uuid);
    }
    return LAMPREY_OK;
}

static enum lamprey_status open_device(int ordinal, struct lamprey_device **opened)
{
    struct lamprey_device *device = calloc(1, sizeof *device);
    if (!device) {
        return LAMPREY_ERROR_MEMORY;
    }
    device->driver = lamprey_driver_get();
    pthread_mutex_init(&device->loading, NULL);
    device->ordinal = ordinal;
    enum lamprey_status status =
        lamprey_driver_check(device->driver->DeviceGet(&device->device, ordinal), "cuDeviceGet");
    if (!status) {
        status = describe(device);
    }
    if (!status) {
        status = lamprey_driver_check(
            device->driver->DevicePrimaryCtxRetain(&device->context, device->device),
            "cuDevicePrimaryCtxRetain");
    }
    if (!status && device->driver->CtxGetId) {
        status = lamprey_driver_check(
            device->driver->CtxGetId(device->context, &device->context_id), "cuCtxGetId");
    }
    if (status) {
        free(device);
        return status;
    }
    *opened = device;
    atomic_store(&any_open, true);
    return LAMPREY_OK;
}

enum lamprey_status lamprey_device_get(int ordinal, struct lamprey_device **device)
{
    if (ordinal < 0 || ordinal >= MAX_DEVICES) {
        return LAMPREY_ERROR_INVALID;
    }
    if (!lamprey_driver_get()) {
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    pthread_mutex_lock(&mutex);
    enum lamprey_status status = LAMPREY_OK;
    if (!devices[ordinal] || lamprey_device_lost(devices[ordinal])) {
        status = open_device(ordinal, &devices[ordinal]);
    }
    *device = devices[ordinal];
    pthread_mutex_unlock(&mutex);
    return status;
}

bool lamprey_device_lost(const struct lamprey_device *device)
{
    unsigned long long id = 0;
    return device->driver->CtxGetId &&
           (device->driver->CtxGetId(device->context, &id) != CUDA_SUCCESS ||
            id != device->context_id);
}

bool lamprey_device_any(void)
{
    return atomic_load(&any_open);
}

static enum lamprey_status load_kernel(const struct lamprey_driver *driver, const char *name,
                                       CUfunction *function)
{
    CUkernel kernel = NULL;
    enum lamprey_status status = lamprey_driver_check(
        driver->LibraryGetKernel(&kernel, library, name), "cuLibraryGetKernel");
    if (!status) {
        status = lamprey_driver_check(driver->KernelGetFunction(function, kernel),
                                      "cuKernelGetFunction");
    }
    if (!status && driver->FuncLoad) {
        status = lamprey_driver_check(driver->FuncLoad(*function), "cuFuncLoad");
    }
    return status;
}

/* A kernel of lanes. */
static enum lamprey_status load_lanes(const struct lamprey_device *device, const char *name,
                                      uint32_t threads, CUfunction *loaded, uint32_t *resident)
{
    const struct lamprey_driver *driver = device->driver;
    CUfunction function = NULL;
    int per_multiprocessor = 0;
    enum lamprey_status status = load_kernel(driver, name, &function);
    if (!status) {
        status = lamprey_driver_check(driver->OccupancyMaxActiveBlocksPerMultiprocessor(
                                          &per_multiprocessor, function, (int)threads, 0),
                                      "cuOccupancyMaxActiveBlocksPerMultiprocessor");
    }
    if (!status) {
        uint32_t ctas = (uint32_t)(per_multiprocessor * device->multiprocessors);
        *resident = ctas < *resident ? ctas : *resident;
        *loaded = function;
    }
    return status;
}

/* One of instances.h, and its twin. */
static enum lamprey_status load_instance(struct lamprey_device *device, int index,
                                         uint32_t *resident)
{
    const char *fused = lamprey_fused_kernel_name(index);
    const uint32_t threads = lamprey_kernel_threads(index);
    enum lamprey_status status =
        load_lanes(device, lamprey_kernel_name(index), threads, &device->kernels[index], resident);
    if (!status && fused) {
        status = load_lanes(device, fused, threads, &device->fused[index], resident);
    }
    return status;
}

static enum lamprey_status load_kernels(struct lamprey_device *device, char *reason,
                                        size_t reason_size)
{
    const struct lamprey_driver *driver = device->driver;
    enum lamprey_status status = LAMPREY_OK;
    pthread_mutex_lock(&library_mutex);
    if (!library) {
        status = lamprey_driver_check(
            driver->LibraryLoadData(&library, lamprey_fatbin, NULL, NULL, 0, NULL, NULL, 0),
            "cuLibraryLoadData");
    }
    pthread_mutex_unlock(&library_mutex);
    if (status) {
        snprintf(reason, reason_size, "the driver can't load the kernels");
        return status;
    }
    uint32_t resident = UINT32_MAX;
    for (int i = 0; i < LAMPREY_KERNEL_COUNT; i++) {
        status = load_instance(device, i, &resident);
        if (status) {
            snprintf(reason, reason_size, "kernel %s can't be loaded", lamprey_kernel_name(i));
            return status;
        }
    }
    status = load_kernel(driver, LAMPREY_CHECK_KERNEL, &device->check);
    if (status) {
        snprintf(reason, reason_size, "kernel %s can't be loaded", LAMPREY_CHECK_KERNEL);
        return status;
    }
    if (resident == 0) {
        snprintf(reason, reason_size, "no multiprocessor takes a CTA");
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    lamprey_row_kernels_load(device);
    device->resident_ctas = resident;
    return LAMPREY_OK;
}

enum lamprey_status lamprey_device_load_kernels(struct lamprey_device *device, char *reason,
                                                size_t reason_size)
{
    bool pushed = false;
    enum lamprey_status status = lamprey_device_enter(device, &pushed);
    if (status) {
        snprintf(reason, reason_size, "the GPU's context can't be entered");
        return status;
    }
    pthread_mutex_lock(&device->loading);
    if (!device->resident_ctas) {
        status = load_kernels(device, reason, reason_size);
    }
    pthread_mutex_unlock(&device->loading);
    lamprey_device_leave(device, pushed);
    return status;
}

enum lamprey_status lamprey_device_enter(const struct lamprey_device *device, bool *pushed)
{
    CUcontext current = NULL;
    *pushed = false;
    if (device->driver->CtxGetCurrent(&current) == CUDA_SUCCESS && current == device->context) {
        return LAMPREY_OK;
    }
    enum lamprey_status status =
        lamprey_driver_check(device->driver->CtxPushCurrent(device->context), "cuCtxPushCurrent");
    *pushed = status == LAMPREY_OK;
    return status;
}

void lamprey_device_leave(const struct lamprey_device *device, bool pushed)
{
    CUcontext ignored = NULL;
    if (pushed) {
        device->driver->CtxPopCurrent(&ignored);
    }
}

enum lamprey_status lamprey_visit_begin(const struct lamprey_device *device,
                                        struct lamprey_visit *visit)
{
    *visit = (struct lamprey_visit){.device = device, .mode = CU_STREAM_CAPTURE_MODE_RELAXED};
    enum lamprey_status status = lamprey_device_enter(device, &visit->pushed);
    if (!status) {
        device->driver->ThreadExchangeStreamCaptureMode(&visit->mode);
    }
    return status;
}

void lamprey_visit_end(struct lamprey_visit *visit)
{
    visit->device->driver->ThreadExchangeStreamCaptureMode(&visit->mode);
    lamprey_device_leave(visit->device, visit->pushed);
}
