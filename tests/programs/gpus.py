# SPDX-License-Identifier: Apache-2.0
"""Which GPU a rank takes: one each. With PROGRAM_SHARE_GPU=1 on a machine with one GPU two ranks share it, each a host
of its own to NCCL, which refuses two ranks on a GPU."""

import os
import sys


def shared():
    return os.environ.get("PROGRAM_SHARE_GPU") == "1"


def need(ranks, found):
    """Skips the program where ranks can't have a GPU each of those found."""
    if found < ranks and not (shared() and found == 1 and ranks == 2):
        print(f"skipped: needs {ranks} GPUs, there are {found}", file=sys.stderr)
        sys.exit(77)


def take(rank, found):
    """The device of a rank, whose process hasn't called NCCL yet."""
    if shared():
        os.environ["NCCL_HOSTID"] = f"rank-{rank}"
    return rank % found
