// SPDX-License-Identifier: Apache-2.0
// What the order between a communicator's calls costs (plugin/order.h): the bf16 kernel for two
// ranks, one process with two GPUs, eager and in graphs of 200 calls, under several ways to keep
// the order. Prints, tab-separated:
//   order  <graph|eager>  <off|wait|signal>  <way>  <bytes>  <us per call, median, GPU 0>
// A benchmark: it checks nothing but the calls' return codes.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "tests/gpu/gpu_pair.h"

namespace {

using namespace lamprey_gpu;

constexpr uint32_t kLanes = 128;
constexpr uint32_t kSlotCells = 2048;
constexpr size_t kMaxBytes = 2 << 20;
constexpr int kCallsPerGraph = 200;
constexpr int kEagerCalls = 1000;

const char *const pdl_names[] = {"off", "wait", "signal"};

// graph: an external wait before the first kernel, and a record node that depends on
enum class GraphWay { nothing, every_kernel, last_kernel };
const char *const graph_way_names[] = {"nothing", "wait+record after every kernel",
                                       "wait+record after the last kernel"};

// eager: after every launch
enum class EagerWay { nothing, record, record_and_queries };
const char *const eager_way_names[] = {"nothing", "record", "record+queries"};

struct Rank {
    CUstream stream;
    CUevent serial;
    CUevent start;
    CUevent stop;
    CUdeviceptr send;
    CUdeviceptr recv;
};

// The GPUs, and on each a stream with buffers.
class OrderCost {
  public:
    OrderCost() : gpus_(kLanes, kSlotCells)
    {
        gpus_.load_all_reduce(LAMPREY_ONE_SHOT, LAMPREY_BF16);
        for (int self = 0; self < kRanks; self++) {
            open(self);
        }
    }

    double graph_us(size_t bytes, Pdl pdl, GraphWay way) const;
    double eager_us(size_t bytes, Pdl pdl, EagerWay way) const;

  private:
    void open(int self);
    void launch(int self, size_t bytes, Pdl pdl) const;
    CUgraphExec capture(int self, size_t bytes, Pdl pdl, GraphWay way) const;
    void eager_calls(int self, size_t bytes, Pdl pdl, EagerWay way) const;

    GpuPair gpus_;
    Rank ranks_[kRanks] = {};
};

void OrderCost::open(int self)
{
    Rank &rank = ranks_[self];
    std::mt19937 random(self + 1);
    std::vector<uint16_t> data(kMaxBytes / 2);
    for (uint16_t &element : data) {
        element = (uint16_t)(0x3f00 + random() % 256); // 0.5 to 2
    }
    gpus_.use(self);
    CHECK_CU(cuStreamCreate(&rank.stream, CU_STREAM_NON_BLOCKING));
    CHECK_CU(cuEventCreate(&rank.serial, CU_EVENT_DISABLE_TIMING));
    CHECK_CU(cuEventCreate(&rank.start, CU_EVENT_DEFAULT));
    CHECK_CU(cuEventCreate(&rank.stop, CU_EVENT_DEFAULT));
    CHECK_CU(cuMemAlloc(&rank.send, kMaxBytes));
    CHECK_CU(cuMemAlloc(&rank.recv, kMaxBytes));
    CHECK_CU(cuMemcpyHtoD(rank.send, data.data(), kMaxBytes));
}

void OrderCost::launch(int self, size_t bytes, Pdl pdl) const
{
    const Rank &rank = ranks_[self];
    const AllReduce call = {LAMPREY_ONE_SHOT, LAMPREY_BF16, bytes / 2, rank.send,
                            rank.recv,        kLanes,       pdl};
    gpus_.all_reduce(self, call, rank.stream);
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

CUgraphExec OrderCost::capture(int self, size_t bytes, Pdl pdl, GraphWay way) const
{
    const Rank &rank = ranks_[self];
    CUgraphNode record = nullptr;
    CUgraphNode previous = nullptr;
    CUgraph graph = nullptr;
    CUgraphExec executable = nullptr;
    gpus_.use(self);
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

double OrderCost::graph_us(size_t bytes, Pdl pdl, GraphWay way) const
{
    CUgraphExec executables[kRanks];
    std::vector<double> times;
    for (int self = 0; self < kRanks; self++) {
        executables[self] = capture(self, bytes, pdl, way);
    }
    for (int round = 0; round < 14; round++) {
        for (int self = 0; self < kRanks; self++) {
            gpus_.use(self);
            CHECK_CU(cuEventRecord(ranks_[self].start, ranks_[self].stream));
            CHECK_CU(cuGraphLaunch(executables[self], ranks_[self].stream));
            CHECK_CU(cuEventRecord(ranks_[self].stop, ranks_[self].stream));
        }
        for (int self = 0; self < kRanks; self++) {
            gpus_.use(self);
            CHECK_CU(cuStreamSynchronize(ranks_[self].stream));
        }
        float ms = 0;
        CHECK_CU(cuEventElapsedTime(&ms, ranks_[0].start, ranks_[0].stop));
        if (round >= 5) {
            times.push_back((double)ms * 1000 / kCallsPerGraph);
        }
    }
    for (CUgraphExec executable : executables) {
        CHECK_CU(cuGraphExecDestroy(executable));
    }
    return median(times);
}

void OrderCost::eager_calls(int self, size_t bytes, Pdl pdl, EagerWay way) const
{
    const Rank &rank = ranks_[self];
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

double OrderCost::eager_us(size_t bytes, Pdl pdl, EagerWay way) const
{
    std::atomic<int> ready{0};
    std::vector<double> times[kRanks];
    std::vector<std::thread> threads;
    for (int self = 0; self < kRanks; self++) {
        threads.emplace_back([&, self] {
            gpus_.use(self);
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
    const OrderCost cost;
    for (Pdl pdl : {Pdl::off, Pdl::wait, Pdl::signal}) {
        for (size_t bytes : {256, 8192, 65536, 262144}) {
            for (GraphWay way :
                 {GraphWay::nothing, GraphWay::every_kernel, GraphWay::last_kernel}) {
                if (way == GraphWay::every_kernel && bytes > 65536) {
                    continue; // hundreds of microseconds a call
                }
                printf("order\tgraph\t%s\t%s\t%zu\t%.2f\n", pdl_names[(int)pdl],
                       graph_way_names[(int)way], bytes, cost.graph_us(bytes, pdl, way));
            }
            for (EagerWay way :
                 {EagerWay::nothing, EagerWay::record, EagerWay::record_and_queries}) {
                printf("order\teager\t%s\t%s\t%zu\t%.2f\n", pdl_names[(int)pdl],
                       eager_way_names[(int)way], bytes, cost.eager_us(bytes, pdl, way));
            }
            fflush(stdout);
        }
    }
    return 0;
}
