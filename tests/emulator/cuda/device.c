/* SPDX-License-Identifier: Apache-2.0 */
/* Virtual GPUs: numbers and names of an H200, as many as LAMPREY_EMULATOR_GPUS says, of which
 * CUDA_VISIBLE_DEVICES shows some. */
#include "tests/emulator/cuda/emulator.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_BYTES ((size_t)143771 << 20)

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int device_count = 2;          /* that are visible */
static int places[EMULATOR_MAX_GPUS]; /* of the visible ones among all */
static int driver_version = 13000;
static int multiprocessors = 132;
static int block_threads = 1;
static int launch_queue;
static int host;
static int imex_channel = -1;

static int setting(const char *name, int low, int high, int otherwise)
{
    const char *text = getenv(name);
    if (text == NULL || *text == '\0') {
        return otherwise;
    }
    char *end = NULL;
    long value = strtol(text, &end, 10);
    if (*end != '\0' || value < low || value > high) {
        fprintf(stderr, "emulator: %s=%s is not in %d..%d; using %d\n", name, text, low, high,
                otherwise);
        return otherwise;
    }
    return (int)value;
}

/* All GPUs, or those of the list, up to its first word that is no GPU's number. */
static void choose_visible(int all)
{
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    device_count = text == NULL ? all : 0;
    for (int i = 0; i < device_count; i++) {
        places[i] = i;
    }
    for (char *end = NULL; text != NULL && device_count < all;
         text = *end == ',' ? end + 1 : NULL) {
        long place = strtol(text, &end, 10);
        if (end == text || place < 0 || place >= all) {
            return;
        }
        places[device_count++] = (int)place;
    }
}

static void read_settings(void)
{
    choose_visible(setting("LAMPREY_EMULATOR_GPUS", 0, EMULATOR_MAX_GPUS, 2));
    driver_version = setting("LAMPREY_EMULATOR_DRIVER_VERSION", 1000, 99990, 13000);
    multiprocessors = setting("LAMPREY_EMULATOR_MULTIPROCESSORS", 0, 1024, 132);
    block_threads = setting("LAMPREY_EMULATOR_THREADS", 1, 1024, 1);
    launch_queue = setting("LAMPREY_EMULATOR_QUEUE", 0, 1 << 20, 0);
    host = setting("LAMPREY_EMULATOR_HOST", 0, 127, 0);
    imex_channel = setting("LAMPREY_EMULATOR_IMEX", -1, 2047, -1);
}

int emulator_device_count(void)
{
    pthread_once(&once, read_settings);
    return device_count;
}

bool emulator_device_valid(CUdevice device)
{
    return device >= 0 && device < emulator_device_count();
}

int emulator_driver_version(void)
{
    pthread_once(&once, read_settings);
    return driver_version;
}

int emulator_multiprocessors(void)
{
    pthread_once(&once, read_settings);
    return multiprocessors;
}

int emulator_block_threads(unsigned launched)
{
    pthread_once(&once, read_settings);
    return launched < (unsigned)block_threads ? (int)launched : block_threads;
}

int emulator_launch_queue(void)
{
    pthread_once(&once, read_settings);
    return launch_queue;
}

int emulator_host(void)
{
    pthread_once(&once, read_settings);
    return host;
}

int emulator_imex_channel(void)
{
    pthread_once(&once, read_settings);
    return imex_channel;
}

CUresult cuDriverGetVersion(int *version)
{
    if (version == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *version = emulator_driver_version();
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count)
{
    ENTER();
    if (count == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *count = emulator_device_count();
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    ENTER();
    if (device == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(ordinal)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
    ENTER();
    if (name == NULL || length <= 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    snprintf(name, (size_t)length, "Lamprey Emulator H200");
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    ENTER();
    if (uuid == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    memcpy(uuid->bytes, "lamprey-gpu-of", 14);
    uuid->bytes[14] = (char)emulator_host();
    uuid->bytes[15] = (char)places[device];
    return CUDA_SUCCESS;
}

/* Differs from the above only where a GPU is split. */
#undef cuDeviceGetUuid
EMULATOR_EXPORT CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
    return cuDeviceGetUuid_v2(uuid, device);
}

CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice device)
{
    ENTER();
    if (id == NULL || length < 13) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    snprintf(id, (size_t)length, "0000:%02x:00.0", 0x10 + places[device]);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *id)
{
    ENTER();
    unsigned domain = 0;
    unsigned bus = 0;
    if (device == NULL || id == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (sscanf(id, "%x:%x:00.0", &domain, &bus) != 2 || domain != 0) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    for (int i = 0; i < emulator_device_count(); i++) {
        if (0x10 + places[i] == (int)bus) {
            *device = i;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    ENTER();
    if (bytes == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *bytes = MEMORY_BYTES;
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    ENTER();
    if (free_bytes == NULL || total_bytes == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    if (emulator_context_current() == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    *free_bytes = MEMORY_BYTES;
    *total_bytes = MEMORY_BYTES;
    return CUDA_SUCCESS;
}

CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer)
{
    ENTER();
    if (can == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(device) || !emulator_device_valid(peer)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *can = device != peer;
    return CUDA_SUCCESS;
}

CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags)
{
    ENTER();
    LOCKED();
    struct emulator_context *current = emulator_context_current();
    struct emulator_context *other = EMULATOR_FIND(context, EMULATOR_CONTEXT, peer);
    if (current == NULL || other == NULL || current == other) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuCtxDisablePeerAccess(CUcontext peer)
{
    ENTER();
    LOCKED();
    return EMULATOR_FIND(context, EMULATOR_CONTEXT, peer) != NULL ? CUDA_SUCCESS
                                                                  : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attribute, CUdevice source,
                                 CUdevice destination)
{
    ENTER();
    if (value == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(source) || !emulator_device_valid(destination) ||
        source == destination) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *value = attribute == CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK ? 0 : 1;
    return CUDA_SUCCESS;
}

/* Attributes that are not in the table are 0: not supported. */
static const struct {
    CUdevice_attribute attribute;
    int value;
} attributes[] = {
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 2147483647},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
    {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 49152},
    {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 232448},
    {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 233472},
    {CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY, 65536},
    {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 65536},
    {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1980000},
    {CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 3201000},
    {CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 6144},
    {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 62914560},
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, 32},
    {CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1},
    {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 3},
    {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1},
    {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
    {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9},
    {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0},
    {CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1},
    {CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1},
    {CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS, 1},
    {CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_WAIT_VALUE_NOR, 1},
    {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, 1}, /* without an IMEX channel too */
    {CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH, 1},
};

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    ENTER();
    if (value == NULL || attribute < 1 || attribute >= CU_DEVICE_ATTRIBUTE_MAX) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *value = 0;
    if (attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) {
        *value = emulator_multiprocessors();
    }
    if (attribute == CU_DEVICE_ATTRIBUTE_PCI_BUS_ID) {
        *value = 0x10 + places[device];
    }
    for (size_t i = 0; i < sizeof(attributes) / sizeof(attributes[0]); i++) {
        if (attributes[i].attribute == attribute) {
            *value = attributes[i].value;
        }
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
    ENTER();
    if (major == NULL || minor == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!emulator_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *major = 9;
    *minor = 0;
    return CUDA_SUCCESS;
}
