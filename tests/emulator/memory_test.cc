/* SPDX-License-Identifier: Apache-2.0 */
/* Virtual memory management, within a process and between two. */
#include <signal.h>
#include <string.h>

#include <sys/socket.h>

#include "tests/emulator/child.h"

extern "C" void lampreyEmulatorCounts(size_t *mappings, size_t *allocations, size_t *handles,
                                      size_t *streams, size_t *events);

namespace {

using emulator::in_child;
using emulator::use_device;

constexpr size_t kSize = size_t(4) << 20;

CUmemAllocationProp properties(int device)
{
    CUmemAllocationProp prop = {};
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = device;
    prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    return prop;
}

CUmemAccessDesc access_by(int device)
{
    CUmemAccessDesc access = {};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = device;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return access;
}

/* Maps the handle at an address of its own. */
volatile uint32_t *map(CUmemGenericAllocationHandle handle, int device)
{
    CUdeviceptr address = 0;
    CUmemAccessDesc access = access_by(device);
    EXPECT_EQ(CUDA_SUCCESS, cuMemAddressReserve(&address, kSize, 0, 0, 0));
    EXPECT_EQ(CUDA_SUCCESS, cuMemMap(address, kSize, 0, handle, 0));
    EXPECT_EQ(CUDA_SUCCESS, cuMemSetAccess(address, kSize, &access, 1));
    return reinterpret_cast<volatile uint32_t *>(address);
}

void send_descriptor(int socket, int descriptor)
{
    char byte = 0;
    iovec part = {&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
    EXPECT_EQ(1, sendmsg(socket, &message, 0));
}

int receive_descriptor(int socket)
{
    char byte = 0;
    iovec part = {&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    int descriptor = -1;
    if (recvmsg(socket, &message, 0) == 1 && CMSG_FIRSTHDR(&message) != nullptr) {
        memcpy(&descriptor, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
    }
    return descriptor;
}

TEST(EmulatedMemory, TwoProcessesShareAnAllocation)
{
    int sockets[2];
    ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
    int status = emulator::in_children(2, [&](int rank) {
        use_device(rank);
        CUmemGenericAllocationHandle handle = 0;
        if (rank == 0) {
            CUmemAllocationProp prop = properties(0);
            int descriptor = -1;
            CU_OK(cuMemCreate(&handle, kSize, &prop, 0));
            CU_OK(cuMemExportToShareableHandle(&descriptor, handle,
                                               CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
            send_descriptor(sockets[0], descriptor);
            close(descriptor);
            volatile uint32_t *words = map(handle, 0);
            CU_OK(cuMemRelease(handle)); /* the mapping keeps the memory */
            words[5] = 42;
            while (words[6] != 43) {
                usleep(100);
            }
        } else {
            int descriptor = receive_descriptor(sockets[1]);
            ASSERT_GE(descriptor, 0);
            CU_OK(cuMemImportFromShareableHandle(&handle,
                                                 reinterpret_cast<void *>(intptr_t(descriptor)),
                                                 CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
            close(descriptor);
            CUmemAllocationProp prop = {};
            CU_OK(cuMemGetAllocationPropertiesFromHandle(&prop, handle));
            EXPECT_EQ(0, prop.location.id);
            volatile uint32_t *words = map(handle, 1);
            while (words[5] != 42) {
                usleep(100);
            }
            words[6] = 43;
        }
    });
    EXPECT_EQ(0, status);
    close(sockets[0]);
    close(sockets[1]);
}

/* What an exporter on host 0 sends to another process. */
struct Sent {
    int descriptor;
    CUmemFabricHandle fabric;
};

/* Runs check in a process of that host and IMEX channel, while an exporter of host 0 and channel 0
 * holds memory with 42 in its word 5, and again when it has let go of it. */
void import_elsewhere(const char *host, const char *channel,
                      const std::function<void(const Sent &sent, bool gone)> &check)
{
    int sockets[2];
    ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
    int status = emulator::in_children(2, [&](int rank) {
        Sent sent = {};
        char byte = 0;
        setenv("LAMPREY_EMULATOR_HOST", rank == 0 ? "0" : host, 1);
        setenv("LAMPREY_EMULATOR_IMEX", rank == 0 ? "0" : channel, 1);
        use_device(0);
        close(sockets[1 - rank]);
        if (rank == 0) {
            CUmemGenericAllocationHandle handle = 0;
            CUmemAllocationProp prop = properties(0);
            prop.requestedHandleTypes = static_cast<CUmemAllocationHandleType>(
                CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_FABRIC);
            CU_OK(cuMemCreate(&handle, kSize, &prop, 0));
            volatile uint32_t *words = map(handle, 0);
            words[5] = 42;
            CU_OK(cuMemExportToShareableHandle(&sent.descriptor, handle,
                                               CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
            CU_OK(cuMemExportToShareableHandle(&sent.fabric, handle, CU_MEM_HANDLE_TYPE_FABRIC, 0));
            send_descriptor(sockets[0], sent.descriptor);
            ASSERT_EQ(ssize_t(sizeof(sent)), write(sockets[0], &sent, sizeof(sent)));
            ASSERT_EQ(1, read(sockets[0], &byte, 1));
            CU_OK(cuMemUnmap(reinterpret_cast<CUdeviceptr>(words), kSize));
            CU_OK(cuMemRelease(handle));
            ASSERT_EQ(1, write(sockets[0], &byte, 1));
        } else {
            int descriptor = receive_descriptor(sockets[1]);
            ASSERT_EQ(ssize_t(sizeof(sent)), read(sockets[1], &sent, sizeof(sent)));
            sent.descriptor = descriptor;
            check(sent, false);
            ASSERT_EQ(1, write(sockets[1], &byte, 1));
            ASSERT_EQ(1, read(sockets[1], &byte, 1));
            check(sent, true);
        }
    });
    EXPECT_EQ(0, status);
    close(sockets[0]);
    close(sockets[1]);
}

CUresult import(const Sent &sent, CUmemAllocationHandleType type,
                CUmemGenericAllocationHandle *handle)
{
    Sent copy = sent;
    return cuMemImportFromShareableHandle(handle,
                                          type == CU_MEM_HANDLE_TYPE_FABRIC
                                              ? static_cast<void *>(&copy.fabric)
                                              : reinterpret_cast<void *>(intptr_t(sent.descriptor)),
                                          type);
}

TEST(EmulatedMemory, FabricHandlesReachOtherHostsAndDescriptorsDoNot)
{
    import_elsewhere("1", "0", [](const Sent &sent, bool gone) {
        CUmemGenericAllocationHandle handle = 0;
        EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
                  import(sent, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, &handle));
        if (gone) {
            EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, import(sent, CU_MEM_HANDLE_TYPE_FABRIC, &handle));
        } else {
            CU_OK(import(sent, CU_MEM_HANDLE_TYPE_FABRIC, &handle));
            EXPECT_EQ(42u, map(handle, 1)[5]);
        }
    });
}

TEST(EmulatedMemory, FabricHandlesNeedTheSameChannelAtBothEnds)
{
    for (const char *channel : {"-1", "1"}) {
        import_elsewhere("0", channel, [&](const Sent &sent, bool) {
            CUmemGenericAllocationHandle handle = 0;
            EXPECT_EQ(*channel == '-' ? CUDA_ERROR_NOT_PERMITTED : CUDA_ERROR_INVALID_VALUE,
                      import(sent, CU_MEM_HANDLE_TYPE_FABRIC, &handle));
            CU_OK(import(sent, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, &handle));
            CU_OK(cuMemRelease(handle));
        });
    }
}

TEST(EmulatedMemory, OneAllocationCanBeMappedTwiceInAProcess)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  CUmemAllocationProp prop = properties(1);
                  CUmemGenericAllocationHandle handle = 0;
                  CU_OK(cuMemCreate(&handle, kSize, &prop, 0));
                  volatile uint32_t *first = map(handle, 0);
                  volatile uint32_t *second = map(handle, 1);
                  ASSERT_NE(first, second);
                  first[7] = 9;
                  EXPECT_EQ(9u, second[7]);
                  CU_OK(cuMemUnmap(reinterpret_cast<CUdeviceptr>(first), kSize));
                  EXPECT_EQ(9u, second[7]);
                  CUmemGenericAllocationHandle again = 0;
                  CU_OK(cuMemRetainAllocationHandle(&again, const_cast<uint32_t *>(second)));
                  CU_OK(cuMemRelease(again));
                  CU_OK(cuMemRelease(handle));
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemRelease(handle));
                  CU_OK(cuMemUnmap(reinterpret_cast<CUdeviceptr>(second), kSize));
                  CU_OK(cuMemAddressFree(reinterpret_cast<CUdeviceptr>(first), kSize));
                  CU_OK(cuMemAddressFree(reinterpret_cast<CUdeviceptr>(second), kSize));
                  size_t mappings = 9;
                  size_t handles = 9;
                  lampreyEmulatorCounts(&mappings, nullptr, &handles, nullptr, nullptr);
                  EXPECT_EQ(0u, mappings + handles);
              }));
}

TEST(EmulatedMemory, AMappingWithoutAccessFaults)
{
    EXPECT_EQ(-SIGSEGV, in_child([] {
        use_device(0);
        CUmemAllocationProp prop = properties(0);
        CUmemGenericAllocationHandle handle = 0;
        CUdeviceptr address = 0;
        signal(SIGSEGV, SIG_DFL); /* a sanitizer's handler would turn it into an exit */
        CU_OK(cuMemCreate(&handle, kSize, &prop, 0));
        CU_OK(cuMemAddressReserve(&address, kSize, 0, 0, 0));
        CU_OK(cuMemMap(address, kSize, 0, handle, 0));
        *reinterpret_cast<volatile uint32_t *>(address) = 1;
    }));
}

TEST(EmulatedMemory, RefusesWhatCudaRefuses)
{
    EXPECT_EQ(
        0, in_child([] {
            use_device(0);
            CUmemAllocationProp prop = properties(0);
            CUmemAllocationProp fabric = properties(0);
            CUmemAllocationProp nowhere = properties(7);
            CUmemAllocationProp private_memory = properties(0);
            fabric.requestedHandleTypes = CU_MEM_HANDLE_TYPE_FABRIC;
            private_memory.requestedHandleTypes = CU_MEM_HANDLE_TYPE_NONE;
            CUmemGenericAllocationHandle handle = 0;
            CUdeviceptr address = 0;
            int descriptor = -1;
            size_t granularity = 0;
            CU_OK(cuMemGetAllocationGranularity(&granularity, &prop,
                                                CU_MEM_ALLOC_GRANULARITY_MINIMUM));
            EXPECT_EQ(size_t(2) << 20, granularity);
            EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&handle, 4096, &prop, 0));
            EXPECT_EQ(CUDA_ERROR_NOT_PERMITTED, cuMemCreate(&handle, kSize, &fabric, 0));
            fabric.requestedHandleTypes = CU_MEM_HANDLE_TYPE_WIN32;
            EXPECT_EQ(CUDA_ERROR_NOT_SUPPORTED, cuMemCreate(&handle, kSize, &fabric, 0));
            EXPECT_EQ(CUDA_ERROR_INVALID_DEVICE, cuMemCreate(&handle, kSize, &nowhere, 0));
            CU_OK(cuMemCreate(&handle, kSize, &private_memory, 0));
            EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
                      cuMemExportToShareableHandle(&descriptor, handle,
                                                   CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
            EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemMap(granularity, kSize, 0, handle, 0));
            CU_OK(cuMemAddressReserve(&address, kSize, 0, 0, 0));
            CU_OK(cuMemMap(address, kSize, 0, handle, 0));
            EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemMap(address, kSize, 0, handle, 0));
            EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemAddressFree(address, kSize));
            EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemUnmap(address, granularity));
            CU_OK(cuMemUnmap(address, kSize));
            CU_OK(cuMemAddressFree(address, kSize));
            EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
                      cuMemImportFromShareableHandle(&handle, reinterpret_cast<void *>(intptr_t(0)),
                                                     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
        }));
}

TEST(EmulatedMemory, KnowsItsPointers)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(1);
                  CUdeviceptr device = 0;
                  void *host = nullptr;
                  int ordinal = -1;
                  CUmemorytype type = CUmemorytype(0);
                  CU_OK(cuMemAlloc(&device, 100));
                  CU_OK(cuMemHostAlloc(&host, 100, CU_MEMHOSTALLOC_DEVICEMAP));
                  CU_OK(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                                              device + 99));
                  EXPECT_EQ(1, ordinal);
                  CU_OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                                              reinterpret_cast<CUdeviceptr>(host)));
                  EXPECT_EQ(CU_MEMORYTYPE_HOST, type);
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
                            cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                                                  reinterpret_cast<CUdeviceptr>(&type)));
                  CUdeviceptr mapped = 0;
                  CU_OK(cuMemHostGetDevicePointer(&mapped, host, 0));
                  EXPECT_EQ(reinterpret_cast<CUdeviceptr>(host), mapped);
                  CU_OK(cuMemFreeHost(host));
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemFreeHost(host));
              }));
}

} // namespace
