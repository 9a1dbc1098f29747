// SPDX-License-Identifier: Apache-2.0
// What the order between a communicator's calls costs (plugin/order.h): the bf16 kernel for two
// ranks, one process with two GPUs, eager and in graphs of 200 calls, under several ways to keep
// the order. Prints, tab-separated:
//   order  <graph|eager>  <off|wait|signal>  <way>  <bytes>  <us per call, median, GPU 0>
// A benchmark: it checks nothing but the calls' return codes.
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/plan.h"

extern "C" const unsigned char lamprey_fatbin[];

namespace {

#define CHECK_CU(call)                                                                             \
    do {                                                                                           \
        CUresult result_ = (call);                                                                 \
        if (result_ != CUDA_SUCCESS) {                                                             \
            const char *name_ = "unknown error";                                                   \
            cuGetErrorName(result_, &name_);                                                       \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, name_);                  \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

constexpr int kRanks = 2;
constexpr uint32_t kLanes = 128;
constexpr uint32_t kSlotCells = 2048;
constexpr size_t kMaxBytes = 2 << 20;
constexpr int kCallsPerGraph = 200;
constexpr int kEagerCalls = 1000;

enum class Pdl { off, wait, signal };
const char *const pdl_names[] = {"off", "wait", "signal"};

// graph: an external wait before the first kernel, and a record node that depends on
enum class GraphWay { nothing, every_kernel, last_kernel };
const char *const graph_way_names[] = {"nothing", "wait+record after every kernel",
                                       "wait+record after the last kernel"};

// eager: after every launch
enum class EagerWay { nothing, record, record_and_queries };
const char *const eager_way_names[] = {"nothing", "record", "record+queries"};

struct Rank {
    CUdevice device;
    CUcontext context;
    CUstream stream;
    CUevent serial;
    CUevent start;
    CUevent stop;
    CUdeviceptr staging;
    CUdeviceptr lanes;
    CUdeviceptr send;
    CUdeviceptr recv;
};

Rank ranks[kRanks];
CUkernel kernel;
CUdeviceptr abort_word;

void open_rank(Rank &rank, int ordinal)
{
    const uint64_t staging = lamprey_staging_bytes(kLanes, kSlotCells);
    std::mt19937 random(ordinal + 1);
    std::vector<uint16_t> data(kMaxBytes / 2);
    for (uint16_t &element : data) {
        element = (uint16_t)(0x3f00 + random() % 256); // 0.5 to 2
    }
    CHECK_CU(cuDeviceGet(&rank.device, ordinal));
    CHECK_CU(cuDevicePrimaryCtxRetain(&rank.context, rank.device));
    CHECK_CU(cuCtxSetCurrent(rank.context));
    CHECK_CU(cuStreamCreate(&rank.stream, CU_STREAM_NON_BLOCKING));
    CHECK_CU(cuEventCreate(&rank.serial, CU_EVENT_DISABLE_TIMING));
    CHECK_CU(cuEventCreate(&rank.start, CU_EVENT_DEFAULT));
    CHECK_CU(cuEventCreate(&rank.stop, CU_EVENT_DEFAULT));
    CHECK_CU(cuMemAlloc(&rank.staging, staging));
    CHECK_CU(cuMemAlloc(&rank.lanes, kLanes * sizeof(lamprey_lane)));
    CHECK_CU(cuMemAlloc(&rank.send, kMaxBytes));
    CHECK_CU(cuMemAlloc(&rank.recv, kMaxBytes));
    CHECK_CU(cuMemsetD8(rank.staging, 0xff, staging));
    CHECK_CU(cuMemsetD8(rank.lanes, 0, kLanes * sizeof(lamprey_lane)));
    CHECK_CU(cuMemcpyHtoD(rank.send, data.data(), kMaxBytes));
    CHECK_CU(cuCtxSynchronize());
}

void launch(int self, size_t bytes, Pdl pdl)
{
    const Rank &rank = ranks[self];
    const uint64_t vectors = lamprey_divide_up(bytes, LAMPREY_VECTOR_BYTES);
    const lamprey_plan plan =
        lamprey_plan_of(LAMPREY_ONE_SHOT, vectors, kRanks, kLanes,
                        lamprey_row_vectors(LAMPREY_ONE_SHOT, kRanks, kSlotCells, 1));
    lamprey_all_reduce_params params = {};
    params.send = (void *)rank.send;
    params.recv = (void *)rank.recv;
    params.lanes = (lamprey_lane *)rank.lanes;
    params.alarm = (uint32_t *)abort_word;
    params.rank = (uint32_t)self;
    params.flags = lamprey_message_flags(&plan, params.send, params.recv, bytes) |
                   (pdl == Pdl::signal ? LAMPREY_FLAG_SIGNAL : 0);
    lamprey_plan_params(&plan, kRanks, kSlotCells, bytes / 2, vectors, &params);
    for (int peer = 0; peer < kRanks; peer++) {
        params.staging[peer] = (unsigned char *)ranks[peer].staging;
    }
    void *arguments[] = {&params};
    CUlaunchAttribute overlap = {};
    overlap.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    overlap.value.programmaticStreamSerializationAllowed = 1;
    CUlaunchConfig config = {};
    config.gridDimX = plan.ctas;
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
    config.blockDimX = plan.threads;
    config.hStream = rank.stream;
    config.attrs = &overlap;
    config.numAttrs = pdl == Pdl::off ? 0 : 1;
    CHECK_CU(cuLaunchKernelEx(&config, (CUfunction)kernel, arguments, nullptr));
}

// The node of the kernel that was captured last, and the graph that is being captured.
CUgraphNode last_node(CUstream stream, CUgraph *graph)
{
    CUstreamCaptureStatus status;
    cuuint64_t id = 0;
    const CUgraphNode *nodes = nullptr;
    const CUgraphEdgeData *edges = nullptr;
    size_t count = 0;
    CHECK_CU(cuStreamGetCaptureInfo(stream, &status, &id, graph, &nodes, &edges, &count));
    return nodes[count - 1];
}

CUgraphExec capture(int self, size_t bytes, Pdl pdl, GraphWay way)
{
    Rank &rank = ranks[self];
    CUgraphNode record = nullptr;
    CUgraphNode previous = nullptr;
    CUgraph graph = nullptr;
    CUgraphExec executable = nullptr;
    CHECK_CU(cuCtxSetCurrent(rank.context));
    CHECK_CU(cuStreamBeginCapture(rank.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    if (way != GraphWay::nothing) {
        CHECK_CU(cuStreamWaitEvent(rank.stream, rank.serial, CU_EVENT_WAIT_EXTERNAL));
    }
    for (int call = 0; call < kCallsPerGraph; call++) {
        launch(self, bytes, pdl);
        if (way == GraphWay::nothing) {
            continue;
        }
        CUgraphNode node = last_node(rank.stream, &graph);
        if (!record) {
            CHECK_CU(cuGraphAddEventRecordNode(&record, graph, &node, 1, rank.serial));
        } else {
            CHECK_CU(cuGraphAddDependencies(graph, &node, &record, nullptr, 1));
            if (way == GraphWay::last_kernel) {
                CHECK_CU(cuGraphRemoveDependencies(graph, &previous, &record, nullptr, 1));
            }
        }
        previous = node;
    }
    CHECK_CU(cuStreamEndCapture(rank.stream, &graph));
    CHECK_CU(cuGraphInstantiate(&executable, graph, 0));
    CHECK_CU(cuGraphDestroy(graph));
    return executable;
}

double median(std::vector<double> values)
{
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

double graph_us(size_t bytes, Pdl pdl, GraphWay way)
{
    CUgraphExec executables[kRanks];
    std::vector<double> times;
    for (int self = 0; self < kRanks; self++) {
        executables[self] = capture(self, bytes, pdl, way);
    }
    for (int round = 0; round < 14; round++) {
        for (int self = 0; self < kRanks; self++) {
            CHECK_CU(cuCtxSetCurrent(ranks[self].context));
            CHECK_CU(cuEventRecord(ranks[self].start, ranks[self].stream));
            CHECK_CU(cuGraphLaunch(executables[self], ranks[self].stream));
            CHECK_CU(cuEventRecord(ranks[self].stop, ranks[self].stream));
        }
        for (const Rank &rank : ranks) {
            CHECK_CU(cuCtxSetCurrent(rank.context));
            CHECK_CU(cuStreamSynchronize(rank.stream));
        }
        float ms = 0;
        CHECK_CU(cuEventElapsedTime(&ms, ranks[0].start, ranks[0].stop));
        if (round >= 5) {
            times.push_back((double)ms * 1000 / kCallsPerGraph);
        }
    }
    for (CUgraphExec executable : executables) {
        CHECK_CU(cuGraphExecDestroy(executable));
    }
    return median(times);
}

void eager_calls(int self, size_t bytes, Pdl pdl, EagerWay way)
{
    const Rank &rank = ranks[self];
    for (int call = 0; call < kEagerCalls; call++) {
        if (way == EagerWay::record_and_queries) {
            CUstreamCaptureStatus status;
            cuuint64_t id = 0;
            CUgraph graph = nullptr;
            unsigned long long stream_id = 0;
            CHECK_CU(cuStreamGetCaptureInfo(rank.stream, &status, &id, &graph, nullptr, nullptr,
                                            nullptr));
            CHECK_CU(cuStreamGetId(rank.stream, &stream_id));
        }
        launch(self, bytes, pdl);
        if (way != EagerWay::nothing) {
            CHECK_CU(cuEventRecord(rank.serial, rank.stream));
        }
    }
    CHECK_CU(cuStreamSynchronize(rank.stream));
}

double eager_us(size_t bytes, Pdl pdl, EagerWay way)
{
    std::atomic<int> ready{0};
    std::vector<double> times[kRanks];
    std::vector<std::thread> threads;
    for (int self = 0; self < kRanks; self++) {
        threads.emplace_back([&, self] {
            CHECK_CU(cuCtxSetCurrent(ranks[self].context));
            eager_calls(self, bytes, pdl, way);
            ready++;
            while (ready < kRanks) {
                std::this_thread::yield();
            }
            for (int round = 0; round < 9; round++) {
                const auto start = std::chrono::steady_clock::now();
                eager_calls(self, bytes, pdl, way);
                const std::chrono::duration<double, std::micro> spent =
                    std::chrono::steady_clock::now() - start;
                times[self].push_back(spent.count() / kEagerCalls);
            }
        });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    return median(times[0]);
}

} // namespace

int main()
{
    CUlibrary library = nullptr;
    void *word = nullptr;
    int count = 0;
    if (cuInit(0) != CUDA_SUCCESS || cuDeviceGetCount(&count) != CUDA_SUCCESS || count < kRanks) {
        fprintf(stderr, "skipped: needs %d GPUs, there are %d\n", kRanks, count);
        return 77;
    }
    CHECK_CU(cuLibraryLoadData(&library, lamprey_fatbin, nullptr, nullptr, 0, nullptr, nullptr, 0));
    CHECK_CU(cuLibraryGetKernel(&kernel, library, "lamprey_one_shot_sum_bf16_2"));
    for (int self = 0; self < kRanks; self++) {
        open_rank(ranks[self], self);
    }
    for (int self = 0; self < kRanks; self++) {
        CHECK_CU(cuCtxSetCurrent(ranks[self].context));
        CHECK_CU(cuCtxEnablePeerAccess(ranks[1 - self].context, 0));
    }
    CHECK_CU(cuMemHostAlloc(&word, 4096, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP));
    memset(word, 0, 4096);
    CHECK_CU(cuMemHostGetDevicePointer(&abort_word, word, 0));
    for (Pdl pdl : {Pdl::off, Pdl::wait, Pdl::signal}) {
        for (size_t bytes : {256, 8192, 65536, 262144}) {
            for (GraphWay way :
                 {GraphWay::nothing, GraphWay::every_kernel, GraphWay::last_kernel}) {
                if (way == GraphWay::every_kernel && bytes > 65536) {
                    continue; // hundreds of microseconds a call
                }
                printf("order\tgraph\t%s\t%s\t%zu\t%.2f\n", pdl_names[(int)pdl],
                       graph_way_names[(int)way], bytes, graph_us(bytes, pdl, way));
            }
            for (EagerWay way :
                 {EagerWay::nothing, EagerWay::record, EagerWay::record_and_queries}) {
                printf("order\teager\t%s\t%s\t%zu\t%.2f\n", pdl_names[(int)pdl],
                       eager_way_names[(int)way], bytes, eager_us(bytes, pdl, way));
            }
            fflush(stdout);
        }
    }
    return 0;
}
