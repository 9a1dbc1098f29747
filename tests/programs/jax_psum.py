#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An unmodified JAX program: psum over all GPUs of one process. Prints: check psum <type> <bytes> <wrong>."""

import sys

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
except ImportError as error:
    print(f"skipped: {error}", file=sys.stderr)
    sys.exit(77)


def main():
    try:
        devices = jax.devices("gpu")
    except RuntimeError as error:
        print(f"skipped: {error}", file=sys.stderr)
        sys.exit(77)
    if len(devices) < 2:
        print(f"skipped: needs 2 GPUs, there are {len(devices)}", file=sys.stderr)
        sys.exit(77)
    mesh = Mesh(np.array(devices), ("x",))
    shard_map = getattr(jax, "shard_map", None)
    if shard_map is None:
        from jax.experimental.shard_map import shard_map
    spec = PartitionSpec("x")

    def body(block):
        # Two dependent sums, so that one program holds several collectives.
        once = jax.lax.psum(block, "x")
        return jax.lax.psum(once + block, "x")

    step = jax.jit(shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec))
    failed = False
    rng = np.random.default_rng(1)
    for dtype in (jnp.bfloat16, jnp.float32):
        for count in (64, 4096, 32768, 262144):
            # Small whole numbers: every sum is exact, in any order and type.
            host = rng.integers(-8, 8, size=(len(devices), count)).astype(np.float32)
            data = jax.device_put(jnp.asarray(host, dtype=dtype), NamedSharding(mesh, spec))
            total = host.sum(axis=0)
            want = np.broadcast_to(total + len(devices) * total, host.shape)
            wrong = 0
            for _ in range(10):
                wrong += int((np.asarray(step(data), dtype=np.float32) != want).sum())
            failed |= wrong != 0
            print("check", "psum", jnp.dtype(dtype).name, count * jnp.dtype(dtype).itemsize, wrong, sep="\t", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
