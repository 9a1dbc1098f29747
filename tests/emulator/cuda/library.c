/* SPDX-License-Identifier: Apache-2.0 */
/* Libraries, modules, kernels, launches. The bytes of an image are not looked at: kernels are found
 * by name among those that were compiled for the host. */
#include "tests/emulator/cuda/emulator.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOADING_MICROSECONDS 2000 /* so that loads at once meet, as a driver's do */
#define DEFAULT_SHARED_BYTES 49152
#define OPTIN_SHARED_BYTES 232448
#define PORTABLE_CLUSTER 8
#define MULTIPROCESSORS_OUTSIDE 4 /* in groups that hold no cluster more */

static struct emulator_function *functions;

static void release_function(struct emulator_object *object)
{
    struct emulator_function **link = &functions;
    while ((struct emulator_object *)*link != object) {
        link = &(*link)->next;
    }
    *link = (*link)->next;
    free(object);
}

static void release_library(struct emulator_object *object)
{
    free(object);
}

static struct emulator_library *make_library(enum emulator_kind kind)
{
    struct emulator_library *library = calloc(1, sizeof(*library));
    if (library != NULL) {
        emulator_object_publish(&library->object, kind, release_library);
    }
    return library;
}

static void close_library(struct emulator_library *library)
{
    struct emulator_function *function = functions;
    while (function != NULL) {
        struct emulator_function *next = function->next;
        if (function->library == library) {
            emulator_object_retire(&function->object);
        }
        function = next;
    }
    emulator_object_retire(&library->object);
}

/* One handle for each (library, kernel, context), as CUDA has it. */
static struct emulator_function *find_function(struct emulator_library *library,
                                               const struct lamprey_host_kernel *kernel,
                                               struct emulator_context *context)
{
    for (struct emulator_function *f = functions; f != NULL; f = f->next) {
        if (f->library == library && f->kernel == kernel && f->context == context) {
            return f;
        }
    }
    struct emulator_function *function = calloc(1, sizeof(*function));
    if (function == NULL) {
        return NULL;
    }
    function->library = library;
    function->kernel = kernel;
    function->context = context;
    function->next = functions;
    functions = function;
    emulator_object_publish(
        &function->object, context != NULL ? EMULATOR_FUNCTION : EMULATOR_KERNEL, release_function);
    return function;
}

/* A CUkernel may stand where a CUfunction is wanted. */
static struct emulator_function *any_function(const void *handle)
{
    struct emulator_function *function = EMULATOR_FIND(function, EMULATOR_FUNCTION, handle);
    return function != NULL ? function : EMULATOR_FIND(function, EMULATOR_KERNEL, handle);
}

CUresult cuLibraryLoadData(CUlibrary *handle, const void *code, CUjit_option *jit_options,
                           void **jit_values, unsigned int jit_count, CUlibraryOption *options,
                           void **values, unsigned int count)
{
    ENTER();
    (void)jit_values;
    (void)values;
    if (handle == NULL || code == NULL || (jit_count > 0 && jit_options == NULL) ||
        (count > 0 && options == NULL)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    usleep(LOADING_MICROSECONDS);
    LOCKED();
    CUresult result = emulator_capture_unsafe();
    if (result != CUDA_SUCCESS) {
        return result;
    }
    struct emulator_library *library = make_library(EMULATOR_LIBRARY);
    if (library == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = EMULATOR_HANDLE(CUlibrary, library);
    return CUDA_SUCCESS;
}

CUresult cuLibraryUnload(CUlibrary handle)
{
    ENTER();
    LOCKED();
    struct emulator_library *library = EMULATOR_FIND(library, EMULATOR_LIBRARY, handle);
    if (library == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    close_library(library);
    return CUDA_SUCCESS;
}

CUresult cuLibraryGetKernel(CUkernel *handle, CUlibrary library_handle, const char *name)
{
    ENTER();
    LOCKED();
    struct emulator_library *library = EMULATOR_FIND(library, EMULATOR_LIBRARY, library_handle);
    if (handle == NULL || name == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (library == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const struct lamprey_host_kernel *kernel = lamprey_host_kernel_find(name);
    if (kernel == NULL) {
        return CUDA_ERROR_NOT_FOUND;
    }
    struct emulator_function *function = find_function(library, kernel, NULL);
    if (function == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = EMULATOR_HANDLE(CUkernel, function);
    return CUDA_SUCCESS;
}

CUresult cuKernelGetFunction(CUfunction *handle, CUkernel kernel_handle)
{
    ENTER();
    LOCKED();
    struct emulator_function *kernel = EMULATOR_FIND(function, EMULATOR_KERNEL, kernel_handle);
    struct emulator_context *context = emulator_context_current();
    if (handle == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (kernel == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    struct emulator_function *function = find_function(kernel->library, kernel->kernel, context);
    if (function == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = EMULATOR_HANDLE(CUfunction, function);
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *handle, const void *image)
{
    ENTER();
    if (handle == NULL || image == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    if (emulator_context_current() == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    CUresult result = emulator_capture_unsafe();
    if (result != CUDA_SUCCESS) {
        return result;
    }
    struct emulator_library *module = make_library(EMULATOR_MODULE);
    if (module == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = EMULATOR_HANDLE(CUmodule, module);
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule handle)
{
    ENTER();
    LOCKED();
    struct emulator_library *module = EMULATOR_FIND(library, EMULATOR_MODULE, handle);
    if (module == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    close_library(module);
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *handle, CUmodule module_handle, const char *name)
{
    ENTER();
    LOCKED();
    struct emulator_library *module = EMULATOR_FIND(library, EMULATOR_MODULE, module_handle);
    struct emulator_context *context = emulator_context_current();
    if (handle == NULL || name == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (module == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (context == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    const struct lamprey_host_kernel *kernel = lamprey_host_kernel_find(name);
    if (kernel == NULL) {
        return CUDA_ERROR_NOT_FOUND;
    }
    struct emulator_function *function = find_function(module, kernel, context);
    if (function == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = EMULATOR_HANDLE(CUfunction, function);
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction handle)
{
    ENTER();
    if (value == NULL || attribute >= CU_FUNC_ATTRIBUTE_MAX) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    if (any_function(handle) == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = 1024;
        break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        *value = 32;
        break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
        *value = 90;
        break;
    default:
        *value = 0;
        break;
    }
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value)
{
    ENTER();
    LOCKED();
    struct emulator_function *function = any_function(handle);
    if (function == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if (value < 0 || value > OPTIN_SHARED_BYTES) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        function->max_shared_bytes = (size_t)value;
    }
    return attribute < CU_FUNC_ATTRIBUTE_MAX ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EMULATOR_EXPORT CUresult cuFuncLoad(CUfunction handle)
{
    ENTER();
    LOCKED();
    return any_function(handle) != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

static int resident_blocks(int block_size, size_t shared_bytes)
{
    int by_threads = 2048 / block_size;
    int by_shared = shared_bytes > 0 ? (int)(233472 / (shared_bytes + 1024)) : 32;
    int most = by_threads < by_shared ? by_threads : by_shared;
    return block_size > 1024 ? 0 : most < 32 ? most : 32;
}

/* CTAs of a cluster. */
static size_t cluster_of(const CUlaunchConfig *config)
{
    for (unsigned i = 0; i < config->numAttrs; i++) {
        const CUlaunchAttribute *attribute = &config->attrs[i];
        if (attribute->id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
            return (size_t)attribute->value.clusterDim.x * attribute->value.clusterDim.y *
                   attribute->value.clusterDim.z;
        }
    }
    return 1;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction handle, int block_size,
                                                     size_t shared_bytes)
{
    ENTER();
    if (blocks == NULL || block_size <= 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    if (any_function(handle) == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *blocks = resident_blocks(block_size, shared_bytes);
    return CUDA_SUCCESS;
}

EMULATOR_EXPORT CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction handle,
                                                      const CUlaunchConfig *config)
{
    ENTER();
    if (clusters == NULL || config == NULL || config->blockDimX == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LOCKED();
    if (any_function(handle) == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const int grouped = emulator_multiprocessors() - MULTIPROCESSORS_OUTSIDE;
    *clusters = resident_blocks((int)config->blockDimX, config->sharedMemBytes) *
                (grouped > 0 ? grouped : 0) / (int)cluster_of(config);
    return CUDA_SUCCESS;
}

static atomic_ullong launches;

/* Kernels that this process has launched or captured. */
EMULATOR_EXPORT unsigned long long emulator_kernel_launches(void)
{
    return atomic_load(&launches);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction handle, void **parameters,
                          void **extra)
{
    ENTER();
    atomic_fetch_add(&launches, 1);
    if (config == NULL || extra != NULL || (config->numAttrs > 0 && config->attrs == NULL)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    size_t grid = (size_t)config->gridDimX * config->gridDimY * config->gridDimZ;
    size_t block = (size_t)config->blockDimX * config->blockDimY * config->blockDimZ;
    const size_t cluster = cluster_of(config);
    if (cluster == 0 || cluster > PORTABLE_CLUSTER || grid % cluster != 0) {
        return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    }
    if (grid == 0 || grid > INT32_MAX || block == 0 || block > 1024) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    emulator_stream_await_room(config->hStream);
    LOCKED();
    struct emulator_function *function = any_function(handle);
    struct emulator_stream *stream = NULL;
    if (function == NULL) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    CUresult result = emulator_stream_resolve(config->hStream, &stream);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    struct emulator_context *current = emulator_context_current();
    if (current == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (stream->context != current ||
        (function->context != NULL && function->context != stream->context)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    size_t bytes = lamprey_host_kernel_param_size(function->kernel);
    if (config->sharedMemBytes > function->max_shared_bytes &&
        config->sharedMemBytes > DEFAULT_SHARED_BYTES) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (bytes > 0 && (parameters == NULL || parameters[0] == NULL)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const int threads = emulator_block_threads((unsigned)block);
    struct emulator_work work = {
        .kind = EMULATOR_WORK_KERNEL,
        .kernel = {.kernel = function->kernel,
                   .launch = {.grid = (unsigned)grid,
                              .block = (unsigned)threads,
                              .whole = (uint64_t)threads == block && threads % 32 == 0,
                              .cluster = (unsigned)cluster,
                              .shared_bytes = config->sharedMemBytes},
                   .parameter_bytes = bytes}};
    if (bytes > 0) {
        /* Alignment of malloc; parameters are copied now, as a launch or a capture does. */
        work.kernel.parameters = malloc(bytes);
        if (work.kernel.parameters == NULL) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        memcpy(work.kernel.parameters, parameters[0], bytes);
    }
    return emulator_submit(stream, &work, NULL);
}

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                        unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                        unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                        void **parameters, void **extra)
{
    CUresult result = emulator_enter(__func__);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    CUlaunchConfig config = {.gridDimX = grid_x,
                             .gridDimY = grid_y,
                             .gridDimZ = grid_z,
                             .blockDimX = block_x,
                             .blockDimY = block_y,
                             .blockDimZ = block_z,
                             .sharedMemBytes = shared_bytes,
                             .hStream = stream};
    return cuLaunchKernelEx(&config, function, parameters, extra);
}
