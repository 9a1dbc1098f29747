#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Calls Lamprey's fused all-reduce through ctypes, with Python alone: no PyTorch, no NumPy.

Memory, streams and graphs come from CUDA's driver API. The results, eager and of a graph, are compared bit by bit with
the rules of kernels/NUMERICS.md. Prints: check <eager|graph> <wrong>. NCCL_LIBRARY chooses the library.
"""

import argparse
import array
import ctypes
import math
import multiprocessing
import multiprocessing.connection
import os
import random
import sys
from ctypes import byref, c_float, c_int, c_size_t, c_uint64, c_void_p

import gpus
import lamprey_ctypes as lamprey

TOKENS, HIDDEN, EPSILON = 3, 1000, 1e-5
SEGMENT = 128  # fp32 elements whose squares are summed as a tree
INVALID_ARGUMENT = 4
NON_BLOCKING, THREAD_LOCAL = 1, 1  # CU_STREAM_NON_BLOCKING, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_byte * 128)]


class Api:
    """A C library whose functions return a status; name(...) raises where that isn't 0."""

    def __init__(self, name, suffixed=()):
        self._library = ctypes.CDLL(name)
        self._suffixed = suffixed

    def __getattr__(self, name):
        function = getattr(self._library, name + ("_v2" if name in self._suffixed else ""))

        def call(*arguments):
            status = function(*arguments)
            if status != 0:
                raise RuntimeError(f"{name}: error {status}")

        return call


def open_cuda():
    return Api("libcuda.so.1", ("cuMemAlloc", "cuMemFree", "cuMemcpyHtoD", "cuMemcpyDtoH", "cuStreamBeginCapture",
                                "cuStreamDestroy"))


def single(value):
    return c_float(value).value


def numbers(seed, who, count):
    generator = random.Random(seed * 64 + who)
    return array.array("f", (generator.uniform(-2, 2) for _ in range(count)))


def sum_of_squares(row):
    total = 0.0
    for start in range(0, len(row), SEGMENT):
        tree = [single(value * value) for value in row[start:start + SEGMENT]]
        tree += [0.0] * (SEGMENT - len(tree))
        while len(tree) > 1:
            tree = [single(a + b) for a, b in zip(tree[::2], tree[1::2])]
        total = single(total + tree[0])
    return total


def reference(inputs, residual, gamma):
    """What residual_out and norm_out must hold."""
    rows = array.array("f", inputs[0])
    for other in inputs[1:] + [residual]:
        rows = array.array("f", (a + b for a, b in zip(rows, other)))
    norm = array.array("f")
    for start in range(0, len(rows), HIDDEN):
        row = rows[start:start + HIDDEN]
        mean = single(sum_of_squares(row) * single(1 / HIDDEN))
        factor = single(1 / math.sqrt(single(mean + single(EPSILON))))
        norm.extend(single(single(value * factor) * weight) for value, weight in zip(row, gamma))
    return rows, norm


class Rank:
    def __init__(self, rank, world, unique):
        self.rank, self.world = rank, world
        self.cuda, self.nccl = open_cuda(), Api(os.environ.get("NCCL_LIBRARY") or "libnccl.so.2")
        count, device, context, self.stream, self.comm = c_int(), c_int(), c_void_p(), c_void_p(), c_void_p()
        self.cuda.cuInit(0)
        self.cuda.cuDeviceGetCount(byref(count))
        self.cuda.cuDeviceGet(byref(device), gpus.take(rank, count.value))
        self.cuda.cuDevicePrimaryCtxRetain(byref(context), device)
        self.cuda.cuCtxSetCurrent(context)
        self.cuda.cuStreamCreate(byref(self.stream), NON_BLOCKING)
        self.nccl.ncclCommInitRank(byref(self.comm), world, unique, rank)
        self.lamprey = lamprey.load()
        self.input, self.residual, self.norm = (self.memory(TOKENS * HIDDEN) for _ in range(3))
        self.gamma = self.memory(HIDDEN)

    def memory(self, count):
        address = c_uint64()
        self.cuda.cuMemAlloc(byref(address), c_size_t(count * 4))
        return address

    def upload(self, address, values):
        self.cuda.cuMemcpyHtoD(address, c_void_p(values.buffer_info()[0]), c_size_t(len(values) * 4))

    def download(self, address, count):
        values = array.array("f", bytes(count * 4))
        self.cuda.cuMemcpyDtoH(c_void_p(values.buffer_info()[0]), address, c_size_t(count * 4))
        return values

    def arguments(self):
        return lamprey.FusedArgs(
            tokens=TOKENS, hidden=HIDDEN, type=lamprey.FLOAT32, residual_in=self.residual.value,
            residual_out=self.residual.value, gamma=self.gamma.value, gamma_type=lamprey.FLOAT32, epsilon=EPSILON,
            norm_out=self.norm.value, **{"in": self.input.value})

    def call(self):
        status = self.lamprey.lampreyAllReduceFused(byref(self.arguments()), self.comm, self.stream)
        if status != 0:
            raise RuntimeError(self.lamprey.lampreyGetLastError().decode())

    def round(self, seed, run):
        """Elements that are wrong after run()."""
        inputs = [numbers(seed, who, TOKENS * HIDDEN) for who in range(self.world)]
        residual, gamma = numbers(seed, self.world, TOKENS * HIDDEN), numbers(seed, self.world + 1, HIDDEN)
        self.upload(self.input, inputs[self.rank])
        self.upload(self.residual, residual)
        self.upload(self.gamma, gamma)
        run()
        self.cuda.cuStreamSynchronize(self.stream)
        wrong = 0
        for address, expected in zip((self.residual, self.norm), reference(inputs, residual, gamma)):
            got = self.download(address, len(expected))
            # As integers, so that -0.0 is not 0.0.
            wrong += sum(a != b for a, b in zip(array.array("I", got.tobytes()), array.array("I", expected.tobytes())))
        return wrong

    def check_error(self):
        """A wrong argument is named, and this rank alone may be wrong."""
        wrong = self.arguments()
        wrong.hidden = 0
        status = self.lamprey.lampreyAllReduceFused(byref(wrong), self.comm, self.stream)
        text = self.lamprey.lampreyGetLastError().decode()
        if status != INVALID_ARGUMENT or "hidden" not in text:
            raise RuntimeError(f"hidden 0 gave {status}, {text!r}")

    def capture(self):
        graph, instance = c_void_p(), c_void_p()
        self.cuda.cuStreamBeginCapture(self.stream, THREAD_LOCAL)
        self.call()
        self.cuda.cuStreamEndCapture(self.stream, byref(graph))
        self.cuda.cuGraphInstantiateWithFlags(byref(instance), graph, c_uint64(0))
        return graph, instance

    def close(self):
        self.cuda.cuStreamSynchronize(self.stream)
        self.nccl.ncclCommDestroy(self.comm)
        for address in (self.input, self.residual, self.norm, self.gamma):
            self.cuda.cuMemFree(address)
        self.cuda.cuStreamDestroy(self.stream)


def worker(rank, world, queue, failures):
    unique = UniqueId()
    if rank == 0:
        Api(os.environ.get("NCCL_LIBRARY") or "libnccl.so.2").ncclGetUniqueId(byref(unique))
        for _ in range(world - 1):
            queue.put(bytes(unique))
    else:
        ctypes.memmove(byref(unique), queue.get(timeout=60), 128)
    self = Rank(rank, world, unique)
    wrong = {"eager": self.round(1, self.call)}
    if rank == 0:
        self.check_error()
    graph, instance = self.capture()
    wrong["graph"] = sum(self.round(seed, lambda: self.cuda.cuGraphLaunch(instance, self.stream))
                         for seed in (2, 3))
    wrong["eager"] += self.round(4, self.call)
    self.cuda.cuGraphExecDestroy(instance)
    self.cuda.cuGraphDestroy(graph)
    self.close()
    if rank == 0:
        for mode, count in wrong.items():
            print("check", mode, count, sep="\t", flush=True)
    with failures.get_lock():
        failures.value += sum(wrong.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    queue, failures = context.Queue(), context.Value("q", 0)
    ranks = [context.Process(target=worker, args=(rank, options.ranks, queue, failures))
             for rank in range(options.ranks)]
    for rank in ranks:
        rank.start()
    left = ranks
    while left and not any(rank.exitcode for rank in ranks):  # one that fails leaves the others waiting
        multiprocessing.connection.wait([rank.sentinel for rank in left])
        left = [rank for rank in left if rank.exitcode is None]
    for rank in ranks:
        if rank.exitcode is None:
            rank.kill()
        rank.join()
    sys.exit(1 if failures.value or any(rank.exitcode for rank in ranks) else 0)


if __name__ == "__main__":
    main()
