#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An unmodified CuPy program: cupy.cuda.nccl, one process per GPU. Prints: check <type> <bytes> <wrong>."""

import multiprocessing
import sys

import gpus

TYPES = {"float16": 6, "float32": 7, "float64": 8, "int32": 2}
COUNTS = [1, 64, 4096, 32768, 262144]


def worker(rank, world, queue, failures):
    import cupy
    import numpy
    from cupy.cuda import nccl

    cupy.cuda.Device(gpus.take(rank, cupy.cuda.runtime.getDeviceCount())).use()
    if rank == 0:
        unique = nccl.get_unique_id()
        for _ in range(world - 1):
            queue.put(unique)
    else:
        unique = queue.get(timeout=60)
    comm = nccl.NcclCommunicator(world, unique, rank)
    stream = cupy.cuda.Stream(non_blocking=True)
    all_wrong = 0
    for name, code in TYPES.items():
        for count in COUNTS:
            inputs = [numpy.random.default_rng(count + peer).integers(-100, 100, count) for peer in range(world)]
            with stream:
                data = cupy.asarray(inputs[rank].astype(name))
                comm.allReduce(data.data.ptr, data.data.ptr, count, code, 0, stream.ptr)
            stream.synchronize()
            wrong = int((cupy.asnumpy(data) != sum(inputs).astype(name)).sum())
            all_wrong += wrong
            if rank == 0:
                print("check", name, data.nbytes, wrong, sep="\t", flush=True)
    comm.destroy()
    with failures.get_lock():
        failures.value += all_wrong


def main():
    try:
        import cupy
        from cupy.cuda import nccl  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}", file=sys.stderr)
        sys.exit(77)
    world = 2
    gpus.need(world, cupy.cuda.runtime.getDeviceCount())
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    failures = context.Value("q", 0)
    workers = [context.Process(target=worker, args=(rank, world, queue, failures)) for rank in range(world)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    sys.exit(1 if failures.value or any(process.exitcode for process in workers) else 0)


if __name__ == "__main__":
    main()
