#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What training does with NCCL, by an unmodified PyTorch program, one process per GPU. Prints:

    loss    <ddp|fsdp> <step> <bits of the loss> <bits of the gradients' norm>
    check   coalesced <wrong elements>
    check   groups <process groups made and destroyed> <MiB of GPU memory that it cost>
    check   abort <ms until a rank whose peer never comes is free again>

The losses of two ranks don't depend on who adds: compare them with and without Lamprey. Ends with status 1 on a wrong
result, 77 where there are too few GPUs."""

import argparse
import os
import socket
import sys
import time

import gpus

try:
    import torch
    import torch.distributed as dist
    import torch.multiprocessing as mp
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel
except ImportError as error:
    print(f"skipped: {error}", file=sys.stderr)
    sys.exit(77)

WIDTH = 256
GROUPS = 200
GROUPS_BEFORE_MEMORY = 20
MOST_GROWTH_MIB = 32
MOST_ABORT_MS = 5000


def bits(value):
    return f"{value.detach().float().view(torch.int32).item() & 0xFFFFFFFF:08x}"


def make_model():
    torch.manual_seed(1)
    layers = []
    for _ in range(4):
        layers += [torch.nn.Linear(WIDTH, WIDTH), torch.nn.LayerNorm(WIDTH), torch.nn.GELU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 1)).cuda()


def train(model, rank, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(100 + rank)
    for step in range(steps):
        data = torch.randn(64, WIDTH, generator=generator).cuda()
        loss = (model(data) - data.square().mean(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        yield step, bits(mean), bits(norm)


def train_ddp(rank, steps):
    return train(DistributedDataParallel(make_model()), rank, steps)


def train_fsdp(rank, steps):
    model = make_model()
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer)
    return train(fully_shard(model), rank, steps)


def coalesced(rank, world):
    tensors = [torch.full((count,), rank + 1.0, device="cuda") for count in (1, 7, 1024, 65536)]
    with dist._coalescing_manager(device=tensors[0].device):
        for tensor in tensors:
            dist.all_reduce(tensor)
    return sum(int((tensor != world * (world + 1) / 2).sum()) for tensor in tensors)


def many_groups(world):
    used = None
    for i in range(GROUPS):
        group = dist.new_group(list(range(world)))
        data = torch.full((4096,), 1.0, device="cuda")
        dist.all_reduce(data, group=group)
        if not bool((data == world).all()):
            raise SystemExit("a new group's sum is wrong")
        dist.destroy_process_group(group)
        torch.cuda.synchronize()
        if i + 1 == GROUPS_BEFORE_MEMORY:
            used = torch.cuda.mem_get_info()[0]
    dist.barrier()
    return (used - torch.cuda.mem_get_info()[0]) / 2**20


def abort(rank, world):
    group = dist.new_group(list(range(world)))
    data = torch.ones(1024, device="cuda")
    dist.all_reduce(data, group=group)
    torch.cuda.synchronize()
    dist.barrier()
    began = time.monotonic()
    if rank == 0:
        dist.all_reduce(data, group=group, async_op=True)
        time.sleep(0.2)
        began = time.monotonic()
    group._get_backend(torch.device("cuda")).abort()
    torch.cuda.synchronize()
    return (time.monotonic() - began) * 1e3


def worker(rank, world, port, options):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    device = gpus.take(rank, torch.cuda.device_count())
    torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    dist.init_process_group("nccl", rank=rank, world_size=world, device_id=torch.device("cuda", device))

    def say(*words):
        if rank == 0:
            print(*words, sep="\t", flush=True)

    failed = False
    for name, losses in (("ddp", train_ddp), ("fsdp", train_fsdp)):
        for step, loss, norm in losses(rank, options.steps):
            say("loss", name, step, loss, norm)
    wrong = coalesced(rank, world)
    failed |= wrong != 0
    say("check", "coalesced", wrong)
    growth = many_groups(world)
    failed |= growth > MOST_GROWTH_MIB
    say("check", "groups", GROUPS, f"{growth:.0f}")
    took = abort(rank, world)
    failed |= took > MOST_ABORT_MS
    say("check", "abort", f"{took:.0f}")
    dist.barrier()
    dist.destroy_process_group()
    if failed:
        sys.exit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    gpus.need(options.ranks, torch.cuda.device_count())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(options.ranks, port, options), nprocs=options.ranks)


if __name__ == "__main__":
    main()
