/* SPDX-License-Identifier: Apache-2.0 */
/* Capture, graphs, user objects of the emulated driver. */
#include <atomic>
#include <thread>

#include "tests/emulator/child.h"
#include "tests/emulator/fake_kernels.h"

namespace {

using emulator::in_child;
using emulator::use_device;

struct Fixture {
    CUstream stream = nullptr;
    CUstream other = nullptr;
    CUevent event = nullptr;
    CUfunction add = nullptr;
    CUfunction meet = nullptr;
    uint32_t *words = nullptr;

    Fixture()
    {
        use_device(0);
        CUlibrary library = nullptr;
        CUkernel kernel = nullptr;
        CUdeviceptr pointer = 0;
        EXPECT_EQ(CUDA_SUCCESS, cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        EXPECT_EQ(CUDA_SUCCESS, cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
        EXPECT_EQ(CUDA_SUCCESS, cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
        EXPECT_EQ(CUDA_SUCCESS,
                  cuLibraryLoadData(&library, "image", nullptr, nullptr, 0, nullptr, nullptr, 0));
        EXPECT_EQ(CUDA_SUCCESS, cuLibraryGetKernel(&kernel, library, "fake_add"));
        EXPECT_EQ(CUDA_SUCCESS, cuKernelGetFunction(&add, kernel));
        EXPECT_EQ(CUDA_SUCCESS, cuLibraryGetKernel(&kernel, library, "fake_meet"));
        EXPECT_EQ(CUDA_SUCCESS, cuKernelGetFunction(&meet, kernel));
        EXPECT_EQ(CUDA_SUCCESS, cuMemAlloc(&pointer, 64));
        EXPECT_EQ(CUDA_SUCCESS, cuMemsetD32(pointer, 0, 16));
        words = reinterpret_cast<uint32_t *>(pointer);
    }

    template <typename Parameters>
    CUresult launch(CUfunction function, CUstream on, Parameters parameters)
    {
        void *list[] = {&parameters};
        return cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, on, list, nullptr);
    }

    void begin(CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL)
    {
        EXPECT_EQ(CUDA_SUCCESS, cuStreamBeginCapture(stream, mode));
    }

    CUgraphExec end()
    {
        CUgraph graph = nullptr;
        CUgraphExec exec = nullptr;
        EXPECT_EQ(CUDA_SUCCESS, cuStreamEndCapture(stream, &graph));
        EXPECT_EQ(CUDA_SUCCESS, cuGraphInstantiate(&exec, graph, 0));
        EXPECT_EQ(CUDA_SUCCESS, cuGraphDestroy(graph));
        return exec;
    }
};

void hold_back(void *flag)
{
    while (!static_cast<std::atomic<bool> *>(flag)->load()) {
        std::this_thread::yield();
    }
}

TEST(EmulatedGraph, ReplaysWhatWasCapturedAnyNumberOfTimes)
{
    EXPECT_EQ(
        0, in_child([] {
            Fixture f;
            fake_add parameters = {f.words, 1};
            f.begin();
            CU_OK(f.launch(f.add, f.stream, parameters));
            CU_OK(cuMemcpyDtoDAsync(reinterpret_cast<CUdeviceptr>(f.words + 1),
                                    reinterpret_cast<CUdeviceptr>(f.words), 4, f.stream));
            CU_OK(cuMemsetD8Async(reinterpret_cast<CUdeviceptr>(f.words + 2), 0x11, 4, f.stream));
            parameters.value = 100; /* taken at capture */
            CUgraphExec exec = f.end();
            EXPECT_EQ(0u, f.words[0]);
            for (int i = 0; i < 50; i++) {
                CU_OK(cuGraphLaunch(exec, i % 2 == 0 ? f.stream : f.other));
            }
            CU_OK(cuGraphExecDestroy(exec)); /* while it may still run */
            CU_OK(cuCtxSynchronize());
            EXPECT_EQ(50u, f.words[0]);
            EXPECT_EQ(50u, f.words[1]);
            EXPECT_EQ(0x11111111u, f.words[2]);
            EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuGraphLaunch(exec, f.stream));
        }));
}

TEST(EmulatedGraph, BranchesRunAtTheSameTime)
{
    EXPECT_EQ(0, in_child([] {
                  Fixture f;
                  CUevent joined = nullptr;
                  CU_OK(cuEventCreate(&joined, CU_EVENT_DISABLE_TIMING));
                  f.begin();
                  CU_OK(cuEventRecord(f.event, f.stream));
                  CU_OK(cuStreamWaitEvent(f.other, f.event, 0));
                  CU_OK(f.launch(f.meet, f.stream, fake_meet{&f.words[0], &f.words[1]}));
                  CU_OK(f.launch(f.meet, f.other, fake_meet{&f.words[1], &f.words[0]}));
                  CU_OK(cuEventRecord(joined, f.other));
                  CU_OK(cuStreamWaitEvent(f.stream, joined, 0));
                  CU_OK(f.launch(f.add, f.stream, fake_add{&f.words[2], 1}));
                  CUgraphExec exec = f.end();
                  for (int i = 0; i < 20; i++) {
                      CU_OK(cuGraphLaunch(exec, f.stream));
                  }
                  CU_OK(cuStreamSynchronize(f.stream));
                  EXPECT_EQ(20u, f.words[0]);
                  EXPECT_EQ(20u, f.words[2]);
              }));
}

TEST(EmulatedGraph, ExternalEventsOrderReplaysAndLiveWork)
{
    EXPECT_EQ(
        0, in_child([] {
            Fixture f;
            std::atomic<bool> go(false);
            f.begin();
            CU_OK(cuStreamWaitEvent(f.stream, f.event, CU_EVENT_WAIT_EXTERNAL));
            CU_OK(f.launch(f.add, f.stream, fake_add{f.words, 1}));
            CU_OK(cuEventRecordWithFlags(f.event, f.stream, CU_EVENT_RECORD_EXTERNAL));
            CUgraphExec exec = f.end();
            CU_OK(cuEventQuery(f.event)); /* capturing recorded nothing */
            CU_OK(cuLaunchHostFunc(f.other, hold_back, &go));
            CU_OK(cuEventRecord(f.event, f.other));
            CU_OK(cuGraphLaunch(exec, f.stream));
            usleep(20000);
            EXPECT_EQ(0u, *static_cast<volatile uint32_t *>(f.words));
            EXPECT_EQ(CUDA_ERROR_NOT_READY, cuEventQuery(f.event)); /* now the launch's record */
            uint32_t seen = 77;
            CU_OK(cuStreamWaitEvent(f.other, f.event, 0));
            go = true;
            CU_OK(cuMemcpyDtoHAsync(&seen, reinterpret_cast<CUdeviceptr>(f.words), 4, f.other));
            EXPECT_EQ(1u, seen);
            CU_OK(cuEventSynchronize(f.event));
        }));
}

TEST(EmulatedGraph, NodesCanBeAddedToACaptureAndDependenciesSet)
{
    EXPECT_EQ(0, in_child([] {
                  Fixture f;
                  f.begin(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
                  CUstreamCaptureStatus status;
                  cuuint64_t id = 0;
                  CUgraph graph = nullptr;
                  const CUgraphNode *deps = nullptr;
                  size_t count = 9;
                  CU_OK(cuStreamGetCaptureInfo_v3(f.stream, &status, &id, &graph, &deps, nullptr,
                                                  &count));
                  EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_ACTIVE, status);
                  EXPECT_NE(0u, id);
                  EXPECT_EQ(0u, count);
                  CU_OK(f.launch(f.add, f.stream, fake_add{f.words, 1}));
                  CU_OK(cuStreamGetCaptureInfo_v3(f.stream, &status, &id, &graph, &deps, nullptr,
                                                  &count));
                  ASSERT_EQ(1u, count);
                  CUgraphNode first = deps[0];
                  CUgraphNode record = nullptr;
                  CU_OK(cuGraphAddEventRecordNode(&record, graph, &first, 1, f.event));
                  CU_OK(f.launch(f.add, f.stream, fake_add{f.words, 1}));
                  CU_OK(cuStreamGetCaptureInfo_v3(f.stream, &status, &id, &graph, &deps, nullptr,
                                                  &count));
                  CUgraphNode second = deps[0];
                  CU_OK(cuGraphAddDependencies_v2(graph, &second, &record, nullptr, 1));
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
                            cuGraphAddDependencies_v2(graph, &record, &first, nullptr, 1));
                  CU_OK(cuGraphRemoveDependencies_v2(graph, &first, &record, nullptr, 1));
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
                            cuGraphRemoveDependencies_v2(graph, &first, &record, nullptr, 1));
                  CU_OK(cuStreamUpdateCaptureDependencies_v2(f.stream, &record, nullptr, 1,
                                                             CU_STREAM_ADD_CAPTURE_DEPENDENCIES));
                  CU_OK(cuStreamGetCaptureInfo_v3(f.stream, &status, &id, &graph, &deps, nullptr,
                                                  &count));
                  EXPECT_EQ(2u, count);
                  CU_OK(cuGraphGetNodes(graph, nullptr, &count));
                  EXPECT_EQ(3u, count);
                  CUgraphNodeType type;
                  CU_OK(cuGraphNodeGetType(record, &type));
                  EXPECT_EQ(CU_GRAPH_NODE_TYPE_EVENT_RECORD, type);
                  CUgraphExec exec = f.end();
                  CU_OK(cuGraphLaunch(exec, f.stream));
                  CU_OK(cuEventSynchronize(f.event));
                  EXPECT_EQ(2u, f.words[0]);
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuGraphNodeGetType(record, &type));
              }));
}

TEST(EmulatedGraph, AskingForACapturingStreamsIdEndsTheCapture)
{
    EXPECT_EQ(0, in_child([] {
                  Fixture f;
                  unsigned long long id = 0;
                  CUgraph graph = nullptr;
                  CU_OK(cuStreamGetId(f.stream, &id));
                  f.begin(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
                  CU_OK(cuStreamGetId(f.other, &id));
                  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamGetId(f.stream, &id));
                  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
                            cuStreamEndCapture(f.stream, &graph));
              }));
}

TEST(EmulatedGraph, UserObjectsLiveAsLongAsAnyGraphNeedsThem)
{
    EXPECT_EQ(0, in_child([] {
                  Fixture f;
                  std::atomic<int> destroyed(0);
                  std::atomic<bool> go(false);
                  CUuserObject object = nullptr;
                  CU_OK(cuUserObjectCreate(
                      &object, &destroyed,
                      [](void *count) { ++*static_cast<std::atomic<int> *>(count); }, 1,
                      CU_USER_OBJECT_NO_DESTRUCTOR_SYNC));
                  f.begin();
                  CUstreamCaptureStatus status;
                  CUgraph graph = nullptr;
                  CUgraph clone = nullptr;
                  CUgraphExec exec = nullptr;
                  CU_OK(cuStreamGetCaptureInfo_v3(f.stream, &status, nullptr, &graph, nullptr,
                                                  nullptr, nullptr));
                  CU_OK(cuGraphRetainUserObject(graph, object, 1, 0));
                  CU_OK(cuUserObjectRelease(object, 1));
                  CU_OK(cuLaunchHostFunc(f.stream, hold_back, &go));
                  CU_OK(cuStreamEndCapture(f.stream, &graph));
                  CU_OK(cuGraphClone(&clone, graph));
                  CU_OK(cuGraphInstantiate(&exec, graph, 0));
                  CU_OK(cuGraphDestroy(graph));
                  CU_OK(cuGraphDestroy(clone));
                  CU_OK(cuGraphLaunch(exec, f.stream));
                  CU_OK(cuGraphExecDestroy(exec));
                  usleep(10000);
                  EXPECT_EQ(0, destroyed.load()); /* the launch still runs */
                  go = true;
                  CU_OK(cuStreamSynchronize(f.stream));
                  for (int i = 0; i < 1000 && destroyed == 0; i++) {
                      usleep(1000);
                  }
                  EXPECT_EQ(1, destroyed.load());
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, cuUserObjectRelease(object, 1));
              }));
}

TEST(EmulatedGraph, AChildComesBetweenItsNeighbours)
{
    EXPECT_EQ(0, in_child([] {
                  Fixture f;
                  CUgraph child = nullptr;
                  CUgraph parent = nullptr;
                  CUgraphNode before = nullptr;
                  CUgraphNode middle = nullptr;
                  CUgraphNode after = nullptr;
                  CUgraphExec exec = nullptr;
                  static Fixture *fixture = &f;
                  CUDA_HOST_NODE_PARAMS set = {};
                  set.fn = [](void *) { *fixture->words = 5; };
                  CUDA_HOST_NODE_PARAMS square = {};
                  square.fn = [](void *) { *fixture->words *= *fixture->words; };
                  f.begin();
                  CU_OK(f.launch(f.add, f.stream, fake_add{f.words, 1}));
                  CU_OK(f.launch(f.add, f.stream, fake_add{f.words, 1}));
                  CU_OK(cuStreamEndCapture(f.stream, &child));
                  CU_OK(cuGraphCreate(&parent, 0));
                  CU_OK(cuGraphAddHostNode(&before, parent, nullptr, 0, &set));
                  CU_OK(cuGraphAddChildGraphNode(&middle, parent, &before, 1, child));
                  CU_OK(cuGraphAddHostNode(&after, parent, &middle, 1, &square));
                  EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
                            cuGraphAddChildGraphNode(&middle, parent, nullptr, 0, parent));
                  CU_OK(cuGraphDestroy(child));
                  CU_OK(cuGraphInstantiate(&exec, parent, 0));
                  CU_OK(cuGraphLaunch(exec, f.stream));
                  CU_OK(cuStreamSynchronize(f.stream));
                  EXPECT_EQ(49u, *f.words);
              }));
}

TEST(EmulatedStream, AFullQueueBlocksTheNextLaunch)
{
    EXPECT_EQ(0, in_child([] {
                  setenv("LAMPREY_EMULATOR_QUEUE", "3", 1);
                  Fixture f;
                  std::atomic<bool> go{false};
                  std::atomic<int> launched{0};
                  std::thread launcher([&] {
                      use_device(0);
                      CU_OK(cuLaunchHostFunc(f.stream, hold_back, &go));
                      for (int i = 0; i < 5; i++) {
                          launched++;
                          CU_OK(f.launch(f.add, f.stream, fake_add{f.words, 1}));
                      }
                  });
                  usleep(50000);
                  EXPECT_EQ(3, launched.load()); /* two are in the queue, the third waits */
                  CU_OK(f.launch(f.add, f.other, fake_add{f.words + 1, 1}));
                  go = true;
                  launcher.join();
                  CU_OK(cuStreamSynchronize(f.stream));
                  CU_OK(cuStreamSynchronize(f.other));
                  EXPECT_EQ(5u, *f.words);
              }));
}

TEST(EmulatedGraph, AnUpdateReplacesWhatTheNodesDo)
{
    EXPECT_EQ(0, in_child([] {
                  Fixture f;
                  f.begin();
                  CU_OK(f.launch(f.add, f.stream, fake_add{f.words, 1}));
                  CUgraphExec exec = f.end();
                  CUgraph graph = nullptr;
                  CUgraphExecUpdateResultInfo info;
                  f.begin();
                  CU_OK(f.launch(f.add, f.stream, fake_add{f.words, 10}));
                  CU_OK(cuStreamEndCapture(f.stream, &graph));
                  CU_OK(cuGraphExecUpdate(exec, graph, &info));
                  CU_OK(cuGraphLaunch(exec, f.stream));
                  CU_OK(cuStreamSynchronize(f.stream));
                  EXPECT_EQ(10u, f.words[0]);
                  f.begin();
                  CU_OK(cuStreamEndCapture(f.stream, &graph));
                  EXPECT_EQ(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE,
                            cuGraphExecUpdate(exec, graph, &info));
              }));
}

/* A call that a capture forbids, what it returns, and whether it spoils the capture. */
struct Forbidden {
    const char *name;
    CUresult expected;
    bool invalidates;
    CUresult (*call)(Fixture &f);
};

const Forbidden kForbidden[] = {
    {"StreamSynchronize", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, true,
     [](Fixture &f) { return cuStreamSynchronize(f.stream); }},
    {"StreamQuery", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, true,
     [](Fixture &f) { return cuStreamQuery(f.stream); }},
    {"CtxSynchronize", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, true,
     [](Fixture &) { return cuCtxSynchronize(); }},
    {"MemAlloc", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, true,
     [](Fixture &) {
         CUdeviceptr pointer;
         return cuMemAlloc(&pointer, 4);
     }},
    {"MemHostAlloc", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, true,
     [](Fixture &) {
         void *pointer;
         return cuMemHostAlloc(&pointer, 4, 0);
     }},
    {"LibraryLoadData", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, true,
     [](Fixture &) {
         CUlibrary library;
         return cuLibraryLoadData(&library, "image", nullptr, nullptr, 0, nullptr, nullptr, 0);
     }},
    {"EventQueryOfACapturedEvent", CUDA_ERROR_CAPTURED_EVENT, true,
     [](Fixture &f) {
         EXPECT_EQ(CUDA_SUCCESS, cuEventRecord(f.event, f.stream));
         return cuEventQuery(f.event);
     }},
    {"EventSynchronizeOfACapturedEvent", CUDA_ERROR_CAPTURED_EVENT, true,
     [](Fixture &f) {
         EXPECT_EQ(CUDA_SUCCESS, cuEventRecord(f.event, f.stream));
         return cuEventSynchronize(f.event);
     }},
    {"WaitForAnEventFromOutside", CUDA_ERROR_STREAM_CAPTURE_ISOLATION, true,
     [](Fixture &f) {
         EXPECT_EQ(CUDA_SUCCESS, cuEventRecord(f.event, f.other));
         return cuStreamWaitEvent(f.stream, f.event, 0);
     }},
    {"BeginTwice", CUDA_ERROR_ILLEGAL_STATE, false,
     [](Fixture &f) { return cuStreamBeginCapture(f.stream, CU_STREAM_CAPTURE_MODE_GLOBAL); }},
    {"ExternalRecordOutsideOfACapture", CUDA_ERROR_ILLEGAL_STATE, false,
     [](Fixture &f) { return cuEventRecordWithFlags(f.event, f.other, CU_EVENT_RECORD_EXTERNAL); }},
};

TEST(EmulatedCapture, ForbidsWhatCudaForbids)
{
    for (const Forbidden &forbidden : kForbidden) {
        EXPECT_EQ(0, in_child([&] {
                      Fixture f;
                      f.begin();
                      EXPECT_EQ(forbidden.expected, forbidden.call(f));
                      CUstreamCaptureStatus status;
                      CU_OK(cuStreamIsCapturing(f.stream, &status));
                      EXPECT_EQ(forbidden.invalidates ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                                      : CU_STREAM_CAPTURE_STATUS_ACTIVE,
                                status);
                      CUgraph graph = nullptr;
                      EXPECT_EQ(forbidden.invalidates ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
                                                      : CUDA_SUCCESS,
                                cuStreamEndCapture(f.stream, &graph));
                      EXPECT_EQ(forbidden.invalidates, graph == nullptr);
                      CU_OK(cuStreamIsCapturing(f.stream, &status));
                      EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_NONE, status);
                      CU_OK(cuStreamSynchronize(f.stream));
                  }))
            << forbidden.name;
    }
}

TEST(EmulatedCapture, ModesDecideWhatOtherThreadsMayDo)
{
    struct Case {
        CUstreamCaptureMode capture;
        CUstreamCaptureMode thread;
        bool allowed;
    };
    const Case cases[] = {
        {CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_GLOBAL, false},
        {CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, true},
        {CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_RELAXED, true},
        {CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_GLOBAL, true},
        {CU_STREAM_CAPTURE_MODE_RELAXED, CU_STREAM_CAPTURE_MODE_GLOBAL, true},
    };
    for (const Case &c : cases) {
        EXPECT_EQ(0, in_child([&] {
                      Fixture f;
                      f.begin(c.capture);
                      std::thread thread([&] {
                          use_device(0);
                          CUstreamCaptureMode mode = c.thread;
                          EXPECT_EQ(CUDA_SUCCESS, cuThreadExchangeStreamCaptureMode(&mode));
                          EXPECT_EQ(CU_STREAM_CAPTURE_MODE_GLOBAL, mode);
                          CUdeviceptr pointer = 0;
                          EXPECT_EQ(c.allowed ? CUDA_SUCCESS
                                              : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                                    cuMemAlloc(&pointer, 4));
                      });
                      thread.join();
                      CUgraph graph = nullptr;
                      EXPECT_EQ(c.allowed ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
                                cuStreamEndCapture(f.stream, &graph));
                  }))
            << c.capture << " " << c.thread;
    }
}

TEST(EmulatedCapture, ARelaxedThreadMaySetUpDuringItsOwnCapture)
{
    EXPECT_EQ(0, in_child([] {
                  Fixture f;
                  f.begin();
                  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
                  CU_OK(cuThreadExchangeStreamCaptureMode(&mode));
                  CUdeviceptr pointer = 0;
                  CU_OK(cuMemAlloc(&pointer, 4));
                  CU_OK(cuMemsetD8Async(pointer, 1, 4, f.other));
                  CU_OK(cuStreamSynchronize(f.other));
                  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamSynchronize(f.stream));
              }));
}

TEST(EmulatedCapture, TheLegacyStreamMayNotDependOnABlockingStreamsCapture)
{
    EXPECT_EQ(0, in_child([] {
                  Fixture f;
                  CUstream blocking = nullptr;
                  CUgraph graph = nullptr;
                  CU_OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
                  CU_OK(cuStreamBeginCapture(blocking, CU_STREAM_CAPTURE_MODE_RELAXED));
                  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                            f.launch(f.add, nullptr, fake_add{f.words, 1}));
                  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
                            cuStreamEndCapture(blocking, &graph));
                  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                            cuStreamBeginCapture(nullptr, CU_STREAM_CAPTURE_MODE_RELAXED));
                  f.begin(CU_STREAM_CAPTURE_MODE_RELAXED); /* this one is non-blocking */
                  CU_OK(f.launch(f.add, nullptr, fake_add{f.words, 1}));
                  CU_OK(cuStreamEndCapture(f.stream, &graph));
              }));
}

TEST(EmulatedCapture, ForkedStreamsMustJoinAgain)
{
    EXPECT_EQ(0, in_child([] {
                  Fixture f;
                  CUgraph graph = nullptr;
                  f.begin();
                  CU_OK(cuEventRecord(f.event, f.stream));
                  CU_OK(cuStreamWaitEvent(f.other, f.event, 0));
                  CU_OK(f.launch(f.add, f.other, fake_add{f.words, 1}));
                  EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                            cuStreamEndCapture(f.stream, &graph));
                  CU_OK(cuStreamSynchronize(f.other)); /* out of the capture */
                  EXPECT_EQ(CUDA_ERROR_CAPTURED_EVENT, cuStreamWaitEvent(f.other, f.event, 0));
              }));
}

TEST(EmulatedCapture, EndsInTheThreadThatBeganIt)
{
    EXPECT_EQ(0, in_child([] {
                  Fixture f;
                  f.begin(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
                  std::thread thread([&] {
                      use_device(0);
                      CUgraph graph = nullptr;
                      EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
                                cuStreamEndCapture(f.stream, &graph));
                  });
                  thread.join();
                  CUgraph graph = nullptr;
                  CU_OK(cuStreamEndCapture(f.stream, &graph));
                  EXPECT_EQ(CUDA_ERROR_ILLEGAL_STATE, cuStreamEndCapture(f.stream, &graph));
              }));
}

} // namespace
