/* SPDX-License-Identifier: Apache-2.0 */
/* Allocations in other processes: a descriptor names one on the host that it was made on, a fabric
 * handle on every host with the same IMEX channel. All hosts are one machine here: which of them a
 * process stands for is a setting, and the name of an allocation's file tells whose it is. */
#define _GNU_SOURCE
#include "tests/emulator/cuda/emulator.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_NAME "lamprey-emulator-host%d-gpu%d"
#define FABRIC_MAGIC UINT64_C(0x6c6d707266616272)

/* What a fabric handle holds: where the exporter's file is, as long as it lives. */
struct fabric_name {
    uint64_t magic;
    uint64_t inode; /* descriptors are used again, files aren't */
    int32_t channel;
    int32_t pid;
    int32_t fd;
    int32_t device;
};
_Static_assert(sizeof(struct fabric_name) <= sizeof(CUmemFabricHandle), "fits the handle");

bool emulator_handle_types_known(unsigned types)
{
    return (types &
            ~(unsigned)(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_FABRIC)) == 0;
}

bool emulator_handle_types_permitted(unsigned types)
{
    return (types & CU_MEM_HANDLE_TYPE_FABRIC) == 0 || emulator_imex_channel() >= 0;
}

static int make_file(int host, CUdevice device, size_t bytes)
{
    char name[64] = {0};
    snprintf(name, sizeof(name), FILE_NAME, host, device);
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

int emulator_share_file(CUdevice device, size_t bytes)
{
    return make_file(emulator_host(), device, bytes);
}

static CUresult export_fabric(const struct emulator_allocation *allocation,
                              CUmemFabricHandle *handle)
{
    struct stat file = {0};
    if (emulator_imex_channel() < 0) {
        return CUDA_ERROR_NOT_PERMITTED;
    }
    if (fstat(allocation->fd, &file) != 0) {
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    const struct fabric_name name = {
        .magic = FABRIC_MAGIC,
        .inode = file.st_ino,
        .channel = emulator_imex_channel(),
        .pid = getpid(),
        .fd = allocation->fd,
        .device = allocation->device,
    };
    memset(handle, 0, sizeof(*handle));
    memcpy(handle, &name, sizeof(name));
    return CUDA_SUCCESS;
}

CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
                                      CUmemAllocationHandleType type, unsigned long long flags)
{
    ENTER();
    LOCKED();
    struct emulator_allocation *allocation = EMULATOR_FIND(allocation, EMULATOR_ALLOCATION, handle);
    if (shareable == NULL || allocation == NULL || flags != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && type != CU_MEM_HANDLE_TYPE_FABRIC) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if ((allocation->types & type) == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (type == CU_MEM_HANDLE_TYPE_FABRIC) {
        return export_fabric(allocation, shareable);
    }
    int fd = fcntl(allocation->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    *(int *)shareable = fd;
    return CUDA_SUCCESS;
}

/* Only what some process of this host exported is a handle: the file's name tells. */
static CUresult open_descriptor(int fd, int *own, CUdevice *device)
{
    char link[64] = {0};
    char target[128] = {0};
    int host = -1;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    if (readlink(link, target, sizeof(target) - 1) < 0 ||
        sscanf(target, "/memfd:" FILE_NAME, &host, device) != 2 || host != emulator_host()) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return *own < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
}

static CUresult open_fabric(const CUmemFabricHandle *handle, int *own, CUdevice *device)
{
    struct fabric_name name;
    char path[64] = {0};
    struct stat file = {0};
    if (handle == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (emulator_imex_channel() < 0) {
        return CUDA_ERROR_NOT_PERMITTED;
    }
    memcpy(&name, handle, sizeof(name));
    if (name.magic != FABRIC_MAGIC || name.channel != emulator_imex_channel()) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", name.pid, name.fd);
    *own = open(path, O_RDWR | O_CLOEXEC);
    if (*own < 0 || fstat(*own, &file) != 0 || file.st_ino != name.inode) {
        if (*own >= 0) {
            close(*own);
        }
        return CUDA_ERROR_INVALID_VALUE; /* the exporter has let go of it */
    }
    *device = name.device;
    return CUDA_SUCCESS;
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
                                        CUmemAllocationHandleType type)
{
    ENTER();
    int fd = -1;
    CUdevice device = 0;
    struct stat file = {0};
    if (handle == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && type != CU_MEM_HANDLE_TYPE_FABRIC) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    LOCKED();
    CUresult result = emulator_capture_unsafe();
    if (result == CUDA_SUCCESS) {
        result = type == CU_MEM_HANDLE_TYPE_FABRIC
                     ? open_fabric(shareable, &fd, &device)
                     : open_descriptor((int)(intptr_t)shareable, &fd, &device);
    }
    if (result != CUDA_SUCCESS) {
        return result;
    }
    fstat(fd, &file);
    fd = emulator_link(fd, (size_t)file.st_size, device);
    return fd < 0 ? CUDA_ERROR_OPERATING_SYSTEM
                  : emulator_allocation_adopt(fd, (size_t)file.st_size, device, type, handle);
}
