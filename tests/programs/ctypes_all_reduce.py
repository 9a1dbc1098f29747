#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reaches NCCL through ctypes and looks ncclAllReduce up before any communicator exists, as inference engines do.

PyTorch gives memory, streams and graphs only. Prints: check <eager|graph> <bytes> <wrong>. Set NCCL_LIBRARY to choose
the library, else the one that PyTorch would load.
"""

import argparse
import ctypes
import glob
import os
import sys

import gpus

try:
    import torch
    import torch.multiprocessing as mp
except ImportError as error:
    print(f"skipped: {error}", file=sys.stderr)
    sys.exit(77)

BFLOAT16, SUM = 9, 0
CHECK_BYTES = [256, 8192, 65536, 524288]


class UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_byte * 128)]


def library_path():
    if "NCCL_LIBRARY" in os.environ:
        return os.environ["NCCL_LIBRARY"]
    for folder in sys.path:
        found = glob.glob(os.path.join(folder, "nvidia", "nccl", "lib", "libnccl.so.2"))
        if found:
            return found[0]
    return "libnccl.so.2"


def open_nccl():
    library = ctypes.CDLL(library_path())
    functions = {}
    for name, arguments in {
        "ncclGetUniqueId": [ctypes.POINTER(UniqueId)],
        "ncclCommInitRank": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, UniqueId, ctypes.c_int],
        "ncclAllReduce": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                          ctypes.c_void_p, ctypes.c_void_p],
        "ncclCommDestroy": [ctypes.c_void_p],
    }.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = ctypes.c_int
        functions[name] = function
    return functions


def good(status):
    if status != 0:
        raise RuntimeError(f"NCCL error {status}")


def make(count, seed, rank):
    generator = torch.Generator().manual_seed(seed * 64 + rank)
    return torch.randn(count, generator=generator).to(torch.bfloat16)


def worker(rank, world, queue, failures):
    torch.cuda.set_device(gpus.take(rank, torch.cuda.device_count()))
    nccl = open_nccl()
    unique = UniqueId()
    if rank == 0:
        good(nccl["ncclGetUniqueId"](ctypes.byref(unique)))
        for _ in range(world - 1):
            queue.put(bytes(unique))
    else:
        ctypes.memmove(ctypes.byref(unique), queue.get(timeout=60), 128)
    comm = ctypes.c_void_p()
    good(nccl["ncclCommInitRank"](ctypes.byref(comm), world, unique, rank))
    all_wrong = 0

    def all_reduce(data):
        stream = torch.cuda.current_stream().cuda_stream
        good(nccl["ncclAllReduce"](data.data_ptr(), data.data_ptr(), data.numel(), BFLOAT16, SUM, comm, stream))

    def wrong(data, seed):
        total = sum(make(data.numel(), seed, peer).to(torch.float32) for peer in range(world))
        error = (data.cpu().to(torch.float32) - total).abs()
        if world == 2:
            return int((data.cpu() != total.to(torch.bfloat16)).sum())
        return int((~(error <= world * 2**-7 * (total.abs() + world))).sum())

    for nbytes in CHECK_BYTES:
        count = nbytes // 2
        data = make(count, 1, rank).cuda()
        torch.cuda.synchronize()
        all_reduce(data)
        torch.cuda.synchronize()
        counts = {"eager": wrong(data, 1), "graph": 0}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_reduce(data)
        for seed in range(2, 5):
            data.copy_(make(count, seed, rank))
            graph.replay()
            torch.cuda.synchronize()
            counts["graph"] += wrong(data, seed)
        for mode, bad in counts.items():
            all_wrong += bad
            if rank == 0:
                print("check", mode, nbytes, bad, sep="\t", flush=True)
        del graph
    good(nccl["ncclCommDestroy"](comm))
    with failures.get_lock():
        failures.value += all_wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    gpus.need(options.ranks, torch.cuda.device_count())
    context = mp.get_context("spawn")
    queue = context.Queue()
    failures = context.Value("q", 0)
    mp.spawn(worker, args=(options.ranks, queue, failures), nprocs=options.ranks)
    sys.exit(1 if failures.value else 0)


if __name__ == "__main__":
    main()
