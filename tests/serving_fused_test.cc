// SPDX-License-Identifier: Apache-2.0
// Groups whose calls go out together.
#include <dlfcn.h>

#include <random>

#include "tests/serving_world.h"

namespace {

using namespace serving_test;

struct Piece {
    ncclDataType_t type;
    lamprey_reference_type reference;
    ncclRedOp_t op;
    lamprey_reference_op reference_op;
    size_t count;
    size_t at; // bytes into the buffers
};

constexpr size_t kRoom = 8192; // bytes of each piece

std::vector<Piece> any_pieces(int count, std::mt19937 &random)
{
    static const std::pair<ncclDataType_t, lamprey_reference_type> types[] = {
        {ncclFloat16, LAMPREY_REFERENCE_F16}, {ncclBfloat16, LAMPREY_REFERENCE_BF16},
        {ncclFloat32, LAMPREY_REFERENCE_F32}, {ncclFloat64, LAMPREY_REFERENCE_F64},
        {ncclInt32, LAMPREY_REFERENCE_I32},   {ncclUint32, LAMPREY_REFERENCE_U32}};
    static const std::pair<ncclRedOp_t, lamprey_reference_op> ops[] = {
        {ncclSum, LAMPREY_REFERENCE_SUM},
        {ncclMax, LAMPREY_REFERENCE_MAX},
        {ncclAvg, LAMPREY_REFERENCE_AVG}};
    std::vector<Piece> pieces;
    auto type = types[0];
    for (int i = 0; i < count; i++) {
        type = i == 0 || random() % 8 == 0 ? types[random() % 6] : type;
        const auto op = ops[random() % 3];
        const size_t most = kRoom / lamprey_reference_size(type.second);
        pieces.push_back({type.first, type.second, op.first, op.second,
                          1 + random() % (most >> random() % 8), (size_t)i * kRoom});
    }
    return pieces;
}

std::vector<uint8_t> bytes_of_rank(int rank, size_t size, uint64_t seed)
{
    return lamprey_test::make_data(LAMPREY_REFERENCE_U8, size, lamprey_test::data_kind::any_bits,
                                   seed * 64 + (uint64_t)rank);
}

void upload(Rank &self, size_t pieces, uint64_t seed)
{
    const std::vector<uint8_t> own = bytes_of_rank(self.rank, pieces * kRoom, seed);
    REQUIRE(cuMemcpyHtoDAsync(self.send, own.data(), own.size(), self.stream) == CUDA_SUCCESS);
    REQUIRE(cuMemsetD8Async(self.recv, 0x5a, own.size(), self.stream) == CUDA_SUCCESS);
    REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
}

void issue(Rank &self, const Piece &piece, ncclComm_t comm, CUstream stream)
{
    REQUIRE(ncclAllReduce((void *)(self.send + piece.at), (void *)(self.recv + piece.at),
                          piece.count, piece.type, piece.op, comm,
                          (cudaStream_t)stream) == ncclSuccess);
}

void check_pieces(Rank &self, const std::vector<Piece> &pieces, uint64_t seed)
{
    std::vector<uint8_t> got(pieces.size() * kRoom);
    std::vector<uint8_t> expected(got.size(), 0x5a);
    std::vector<std::vector<uint8_t>> inputs;
    for (int rank = 0; rank < self.nranks; rank++) {
        inputs.push_back(bytes_of_rank(rank, got.size(), seed));
    }
    for (const Piece &piece : pieces) {
        std::vector<const void *> parts;
        for (const std::vector<uint8_t> &input : inputs) {
            parts.push_back(input.data() + piece.at);
        }
        lamprey_reference_all_reduce(piece.reference, piece.reference_op, self.nranks, parts.data(),
                                     expected.data() + piece.at, piece.count);
    }
    REQUIRE(cuMemcpyDtoH(got.data(), self.recv, got.size()) == CUDA_SUCCESS);
    REQUIRE(memcmp(got.data(), expected.data(), got.size()) == 0);
}

void issue_group(Rank &self, const std::vector<Piece> &pieces)
{
    REQUIRE(ncclGroupStart() == ncclSuccess);
    for (const Piece &piece : pieces) {
        issue(self, piece, self.comm, self.stream);
    }
    REQUIRE(ncclGroupEnd() == ncclSuccess);
}

uint64_t launches()
{
    using function = unsigned long long (*)();
    const function count = (function)dlsym(RTLD_DEFAULT, "emulator_kernel_launches");
    REQUIRE(count != nullptr);
    return count();
}

// Kernels that a group of these calls becomes.
size_t captured_kernels(Rank &self, const std::vector<Piece> &pieces, CUgraphExec *executable)
{
    CUgraph graph = nullptr;
    CUgraphNode nodes[256];
    size_t count = sizeof nodes / sizeof nodes[0];
    size_t kernels = 0;
    REQUIRE(cuStreamBeginCapture(self.stream, CU_STREAM_CAPTURE_MODE_GLOBAL) == CUDA_SUCCESS);
    issue_group(self, pieces);
    REQUIRE(cuStreamEndCapture(self.stream, &graph) == CUDA_SUCCESS);
    REQUIRE(cuGraphGetNodes(graph, nodes, &count) == CUDA_SUCCESS);
    for (size_t i = 0; i < count; i++) {
        CUgraphNodeType type;
        REQUIRE(cuGraphNodeGetType(nodes[i], &type) == CUDA_SUCCESS);
        kernels += type == CU_GRAPH_NODE_TYPE_KERNEL;
    }
    REQUIRE(cuGraphInstantiate(executable, graph, 0) == CUDA_SUCCESS);
    REQUIRE(cuGraphDestroy(graph) == CUDA_SUCCESS);
    return kernels;
}

// 70 calls of three sizes, of all operators and both signs: three launches; another type stands
// between two batches. In a graph, where a launch costs no host time, each is a kernel.
TEST_F(Serving, PutsNeighboursOfAGroupIntoOneLaunch)
{
    processes(2, [](int rank) {
        Rank self(rank, 2);
        self.init();
        self.round(LAMPREY_REFERENCE_F32, 16, 1);
        std::vector<Piece> pieces;
        for (size_t i = 0; i < 76; i++) {
            const bool is_signed = i % 2;
            Piece piece = {is_signed ? ncclInt32 : ncclUint32,
                           is_signed ? LAMPREY_REFERENCE_I32 : LAMPREY_REFERENCE_U32,
                           i % 5 ? ncclMin : ncclSum,
                           i % 5 ? LAMPREY_REFERENCE_MIN : LAMPREY_REFERENCE_SUM,
                           i % 3 ? i : kRoom / 4,
                           i * kRoom};
            if (i >= 70 && i < 73) {
                piece.type = ncclFloat64;
                piece.reference = LAMPREY_REFERENCE_F64;
                piece.count = 9;
            }
            pieces.push_back(piece);
        }
        CUgraphExec graph = nullptr;
        REQUIRE(captured_kernels(self, pieces, &graph) == 76);
        for (uint64_t seed = 2; seed < 6; seed++) {
            upload(self, pieces.size(), seed);
            if (seed % 2) {
                const uint64_t before = launches();
                issue_group(self, pieces);
                // 32 + 32 + 6 integers, 3 doubles, 3 integers
                REQUIRE(launches() - before == 3 + 1 + 1);
            } else {
                REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS);
            }
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
            check_pieces(self, pieces, seed);
        }
        REQUIRE(stats_of(self.comm).served == 1 + 3 * 76);
        REQUIRE(stats_of(self.comm).served_grouped == 3 * 76);
        REQUIRE(stats_of(self.comm).served_captured == 76);
        REQUIRE(cuGraphExecDestroy(graph) == CUDA_SUCCESS);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// The same calls, in groups of other sizes on every rank, on two streams or captured.
TEST_F(Serving, LetsEveryRankGroupAsItLikes)
{
    processes(3, [](int rank) {
        Rank self(rank, 3);
        self.init();
        CUstream other = nullptr;
        REQUIRE(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
        self.round(LAMPREY_REFERENCE_F32, 16, 1);
        for (uint64_t seed = 2; seed < 12; seed++) {
            std::mt19937 common((unsigned)seed);
            std::mt19937 own((unsigned)seed * 16 + (unsigned)rank);
            const std::vector<Piece> pieces = any_pieces(50, common);
            upload(self, pieces.size(), seed);
            meet(3);
            const bool captured = (seed + (uint64_t)rank) % 4 == 0;
            CUgraphExec graph = nullptr;
            if (captured) {
                REQUIRE(captured_kernels(self, pieces, &graph) == pieces.size());
                REQUIRE(cuGraphLaunch(graph, self.stream) == CUDA_SUCCESS);
            }
            size_t left_in_group = 0;
            for (size_t i = 0; i < pieces.size() && !captured; i++) {
                if (left_in_group == 0 && own() % 3) {
                    left_in_group = 1 + own() % 40;
                    REQUIRE(ncclGroupStart() == ncclSuccess);
                }
                issue(self, pieces[i], self.comm, own() % 8 ? self.stream : other);
                if (left_in_group > 0 && (--left_in_group == 0 || i + 1 == pieces.size())) {
                    left_in_group = 0;
                    REQUIRE(ncclGroupEnd() == ncclSuccess);
                }
            }
            REQUIRE(cuStreamSynchronize(self.stream) == CUDA_SUCCESS);
            REQUIRE(cuStreamSynchronize(other) == CUDA_SUCCESS);
            check_pieces(self, pieces, seed);
            if (captured) {
                REQUIRE(cuGraphExecDestroy(graph) == CUDA_SUCCESS);
            }
        }
        REQUIRE(stats_of(self.comm).served == 1 + 500);
        REQUIRE(ncclCommDestroy(self.comm) == ncclSuccess);
    });
}

// One thread drives two GPUs whose launch queues hold little: a communicator's calls must not all
// go before the other's first. Batches of one, and full ones.
TEST_F(Serving, FillsNoLaunchQueueBeforeThePeersRun)
{
    setenv("LAMPREY_EMULATOR_QUEUE", "8", 1);
    processes(1, [](int) {
        constexpr int n = 2;
        int devices[n] = {0, 1};
        ncclComm_t comms[n];
        std::vector<Rank> ranks;
        for (int r = 0; r < n; r++) {
            ranks.emplace_back(r, n);
        }
        REQUIRE(ncclCommInitAll(comms, n, devices) == ncclSuccess);
        for (int r = 0; r < n; r++) {
            ranks[r].comm = comms[r];
        }
        for (const bool alike : {false, true}) {
            std::mt19937 random(alike ? 1 : 2);
            std::vector<Piece> pieces = any_pieces(400, random);
            for (size_t i = 0; i < pieces.size(); i++) {
                const bool wide = !alike && i % 2;
                pieces[i].type = wide ? ncclFloat64 : ncclFloat32;
                pieces[i].reference = wide ? LAMPREY_REFERENCE_F64 : LAMPREY_REFERENCE_F32;
                pieces[i].count = 1 + i % 500;
            }
            for (Rank &rank : ranks) {
                rank.use();
                upload(rank, pieces.size(), 3);
            }
            REQUIRE(ncclGroupStart() == ncclSuccess);
            for (Rank &rank : ranks) {
                rank.use();
                for (const Piece &piece : pieces) {
                    issue(rank, piece, rank.comm, rank.stream);
                }
            }
            REQUIRE(ncclGroupEnd() == ncclSuccess);
            for (Rank &rank : ranks) {
                rank.use();
                REQUIRE(cuStreamSynchronize(rank.stream) == CUDA_SUCCESS);
                check_pieces(rank, pieces, 3);
            }
        }
        REQUIRE(stats_of(comms[0]).served == 800);
        REQUIRE(ncclGroupStart() == ncclSuccess);
        for (int r = 0; r < n; r++) {
            REQUIRE(ncclCommDestroy(comms[r]) == ncclSuccess);
        }
        REQUIRE(ncclGroupEnd() == ncclSuccess);
    });
    unsetenv("LAMPREY_EMULATOR_QUEUE");
}

} // namespace
