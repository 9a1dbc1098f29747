// SPDX-License-Identifier: Apache-2.0
#include "tests/doors/bad_calls.h"

#include <cuda.h>
#include <dlfcn.h>
#include <nccl.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <regex>
#include <string>

namespace {

void *library;

template <typename Function> Function *find(void *handle, const char *name)
{
    auto function = reinterpret_cast<Function *>(dlsym(handle, name));
    if (function == nullptr) {
        printf("error: no %s\n", name);
        exit(2);
    }
    return function;
}

#define NCCL(name) find<decltype(name)>(library, #name)
#define CUDA(name) find<decltype(name)>(RTLD_DEFAULT, #name)

// Of these, nccl.h may know too little.
using Revoke = ncclResult_t(ncclComm_t, int);
using Shrink = ncclResult_t(ncclComm_t, int *, int, ncclComm_t *, ncclConfig_t *, int);

void say(const std::string &name, ncclResult_t code)
{
    const std::string text = NCCL(ncclGetLastError)(nullptr);
    printf("bad=%s: %d %s\n", name.c_str(), code,
           std::regex_replace(text, std::regex("0x[0-9a-f]+"), "ADDRESS").c_str());
}

struct Target {
    ncclComm_t comm;
    cudaStream_t stream;
    void *send;
    void *recv;
};

ncclResult_t sum(const Target &on, size_t count = 4, int type = ncclFloat32, int op = ncclSum)
{
    return NCCL(ncclAllReduce)(on.send, on.recv, count, static_cast<ncclDataType_t>(type),
                               static_cast<ncclRedOp_t>(op), on.comm, on.stream);
}

// A call by itself, and in a group with nothing else.
void both(const std::string &name, const std::function<ncclResult_t()> &call)
{
    say(name, call());
    NCCL(ncclGroupStart)();
    say(name + ", in a group", call());
    say(name + ", end of the group", NCCL(ncclGroupEnd)());
}

// What every function says of handle, which is no communicator.
void without_communicator(const std::string &what, ncclComm_t handle)
{
    int number = 0;
    ncclResult_t error;
    ncclComm_t child = nullptr;
    Target on = {handle, nullptr, &number, &number};
    both("all-reduce, " + what, [&] { return sum(on); });
    both("empty all-reduce, " + what, [&] { return sum(on, 0); });
    both("all-reduce of a bad type, " + what, [&] { return sum(on, 4, 77); });
    both("broadcast, " + what,
         [&] { return NCCL(ncclBroadcast)(&number, &number, 1, ncclInt32, 0, handle, nullptr); });
    both("all-gather, " + what,
         [&] { return NCCL(ncclAllGather)(&number, &number, 1, ncclInt32, handle, nullptr); });
    both("send, " + what,
         [&] { return NCCL(ncclSend)(&number, 1, ncclInt32, 0, handle, nullptr); });
    say("asynchronous error, " + what, NCCL(ncclCommGetAsyncError)(handle, &error));
    say("count, " + what, NCCL(ncclCommCount)(handle, &number));
    say("split, " + what, NCCL(ncclCommSplit)(handle, 0, 0, &child, nullptr));
    if (handle == nullptr) { // the rest of NCCL takes any other for a communicator
        if (dlsym(library, "ncclCommRevoke") != nullptr) {
            say("revoke, " + what, find<Revoke>(library, "ncclCommRevoke")(handle, 0));
        }
        say("finalize, " + what, NCCL(ncclCommFinalize)(handle));
    }
}

void groups()
{
    ncclSimInfo_t info = NCCL_SIM_INFO_INITIALIZER;
    say("end without start", NCCL(ncclGroupEnd)());
    say("simulation without start", NCCL(ncclGroupSimulateEnd)(&info));
    NCCL(ncclGroupStart)();
    NCCL(ncclGroupStart)();
    NCCL(ncclGroupEnd)();
    NCCL(ncclGroupEnd)();
    say("one end too many", NCCL(ncclGroupEnd)());
}

class World {
  public:
    World()
    {
        void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
        if (driver == nullptr || CUDA(cuInit)(0) != CUDA_SUCCESS) {
            printf("error: no driver\n");
            exit(2);
        }
        for (int rank = 0; rank < 2; rank++) {
            CUcontext context;
            CUstream stream;
            CUdeviceptr memory;
            CUDA(cuDevicePrimaryCtxRetain)(&context, rank);
            CUDA(cuCtxSetCurrent)(context);
            CUDA(cuStreamCreate)(&stream, CU_STREAM_NON_BLOCKING);
            find<CUresult(CUdeviceptr *, size_t)>(RTLD_DEFAULT, "cuMemAlloc_v2")(&memory, 4096);
            contexts_[rank] = context;
            ranks[rank] = {nullptr, reinterpret_cast<cudaStream_t>(stream),
                           reinterpret_cast<void *>(memory), reinterpret_cast<void *>(memory)};
        }
    }

    // Communicators of both ranks, in use if warm.
    void make(bool warm)
    {
        ncclComm_t comms[2];
        say("init", NCCL(ncclCommInitAll)(comms, 2, nullptr));
        for (int rank = 0; rank < 2; rank++) {
            ranks[rank].comm = comms[rank];
        }
        if (warm) {
            sum_on_both("good all-reduce");
        }
    }

    void sum_on_both(const std::string &name)
    {
        NCCL(ncclGroupStart)();
        sum(ranks[0]);
        sum(ranks[1]);
        say(name, NCCL(ncclGroupEnd)());
        for (int rank = 0; rank < 2; rank++) {
            CUDA(cuCtxSetCurrent)(contexts_[rank]);
            CUDA(cuStreamSynchronize)(reinterpret_cast<CUstream>(ranks[rank].stream));
        }
    }

    void abort_both()
    {
        for (const Target &rank : ranks) {
            NCCL(ncclCommAbort)(rank.comm);
        }
    }

    Target ranks[2];

  private:
    CUcontext contexts_[2];
};

void arguments(World &world, const std::string &what)
{
    Target on = world.ranks[0];
    int excluded[] = {0};
    ncclComm_t child = nullptr;
    ncclConfig_t config = {};
    for (int type : {-1, 12, 77, INT_MAX}) {
        both(what + "type " + std::to_string(type), [&] { return sum(on, 4, type); });
        both(what + "empty, type " + std::to_string(type), [&] { return sum(on, 0, type); });
    }
    for (int op : {-1, 5, 100, INT_MAX}) {
        both(what + "operator " + std::to_string(op), [&] { return sum(on, 4, ncclFloat32, op); });
    }
    both(what + "no pointers for nothing", [&] {
        return sum({on.comm, on.stream, nullptr, nullptr}, 0);
    });
    both(what + "send from nowhere", [&] { return sum({on.comm, on.stream, nullptr, on.recv}); });
    both(what + "receive to nowhere", [&] { return sum({on.comm, on.stream, on.send, nullptr}); });
    both(what + "root 2", [&] {
        return NCCL(ncclBroadcast)(on.send, on.recv, 1, ncclInt32, 2, on.comm, on.stream);
    });
    both(what + "peer -1",
         [&] { return NCCL(ncclSend)(on.send, 1, ncclInt32, -1, on.comm, on.stream); });
    say(what + "error to nowhere", NCCL(ncclCommGetAsyncError)(on.comm, nullptr));
    say(what + "count to nowhere", NCCL(ncclCommCount)(on.comm, nullptr));
    say(what + "split to nowhere", NCCL(ncclCommSplit)(on.comm, 0, 0, nullptr, nullptr));
    say(what + "bad color", NCCL(ncclCommSplit)(on.comm, -7, 0, &child, nullptr));
    say(what + "bad configuration", NCCL(ncclCommSplit)(on.comm, 0, 0, &child, &config));
    say(what + "shrink by oneself",
        find<Shrink>(library, "ncclCommShrink")(on.comm, excluded, 1, &child, nullptr, 0));
    say(what + "unknown operator's destruction",
        NCCL(ncclRedOpDestroy)(static_cast<ncclRedOp_t>(9), on.comm));
}

void streams(World &world)
{
    Target on = world.ranks[0];
    CUstream gone = nullptr;
    CUDA(cuStreamCreate)(&gone, CU_STREAM_NON_BLOCKING);
    find<CUresult(CUstream)>(RTLD_DEFAULT, "cuStreamDestroy_v2")(gone);
    on.stream = world.ranks[1].stream;
    both("stream of another GPU", [&] { return sum(on); });
    on.stream = reinterpret_cast<cudaStream_t>(gone);
    both("destroyed stream", [&] { return sum(on); });
}

void ended(World &world, bool warm)
{
    const std::string what = warm ? "used communicator, " : "new communicator, ";
    struct {
        const char *name;
        std::function<ncclResult_t(ncclComm_t)> end;
        bool alive;
    } ways[] = {{"finalized", [](ncclComm_t comm) { return NCCL(ncclCommFinalize)(comm); }, true},
                {"revoked",
                 [](ncclComm_t comm) { return find<Revoke>(library, "ncclCommRevoke")(comm, 0); },
                 true},
                {"destroyed", [](ncclComm_t comm) { return NCCL(ncclCommDestroy)(comm); }, false},
                {"aborted", [](ncclComm_t comm) { return NCCL(ncclCommAbort)(comm); }, false}};
    for (const auto &way : ways) {
        world.make(warm);
        for (const Target &rank : world.ranks) {
            say(what + way.name, way.end(rank.comm));
        }
        both(what + "call after it was " + way.name, [&] { return sum(world.ranks[0]); });
        say(what + "once more " + way.name, way.end(world.ranks[0].comm));
        if (way.alive) {
            world.abort_both();
        }
    }
}

} // namespace

void bad_calls(void *nccl, bool with_gpus)
{
    library = nccl;
    static char nothing[8 << 20]; // NCCL looks for its marks at both ends
    ncclUniqueId id;
    ncclComm_t comm = nullptr;
    say("unique id to nowhere", NCCL(ncclGetUniqueId)(nullptr));
    say("unique id", NCCL(ncclGetUniqueId)(&id));
    without_communicator("no communicator", nullptr);
    without_communicator("not a communicator", reinterpret_cast<ncclComm_t>(nothing));
    say("destroy nothing", NCCL(ncclCommDestroy)(nullptr));
    say("abort nothing", NCCL(ncclCommAbort)(nullptr));
    groups();
    if (!with_gpus) {
        return;
    }
    World world;
    say("rank 2 of 2", NCCL(ncclCommInitRank)(&comm, 2, id, 2));
    say("no ranks", NCCL(ncclCommInitRank)(&comm, 0, id, 0));
    say("communicator to nowhere", NCCL(ncclCommInitRank)(nullptr, 1, id, 0));
    world.make(false);
    arguments(world, "new communicator: ");
    world.abort_both();
    world.make(true);
    arguments(world, "used communicator: ");
    streams(world);
    world.sum_on_both("good all-reduce at last");
    world.abort_both();
    ended(world, false);
    ended(world, true);
}
