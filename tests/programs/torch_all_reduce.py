#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An unmodified PyTorch program: torch.distributed all-reduces, one process per GPU, eager and in CUDA graphs.

Checks every element, then times; prints, tab-separated:
  check  <eager|graph>  <type>  <bytes>  <wrong elements on all ranks>
  time   <eager|graph>  bfloat16  <bytes>  <us per call: median over the replays, slowest rank>
Ends with status 77 where there are too few GPUs.
"""

import argparse
import os
import socket
import statistics
import sys

import gpus

try:
    import torch
    import torch.distributed as dist
    import torch.multiprocessing as mp
except ImportError as error:
    print(f"skipped: {error}", file=sys.stderr)
    sys.exit(77)

CHECK_BYTES = [2, 6, 256, 1000, 8192, 65536, 262144, 524288, 4 << 20]
TIME_BYTES = [256, 8192, 65536, 262144, 524288]
TYPES = [torch.bfloat16, torch.float16, torch.float32]


def make(count, dtype, seed, rank):
    generator = torch.Generator().manual_seed(seed * 64 + rank)
    return torch.randn(count, generator=generator, dtype=torch.float32).to(dtype)


def expected(count, dtype, seed, world):
    total = make(count, dtype, seed, 0).to(torch.float32)
    for rank in range(1, world):
        total += make(count, dtype, seed, rank).to(torch.float32)
    return total


def wrong_elements(result, count, dtype, seed, world):
    exact = expected(count, dtype, seed, world)
    got = result.cpu()
    if world == 2:
        # One addition, rounded once: only one value is right.
        return int((got != exact.to(dtype)).sum())
    error = (got.to(torch.float32) - exact).abs()
    bound = world * torch.finfo(dtype).eps * (exact.abs() + world)
    return int((~(error <= bound)).sum())


def check_eager(rank, world):
    for dtype in TYPES:
        for nbytes in CHECK_BYTES:
            count = max(1, nbytes // dtype.itemsize)
            wrong = 0
            for seed in range(3):
                data = make(count, dtype, seed, rank).cuda()
                dist.all_reduce(data)
                wrong += wrong_elements(data, count, dtype, seed, world)
            yield "eager", dtype, count * dtype.itemsize, wrong


def check_graph(rank, world):
    for dtype in TYPES:
        for nbytes in CHECK_BYTES:
            count = max(1, nbytes // dtype.itemsize)
            buffers = [torch.zeros(count, dtype=dtype, device="cuda") for _ in range(4)]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for buffer in buffers:
                    dist.all_reduce(buffer)
            wrong = 0
            for replay in range(3):
                for i, buffer in enumerate(buffers):
                    buffer.copy_(make(count, dtype, 10 * replay + i, rank))
                graph.replay()
                torch.cuda.synchronize()
                for i, buffer in enumerate(buffers):
                    wrong += wrong_elements(buffer, count, dtype, 10 * replay + i, world)
            yield "graph", dtype, count * dtype.itemsize, wrong
            del graph


def median_us(body, reset, calls, rounds):
    """body runs calls all-reduces; twice a round, since the first brings the ranks into step."""
    start = torch.cuda.Event(enable_timing=True)
    stop = torch.cuda.Event(enable_timing=True)
    times = []
    for _ in range(rounds):
        reset()
        body()
        reset()
        start.record()
        body()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1000 / calls)
    return statistics.median(times)


def time_all(sizes, calls, rounds, rank, world):
    for nbytes in sizes:
        # In place, every call multiplies the data by about the number of ranks: random and tiny at first, so that it
        # stays finite and never becomes zero.
        source = (make(nbytes // 2, torch.float32, 1, rank) * 2.0**-100).to(torch.bfloat16).cuda()
        data = torch.empty_like(source)
        if world**calls > 2**200:
            raise SystemExit(f"--calls={calls} makes numbers too large")

        def reset():
            data.copy_(source)

        def eager():
            for _ in range(calls):
                dist.all_reduce(data)

        reset()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            eager()
        yield "graph", nbytes, median_us(graph.replay, reset, calls, rounds)
        yield "eager", nbytes, median_us(eager, reset, calls, rounds)
        if not torch.isfinite(data).all() or not data.any():
            raise SystemExit(f"{nbytes} bytes: timed on degenerate data")
        del graph


def over_ranks(value, op):
    cell = torch.tensor([value], dtype=torch.float64, device="cuda")
    dist.all_reduce(cell, op)
    return cell.item()


def worker(rank, world, port, options):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    device = gpus.take(rank, torch.cuda.device_count())
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", rank=rank, world_size=world, device_id=torch.device("cuda", device))
    # Before any capture: the communicator, and what it does at its first call.
    dist.all_reduce(torch.zeros(1, device="cuda"))
    torch.cuda.synchronize()
    failed = False
    if not options.no_check:
        for source in (check_eager, check_graph):
            for mode, dtype, nbytes, wrong in source(rank, world):
                wrong = int(over_ranks(wrong, dist.ReduceOp.SUM))
                failed |= wrong != 0
                if rank == 0:
                    print("check", mode, str(dtype).removeprefix("torch."), nbytes, wrong, sep="\t", flush=True)
    if not options.no_times:
        for mode, nbytes, us in time_all(options.bytes, options.calls, options.rounds, rank, world):
            us = over_ranks(us, dist.ReduceOp.MAX)
            if rank == 0:
                print("time", mode, "bfloat16", nbytes, f"{us:.2f}", sep="\t", flush=True)
    torch.cuda.synchronize()
    dist.destroy_process_group()
    if failed:
        sys.exit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--calls", type=int, default=200, help="all-reduces per graph")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--bytes", type=int, nargs="+", default=TIME_BYTES, help="message sizes to time")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--no-times", action="store_true")
    options = parser.parse_args()
    gpus.need(options.ranks, torch.cuda.device_count())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(options.ranks, port, options), nprocs=options.ranks)


if __name__ == "__main__":
    main()
