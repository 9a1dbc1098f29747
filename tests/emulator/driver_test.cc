/* SPDX-License-Identifier: Apache-2.0 */
/* Streams, events, handles, settings of the emulated driver. */
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <thread>

#include "plugin/driver.h"
#include "tests/emulator/child.h"
#include "tests/emulator/fake_kernels.h"

extern "C" void lampreyEmulatorCounts(size_t *mappings, size_t *allocations, size_t *handles,
                                      size_t *streams, size_t *events);

namespace {

using emulator::in_child;
using emulator::use_device;

CUfunction load(const char *name)
{
    CUlibrary library = nullptr;
    CUkernel kernel = nullptr;
    CUfunction function = nullptr;
    EXPECT_EQ(CUDA_SUCCESS,
              cuLibraryLoadData(&library, "image", nullptr, nullptr, 0, nullptr, nullptr, 0));
    EXPECT_EQ(CUDA_SUCCESS, cuLibraryGetKernel(&kernel, library, name));
    EXPECT_EQ(CUDA_SUCCESS, cuKernelGetFunction(&function, kernel));
    return function;
}

uint32_t *words(size_t count)
{
    CUdeviceptr pointer = 0;
    EXPECT_EQ(CUDA_SUCCESS, cuMemAlloc(&pointer, count * sizeof(uint32_t)));
    EXPECT_EQ(CUDA_SUCCESS, cuMemsetD32(pointer, 0, count));
    return reinterpret_cast<uint32_t *>(pointer);
}

template <typename Parameters>
CUresult launch(CUfunction function, CUstream stream, Parameters parameters, unsigned grid = 1,
                unsigned block = 128)
{
    void *list[] = {&parameters};
    CUlaunchConfig config = {};
    config.gridDimX = grid;
    config.gridDimY = config.gridDimZ = 1;
    config.blockDimX = block;
    config.blockDimY = config.blockDimZ = 1;
    config.hStream = stream;
    return cuLaunchKernelEx(&config, function, list, nullptr);
}

void hold_back(void *flag)
{
    while (!static_cast<std::atomic<bool> *>(flag)->load()) {
        std::this_thread::yield();
    }
}

void expect_function(const char *name, int version)
{
    void *function = nullptr;
    CUdriverProcAddressQueryResult status;
    EXPECT_EQ(CUDA_SUCCESS, cuGetProcAddress(name, &function, version, 0, &status)) << name;
    EXPECT_NE(nullptr, function) << name;
}

void expect_all_functions()
{
#define FIND(member, symbol, version, required) expect_function(#symbol, version);
    LAMPREY_DRIVER_FUNCTIONS(FIND)
#undef FIND
}

TEST(EmulatedDriver, FindsEveryFunctionOfThePlugin)
{
    EXPECT_EQ(0, in_child(expect_all_functions));
}

TEST(EmulatedDriver, HonoursTheVersionAskedFor)
{
    EXPECT_EQ(0, in_child([] {
                  void *newest = nullptr;
                  void *older = nullptr;
                  CUdriverProcAddressQueryResult status;
                  CU_OK(cuGetProcAddress("cuStreamGetCaptureInfo", &newest, 13000, 0, &status));
                  CU_OK(cuGetProcAddress("cuStreamGetCaptureInfo", &older, 11030, 0, &status));
                  EXPECT_EQ(reinterpret_cast<void *>(&cuStreamGetCaptureInfo_v3), newest);
                  EXPECT_NE(older, newest);
                  EXPECT_EQ(CUDA_ERROR_NOT_FOUND,
                            cuGetProcAddress("cuLaunchKernelEx", &older, 11000, 0, &status));
                  EXPECT_EQ(CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT, status);
                  EXPECT_EQ(nullptr, older);
                  EXPECT_EQ(CUDA_ERROR_NOT_FOUND,
                            cuGetProcAddress("cuNoSuchThing", &older, 13000, 0, &status));
                  EXPECT_EQ(CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND, status);
              }));
}

TEST(EmulatedDriver, AnOldDriverLacksNewFunctions)
{
    EXPECT_EQ(0, in_child([] {
                  setenv("LAMPREY_EMULATOR_DRIVER_VERSION", "12020", 1);
                  int version = 0;
                  void *function = nullptr;
                  CU_OK(cuDriverGetVersion(&version));
                  EXPECT_EQ(12020, version);
                  EXPECT_EQ(CUDA_ERROR_NOT_FOUND,
                            cuGetProcAddress("cuFuncLoad", &function, 13000, 0, nullptr));
                  CU_OK(cuGetProcAddress("cuLaunchKernelEx", &function, 13000, 0, nullptr));
                  void *info = nullptr;
                  CU_OK(cuGetProcAddress("cuStreamGetCaptureInfo", &info, 13000, 0, nullptr));
                  EXPECT_NE(reinterpret_cast<void *>(&cuStreamGetCaptureInfo_v3), info);
              }));
}

TEST(EmulatedDriver, DevicesLookLikeH200AndKeepTheirIdentity)
{
    EXPECT_EQ(0, in_child([] {
                  setenv("LAMPREY_EMULATOR_GPUS", "3", 1);
                  use_device(2);
                  int count = 0;
                  int value = 0;
                  CUuuid uuids[2];
                  char id[32];
                  CU_OK(cuDeviceGetCount(&count));
                  EXPECT_EQ(3, count);
                  CU_OK(cuDeviceGetUuid(&uuids[0], 1));
                  CU_OK(cuDeviceGetUuid(&uuids[1], 2));
                  EXPECT_NE(0, memcmp(&uuids[0], &uuids[1], sizeof(uuids[0])));
                  CU_OK(cuDeviceGetPCIBusId(id, sizeof(id), 2));
                  EXPECT_STREQ("0000:12:00.0", id);
                  CU_OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, 2));
                  EXPECT_EQ(0x12, value);
                  CU_OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 0));
                  EXPECT_EQ(132, value);
                  CU_OK(cuDeviceGetAttribute(&value,
                                             CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, 0));
                  EXPECT_EQ(1, value);
                  EXPECT_EQ(CUDA_ERROR_INVALID_DEVICE, cuDeviceGet(&value, 3));
              }));
}

TEST(EmulatedDriver, ShowsTheDevicesThatAreVisible)
{
    const struct {
        const char *list;
        std::vector<int> places;
    } cases[] = {{"3,1", {3, 1}},          {"2", {2}},      {"", {}},
                 {"0,4,1", {0}},           {"1,-1,2", {1}}, {"none", {}},
                 {"0,1,2,3", {0, 1, 2, 3}}};
    for (const auto &c : cases) {
        EXPECT_EQ(0, in_child([&] {
                      setenv("LAMPREY_EMULATOR_GPUS", "4", 1);
                      setenv("CUDA_VISIBLE_DEVICES", c.list, 1);
                      EXPECT_EQ(c.places.empty() ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS, cuInit(0));
                      for (size_t i = 0; i < c.places.size(); i++) {
                          const int device = static_cast<int>(i);
                          int count = 0;
                          int found = -1;
                          char id[32];
                          CU_OK(cuDeviceGetCount(&count));
                          EXPECT_EQ(c.places.size(), static_cast<size_t>(count));
                          CU_OK(cuDeviceGetPCIBusId(id, sizeof(id), device));
                          EXPECT_EQ("0000:1" + std::to_string(c.places[i]) + ":00.0", id);
                          CU_OK(cuDeviceGetByPCIBusId(&found, id));
                          EXPECT_EQ(device, found);
                          CUuuid uuid;
                          CU_OK(cuDeviceGetUuid(&uuid, device));
                          EXPECT_EQ(c.places[i], uuid.bytes[15]);
                      }
                  }))
            << c.list;
    }
}

TEST(EmulatedDriver, NeedsInitialisationAndAContext)
{
    EXPECT_EQ(0, in_child([] {
                  CUstream stream = nullptr;
                  EXPECT_EQ(CUDA_ERROR_NOT_INITIALIZED, cuStreamCreate(&stream, 0));
                  CU_OK(cuInit(0));
                  EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, cuStreamCreate(&stream, 0));
                  CUdeviceptr pointer = 0;
                  EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, cuMemAlloc(&pointer, 4));
                  EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, cuCtxSynchronize());
              }));
}

TEST(EmulatedDriver, IsLostAfterAFork)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  EXPECT_EQ(0, in_child([] {
                                int count = 0;
                                EXPECT_EQ(CUDA_ERROR_NOT_INITIALIZED, cuDeviceGetCount(&count));
                                EXPECT_EQ(CUDA_ERROR_NOT_INITIALIZED, cuInit(0));
                            }));
              }));
}

TEST(EmulatedDriver, StreamsOfOneGpuRunAtTheSameTime)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  CUfunction meet = load("fake_meet");
                  uint32_t *flags = words(2);
                  CUstream streams[2];
                  for (CUstream &stream : streams) {
                      CU_OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
                  }
                  for (int round = 0; round < 100; round++) {
                      CU_OK(launch(meet, streams[0], fake_meet{&flags[0], &flags[1]}));
                      CU_OK(launch(meet, streams[1], fake_meet{&flags[1], &flags[0]}));
                  }
                  CU_OK(cuStreamSynchronize(streams[0]));
                  CU_OK(cuCtxSynchronize());
                  EXPECT_EQ(100u, flags[0]);
              }));
}

TEST(EmulatedDriver, AStreamKeepsItsOrder)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  CUfunction add = load("fake_add");
                  uint32_t *counter = words(1);
                  CUstream stream = nullptr;
                  CU_OK(cuStreamCreate(&stream, 0));
                  std::vector<uint32_t> seen(200);
                  for (uint32_t i = 0; i < seen.size(); i++) {
                      CU_OK(launch(add, stream, fake_add{counter, 1}, 2));
                      CU_OK(cuMemcpyDtoHAsync(&seen[i], reinterpret_cast<CUdeviceptr>(counter), 4,
                                              stream));
                  }
                  CU_OK(cuStreamSynchronize(stream));
                  for (uint32_t i = 0; i < seen.size(); i++) {
                      EXPECT_EQ(2 * (i + 1), seen[i]);
                  }
              }));
}

TEST(EmulatedDriver, TheLegacyStreamOrdersBlockingStreamsOnly)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  std::atomic<bool> go(false);
                  CUstream blocking = nullptr;
                  CUstream free_running = nullptr;
                  CU_OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
                  CU_OK(cuStreamCreate(&free_running, CU_STREAM_NON_BLOCKING));
                  CUfunction add = load("fake_add");
                  uint32_t *counters = words(3);
                  CU_OK(cuLaunchHostFunc(blocking, hold_back, &go));
                  CU_OK(launch(add, blocking, fake_add{&counters[0], 1}));
                  CU_OK(launch(add, nullptr, fake_add{&counters[1], 1}));
                  CU_OK(launch(add, free_running, fake_add{&counters[2], 1}));
                  CU_OK(cuStreamSynchronize(free_running));
                  EXPECT_EQ(1u, counters[2]);
                  EXPECT_EQ(0u, counters[1]);
                  EXPECT_EQ(CUDA_ERROR_NOT_READY, cuStreamQuery(nullptr));
                  go = true;
                  CU_OK(cuStreamSynchronize(nullptr));
                  EXPECT_EQ(1u, counters[0]);
                  EXPECT_EQ(1u, counters[1]);
              }));
}

TEST(EmulatedDriver, BlockingStreamsWaitForTheLegacyStream)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  std::atomic<bool> go(false);
                  CUstream blocking = nullptr;
                  CU_OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
                  CUfunction add = load("fake_add");
                  uint32_t *counter = words(1);
                  CU_OK(cuLaunchHostFunc(nullptr, hold_back, &go));
                  CU_OK(launch(add, blocking, fake_add{counter, 1}));
                  usleep(20000);
                  EXPECT_EQ(0u, *static_cast<volatile uint32_t *>(counter));
                  go = true;
                  CU_OK(cuStreamSynchronize(blocking));
                  EXPECT_EQ(1u, *counter);
              }));
}

TEST(EmulatedDriver, AnEventStandsForItsLatestRecord)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  std::atomic<bool> go(false);
                  CUevent event = nullptr;
                  CUevent end = nullptr;
                  CUstream streams[2];
                  float milliseconds = -1;
                  CU_OK(cuEventCreate(&event, CU_EVENT_DEFAULT));
                  CU_OK(cuEventCreate(&end, CU_EVENT_DEFAULT));
                  for (CUstream &stream : streams) {
                      CU_OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
                  }
                  CU_OK(cuEventQuery(event));
                  CU_OK(cuEventRecord(event, streams[0]));
                  CU_OK(cuEventSynchronize(event));
                  CU_OK(cuLaunchHostFunc(streams[0], hold_back, &go));
                  CU_OK(cuEventRecord(event, streams[0]));
                  EXPECT_EQ(CUDA_ERROR_NOT_READY, cuEventQuery(event));
                  CU_OK(cuStreamWaitEvent(streams[1], event, 0));
                  EXPECT_EQ(CUDA_ERROR_NOT_READY, cuStreamQuery(streams[1]));
                  go = true;
                  CU_OK(cuStreamSynchronize(streams[1]));
                  CU_OK(cuEventQuery(event));
                  usleep(3000);
                  CU_OK(cuEventRecord(end, streams[1]));
                  CU_OK(cuEventSynchronize(end));
                  CU_OK(cuEventElapsedTime(&milliseconds, event, end));
                  EXPECT_GE(milliseconds, 3.0f);
              }));
}

TEST(EmulatedDriver, AnEventMayBeDestroyedWhileStreamsWaitForIt)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  std::atomic<bool> go(false);
                  CUevent event = nullptr;
                  CUstream streams[2];
                  uint32_t *counter = words(1);
                  CUfunction add = load("fake_add");
                  for (CUstream &stream : streams) {
                      CU_OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
                  }
                  CU_OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
                  CU_OK(cuLaunchHostFunc(streams[0], hold_back, &go));
                  CU_OK(cuEventRecord(event, streams[0]));
                  CU_OK(cuStreamWaitEvent(streams[1], event, 0));
                  CU_OK(launch(add, streams[1], fake_add{counter, 5}));
                  CU_OK(cuEventDestroy(event));
                  CU_OK(cuStreamDestroy(streams[0]));
                  EXPECT_EQ(0u, *static_cast<volatile uint32_t *>(counter));
                  go = true;
                  CU_OK(cuStreamSynchronize(streams[1]));
                  EXPECT_EQ(5u, *counter);
              }));
}

TEST(EmulatedDriver, RecognisesStaleAndForeignHandles)
{
    EXPECT_EQ(0, in_child([] {
                  CUcontext first = use_device(0);
                  CUstream stream = nullptr;
                  CUstream fresh = nullptr;
                  CUevent event = nullptr;
                  CU_OK(cuStreamCreate(&stream, 0));
                  CU_OK(cuEventCreate(&event, 0));
                  CU_OK(cuStreamDestroy(stream));
                  CU_OK(cuStreamCreate(&fresh, 0));
                  EXPECT_NE(stream, fresh);
                  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, cuStreamSynchronize(stream));
                  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, cuStreamDestroy(stream));
                  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, cuEventRecord(event, stream));
                  CU_OK(cuEventDestroy(event));
                  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, cuEventRecord(event, fresh));
                  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, cuStreamWaitEvent(fresh, event, 0));
                  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE,
                            cuEventQuery(reinterpret_cast<CUevent>(fresh)));

                  CUfunction add = load("fake_add");
                  uint32_t *counter = words(1);
                  use_device(1);
                  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, launch(add, fresh, fake_add{counter, 1}));
                  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, launch(add, nullptr, fake_add{counter, 1}));
                  CU_OK(cuEventCreate(&event, 0));
                  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, cuEventRecord(event, fresh));
                  CU_OK(cuCtxSetCurrent(first));
                  CU_OK(launch(add, fresh, fake_add{counter, 1}));
                  CU_OK(cuStreamSynchronize(fresh));
              }));
}

TEST(EmulatedDriver, ADestroyedContextTakesItsStreamsAlong)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  CUcontext context = nullptr;
                  CUcontext current = nullptr;
                  CUstream stream = nullptr;
#if CUDA_VERSION >= 13000
                  CU_OK(cuCtxCreate(&context, nullptr, 0, 1));
#else
                  CU_OK(cuCtxCreate(&context, 0, 1));
#endif
                  CU_OK(cuStreamCreate(&stream, 0));
                  CU_OK(cuCtxDestroy(context));
                  EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, cuStreamSynchronize(stream));
                  EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, cuCtxPushCurrent(context));
                  EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, cuCtxDestroy(context));
                  CU_OK(cuCtxGetCurrent(&current));
                  EXPECT_NE(nullptr, current);
                  CUdevice device = -1;
                  CU_OK(cuCtxGetDevice(&device));
                  EXPECT_EQ(0, device);
              }));
}

TEST(EmulatedDriver, APerThreadStreamBelongsToItsThread)
{
    EXPECT_EQ(0, in_child([] {
                  CUcontext context = use_device(0);
                  std::atomic<bool> go(false);
                  unsigned long long mine = 0;
                  unsigned long long other = 0;
                  CU_OK(cuStreamGetId(CU_STREAM_PER_THREAD, &mine));
                  CU_OK(cuLaunchHostFunc(CU_STREAM_PER_THREAD, hold_back, &go));
                  std::thread thread([&] {
                      EXPECT_EQ(CUDA_SUCCESS, cuCtxSetCurrent(context));
                      EXPECT_EQ(CUDA_SUCCESS, cuStreamGetId(CU_STREAM_PER_THREAD, &other));
                      EXPECT_EQ(CUDA_SUCCESS, cuStreamSynchronize(CU_STREAM_PER_THREAD));
                  });
                  thread.join();
                  EXPECT_NE(mine, other);
                  go = true;
                  CU_OK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
              }));
}

TEST(EmulatedDriver, AHostFunctionMayNotCallTheDriver)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  CUresult result = CUDA_SUCCESS;
                  CU_OK(cuLaunchHostFunc(
                      nullptr,
                      [](void *out) { *static_cast<CUresult *>(out) = cuCtxSynchronize(); },
                      &result));
                  CU_OK(cuStreamSynchronize(nullptr));
                  EXPECT_EQ(CUDA_ERROR_NOT_PERMITTED, result);
              }));
}

TEST(EmulatedDriver, PageableSourcesAreTakenBeforeTheCallReturns)
{
    EXPECT_EQ(
        0, in_child([] {
            use_device(0);
            std::atomic<bool> go(false);
            uint32_t *target = words(1);
            uint32_t source = 7;
            CU_OK(cuLaunchHostFunc(nullptr, hold_back, &go));
            CU_OK(cuMemcpyHtoDAsync(reinterpret_cast<CUdeviceptr>(target), &source, 4, nullptr));
            source = 8;
            go = true;
            CU_OK(cuStreamSynchronize(nullptr));
            EXPECT_EQ(7u, *target);
        }));
}

TEST(EmulatedDriver, CopiesAndFillsCheckDevicePointers)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  uint32_t host[4] = {1, 2, 3, 4};
                  CUdeviceptr device = reinterpret_cast<CUdeviceptr>(words(4));
                  CUdeviceptr fake = reinterpret_cast<CUdeviceptr>(host);
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD(fake, host, 4));
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD(device, host, 17));
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemsetD32(device + 2, 0, 1));
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemFree(device + 4));
                  CU_OK(cuMemcpyHtoD(device, host, 16));
                  CU_OK(cuMemsetD16(device + 2, 0x1234, 1));
                  CU_OK(cuMemcpyDtoH(host, device, 8));
                  EXPECT_EQ(0x12340001u, host[0]);
                  EXPECT_EQ(2u, host[1]);
                  CU_OK(cuMemFree(device));
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemFree(device));
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD(device, host, 16));
              }));
}

TEST(EmulatedDriver, UnknownKernelsAreNotFound)
{
    EXPECT_EQ(
        0, in_child([] {
            use_device(0);
            CUlibrary library = nullptr;
            CUkernel kernel = nullptr;
            EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuLibraryLoadData(&library, nullptr, nullptr,
                                                                  nullptr, 0, nullptr, nullptr, 0));
            CU_OK(cuLibraryLoadData(&library, "image", nullptr, nullptr, 0, nullptr, nullptr, 0));
            EXPECT_EQ(CUDA_ERROR_NOT_FOUND, cuLibraryGetKernel(&kernel, library, "no_such_kernel"));
            CU_OK(cuLibraryGetKernel(&kernel, library, "fake_add"));
            CU_OK(cuLibraryUnload(library));
            EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, cuLibraryUnload(library));
            CUfunction function = nullptr;
            EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, cuKernelGetFunction(&function, kernel));
        }));
}

TEST(EmulatedDriver, BlocksShrinkToTheSettingAndNeverGrow)
{
    EXPECT_EQ(0, in_child([] {
                  setenv("LAMPREY_EMULATOR_THREADS", "4", 1);
                  use_device(0);
                  CUfunction report = load("fake_report_block");
                  uint32_t *seen = words(1);
                  CU_OK(launch(report, nullptr, fake_add{seen, 0}, 3, 128));
                  CU_OK(cuStreamSynchronize(nullptr));
                  EXPECT_EQ(3u << 16 | 4u, *seen);
                  CU_OK(launch(report, nullptr, fake_add{seen, 0}, 1, 2));
                  CU_OK(cuStreamSynchronize(nullptr));
                  EXPECT_EQ(1u << 16 | 2u, *seen);
              }));
}

TEST(EmulatedDriver, FailsWhereItIsAskedTo)
{
    EXPECT_EQ(0, in_child([] {
                  setenv("LAMPREY_EMULATOR_FAIL",
                         "cuEventCreate:2,cuMemAlloc:0,cuStreamDestroy:1:999", 1);
                  use_device(0);
                  CUevent event = nullptr;
                  CUdeviceptr pointer = 0;
                  CUstream stream = nullptr;
                  EXPECT_EQ(CUDA_SUCCESS, cuEventCreate(&event, 0));
                  EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, cuEventCreate(&event, 0));
                  EXPECT_EQ(CUDA_SUCCESS, cuEventCreate(&event, 0));
                  EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc(&pointer, 4));
                  EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc(&pointer, 4));
                  CU_OK(cuStreamCreate(&stream, 0));
                  EXPECT_EQ(CUDA_ERROR_UNKNOWN, cuStreamDestroy(stream));
                  EXPECT_EQ(CUDA_SUCCESS, cuStreamDestroy(stream));
              }));
}

TEST(EmulatedDriver, CountsWhatIsLeft)
{
    EXPECT_EQ(0, in_child([] {
                  use_device(0);
                  size_t streams = 9;
                  size_t events = 9;
                  size_t allocations = 9;
                  CUstream stream = nullptr;
                  CUevent event = nullptr;
                  CUdeviceptr pointer = 0;
                  CU_OK(cuStreamCreate(&stream, 0));
                  CU_OK(cuEventCreate(&event, 0));
                  CU_OK(cuMemAlloc(&pointer, 4));
                  lampreyEmulatorCounts(nullptr, &allocations, nullptr, &streams, &events);
                  EXPECT_EQ(1u, allocations);
                  EXPECT_EQ(1u, streams);
                  EXPECT_EQ(1u, events);
                  CU_OK(cuStreamDestroy(stream));
                  CU_OK(cuEventDestroy(event));
                  CU_OK(cuMemFree(pointer));
                  lampreyEmulatorCounts(nullptr, &allocations, nullptr, &streams, &events);
                  EXPECT_EQ(0u, allocations + streams + events);
              }));
}

} // namespace
