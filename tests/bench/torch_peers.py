#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times the all-reduces of Python packages as all_reduce_bench.c times NCCL's: the same options, modes and records.

Peers: torch-nccl (torch.distributed), torch-one-shot and torch-two-shot (torch's symmetric memory, without multicast),
flashinfer-one-shot with programmatic dependent launch and flashinfer-one-shot-no-pdl.
Ends with status 77 where a package or a GPU is missing.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import socket
import statistics
import sys
import time

LAYERS = 100
WARM_ROUNDS = 3
LAUNCH_BYTES = 4
DEFAULT_SIZES = "256,512,1K,2K,4K,8K,16K,32K,64K,128K,256K,512K,1M,2M,4M,16M"
MODES = ("launch", "graph", "eager", "host", "decode")
# In place, every call multiplies the data by about the number of ranks. It starts that small, and may grow that far.
START_EXPONENT = -100
GROWTH_EXPONENT = 200


def skip(reason):
    print(reason, file=sys.stderr, flush=True)
    sys.exit(77)


class InPlace:
    """A peer whose result overwrites its input."""

    in_place = True

    def __init__(self, buffer, reduce):
        self.buffer = buffer
        self.reduce = reduce

    def load(self, source):
        self.source = source
        self.data = self.buffer[: source.numel()]
        self.reset()

    def reset(self):
        self.data.copy_(self.source)

    def call(self):
        self.reduce(self.data)
        return self.data


class OutOfPlace:
    in_place = False

    def __init__(self, buffer, reduce):
        self.buffer = buffer
        self.reduce = reduce

    def load(self, source):
        self.data = self.buffer[: source.numel()]
        self.data.copy_(source)

    def reset(self):
        pass

    def call(self):
        return self.reduce(self.data)


def open_nccl(count, dtype, _world, _rank):
    import torch
    import torch.distributed as dist

    return InPlace(torch.empty(count, dtype=dtype, device="cuda"), dist.all_reduce)


def open_symmetric(count, dtype):
    import torch
    import torch.distributed as dist
    import torch.distributed._symmetric_memory as symmetric

    group = dist.group.WORLD.group_name
    buffer = symmetric.empty(count, dtype=dtype, device=torch.device("cuda", torch.cuda.current_device()))
    symmetric.rendezvous(buffer, group)
    return buffer, group


def open_one_shot(count, dtype, _world, _rank):
    import torch

    buffer, group = open_symmetric(count, dtype)
    return OutOfPlace(buffer, lambda data: torch.ops.symm_mem.one_shot_all_reduce(data, "sum", group))


def open_two_shot(count, dtype, _world, _rank):
    import torch

    buffer, group = open_symmetric(count, dtype)
    return InPlace(buffer, lambda data: torch.ops.symm_mem.two_shot_all_reduce_(data, "sum", group))


def open_flashinfer(count, dtype, world, rank, pdl=True):
    import flashinfer.comm as comm
    import torch
    import torch.distributed as dist

    row = 8192
    rows = -(-count // row)
    _, workspace = comm.trtllm_create_ipc_workspace_for_all_reduce_fusion(
        rank, world, rows, row, use_fp32_lamport=dtype == torch.float32, group=dist.group.WORLD
    )
    result = torch.empty(count, dtype=dtype, device="cuda")

    def reduce(data):
        hidden = min(row, data.numel())
        out = result[: data.numel()]
        comm.trtllm_allreduce_fusion(
            allreduce_in=data,
            world_size=world,
            world_rank=rank,
            token_num=data.numel() // hidden,
            hidden_dim=hidden,
            workspace_ptrs=workspace,
            launch_with_pdl=pdl,
            trigger_completion_at_end=False,
            fp32_acc=True,
            pattern_code=comm.AllReduceFusionPattern.kAllReduce,
            use_oneshot=True,
            allreduce_out=out,
            residual_in=None,
            residual_out=None,
            norm_out=None,
            quant_out=None,
            scale_out=None,
            rms_gamma=None,
            rms_eps=None,
            scale_factor=None,
            layout_code=None,
        )
        return out

    return OutOfPlace(torch.empty(count, dtype=dtype, device="cuda"), reduce)


def open_flashinfer_no_pdl(count, dtype, world, rank):
    return open_flashinfer(count, dtype, world, rank, pdl=False)


PEERS = {
    "torch-nccl": (open_nccl, ("torch",)),
    "torch-one-shot": (open_one_shot, ("torch",)),
    "torch-two-shot": (open_two_shot, ("torch",)),
    "flashinfer-one-shot": (open_flashinfer, ("torch", "flashinfer")),
    "flashinfer-one-shot-no-pdl": (open_flashinfer_no_pdl, ("torch", "flashinfer")),
}


def fits(name, count):
    """FlashInfer takes whole rows of whole 16-byte vectors."""
    return not name.startswith("flashinfer") or count % (8192 if count > 8192 else 8) == 0


def make_input(count, dtype, rank):
    import torch

    generator = torch.Generator().manual_seed(1 + rank)
    data = torch.randn(count, generator=generator, dtype=torch.float32)
    # Rounded here, so that scaling it changes nothing but the exponent.
    return (data.to(dtype).to(torch.float32) * 2.0**START_EXPONENT).to(dtype)


def wrong_elements(got, count, dtype, world):
    import torch

    exact = make_input(count, dtype, 0).to(torch.float32)
    for rank in range(1, world):
        exact += make_input(count, dtype, rank).to(torch.float32)
    got = got.cpu()
    if world == 2:
        return int((got != exact.to(dtype)).sum())
    # Rounded after every addition, in any order.
    bound = world * torch.finfo(dtype).eps * (exact.abs() + world * 2.0**START_EXPONENT)
    return int((~((got.to(torch.float32) - exact).abs() <= bound)).sum())


class Clock:
    """Replays a body twice and times the second, which starts with the ranks in step."""

    def __init__(self, peer):
        import torch

        self.peer = peer
        self.start = torch.cuda.Event(enable_timing=True)
        self.stop = torch.cuda.Event(enable_timing=True)

    def us(self, body):
        self.peer.reset()
        body()
        self.peer.reset()
        self.start.record()
        body()
        self.stop.record()
        self.stop.synchronize()
        return self.start.elapsed_time(self.stop) * 1000

    def host_us(self, body):
        """Until body has returned, whatever the GPU still does."""
        import torch

        self.peer.reset()
        torch.cuda.synchronize()
        start = time.perf_counter()
        body()
        spent = time.perf_counter() - start
        torch.cuda.synchronize()
        return spent * 1e6


def capture(body, times):
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            body()
    return graph


def rounds_of(measure, rounds):
    for _ in range(WARM_ROUNDS):
        measure()
    return [measure() for _ in range(rounds)]


def measure_mode(mode, peer, user, calls, rounds):
    """Microseconds a call, one for each round; and a user kernel pair's, for decode."""
    clock = Clock(peer)
    time_of = clock.host_us if mode == "host" else clock.us
    if mode == "decode":
        def layer():
            user.fill_(0.5)
            peer.call()
            user.fill_(0.5)

        def layer_without():
            user.fill_(0.5)
            user.fill_(0.5)

        with_it, without = capture(layer, calls), capture(layer_without, calls)
        pairs = rounds_of(lambda: (clock.us(without.replay) / calls, clock.us(with_it.replay) / calls), rounds)
        return [with_us - without_us for without_us, with_us in pairs], [pair[0] for pair in pairs]
    if mode in ("eager", "host"):

        def body():
            for _ in range(calls):
                peer.call()

    else:
        small = user[: LAUNCH_BYTES // user.element_size()]
        graph = capture(peer.call if mode == "graph" else lambda: small.fill_(0.5), calls)
        body = graph.replay
    return rounds_of(lambda: time_of(body) / calls, rounds), None


def percentile(values, share):
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def over_ranks(value, op):
    import torch
    import torch.distributed as dist

    cell = torch.tensor([value], dtype=torch.float64, device="cuda")
    dist.all_reduce(cell, op)
    return cell.item()


def measure_point(mode, count, dtype, peer, user, options, rank, world):
    import torch
    import torch.distributed as dist

    nbytes, wrong = count * dtype.itemsize, 0
    peer.load(make_input(count, dtype, rank).cuda())
    if mode == "launch":
        nbytes = LAUNCH_BYTES
    else:
        wrong = wrong_elements(peer.call(), count, dtype, world)
    calls = LAYERS if mode == "decode" else options.calls_per_graph
    if peer.in_place:
        calls = min(calls, int(GROWTH_EXPONENT / math.log2(world)))
    times, user_times = measure_mode(mode, peer, user, calls, options.rounds)
    largest = lambda value: over_ranks(value, dist.ReduceOp.MAX)
    record = {"peer": options.label or options.peer, "mode": mode, "bytes": nbytes}
    record.update(type=options.type, op="sum", ranks=world, processes=True, registered=False)
    record.update(calls=calls, rounds=options.rounds)
    record.update(median_us=largest(statistics.median(times)))
    record.update(p1_us=largest(percentile(times, 0.01)), p99_us=largest(percentile(times, 0.99)))
    if user_times:
        record.update(user_us=largest(statistics.median(user_times)))
    record.update(wrong=int(over_ranks(wrong, dist.ReduceOp.SUM)), served=None)
    major, minor, patch = torch.cuda.nccl.version()[:3]
    record.update(nccl=major * 10000 + minor * 100 + patch)
    return record


def warm_up(user):
    """Keeps the GPU busy until its clocks are up."""
    import torch

    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        for _ in range(20):
            user.fill_(0.5)
        torch.cuda.synchronize()


def worker(rank, world, port, options):
    import torch
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=world, device_id=torch.device("cuda", rank))
    # Before any capture: the communicator, and what it does at its first call.
    dist.all_reduce(torch.zeros(1, device="cuda"))
    dtype = getattr(torch, options.type)
    counts = [size // dtype.itemsize for size in options.sizes]
    peer = PEERS[options.peer][0](max(counts), dtype, world, rank)
    user = torch.empty(max(options.user_bytes // 4, 1), dtype=torch.float32, device="cuda")
    warm_up(user)
    points = [("launch", counts[0])] if "launch" in options.mode else []
    points += [(mode, count) for mode in MODES[1:] if mode in options.mode for count in counts]
    wrong = 0
    for mode, count in points:
        if not fits(options.peer, count):
            continue
        record = measure_point(mode, count, dtype, peer, user, options, rank, world)
        wrong += record["wrong"]
        if rank == 0:
            print(json.dumps(record), flush=True)
        if wrong:
            break
    torch.cuda.synchronize()
    dist.destroy_process_group()
    if wrong:
        sys.exit(1)


def parse_bytes(text):
    number, shift = text, 0
    if text[-1:] in ("K", "M"):
        number, shift = text[:-1], {"K": 10, "M": 20}[text[-1]]
    if not number.isdigit() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, such as 256, 8K or 4M")
    return int(number) << shift


def parse_sizes(text):
    return [parse_bytes(size) for size in text.split(",")]


def parse_modes(text):
    modes = text.split(",")
    if set(modes) - set(MODES):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(MODES)}")
    return modes


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=PEERS)
    parser.add_argument("--label", help="the records' \"peer\" (default: --peer)")
    parser.add_argument("--sizes", type=parse_sizes, default=DEFAULT_SIZES)
    parser.add_argument("--mode", type=parse_modes, default=",".join(MODES))
    parser.add_argument("--type", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--op", choices=("sum",), default="sum")
    parser.add_argument("--ranks", type=int, default=0, help="(as many as there are GPUs, at most 8)")
    parser.add_argument("--calls-per-graph", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--user-bytes", type=parse_bytes, default="16M")
    parser.add_argument("--processes", action="store_true", help="(always)")
    parser.add_argument("--versions", action="store_true", help="print the packages' versions only")
    return parser.parse_args()


def print_versions():
    for name in ("torch", "flashinfer-python"):
        try:
            print(f"{name}: {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not installed")


def main():
    options = parse_options()
    if options.versions:
        print_versions()
        return
    if not options.peer:
        sys.exit("torch_peers: which --peer?")
    for package in PEERS[options.peer][1]:
        if importlib.util.find_spec(package) is None:
            skip(f"not installed: {package}")
    import torch
    import torch.multiprocessing as mp

    gpus = torch.cuda.device_count()
    world = options.ranks or min(gpus, 8)
    if world < 2 or gpus < world:
        skip(f"skipped: needs {max(world, 2)} GPUs, there are {gpus}")
    if options.peer.startswith("flashinfer") and world not in (2, 4, 8, 16):
        skip(f"skipped: FlashInfer has no kernels for {world} ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(world, port, options), nprocs=world)


if __name__ == "__main__":
    main()
