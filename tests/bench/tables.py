# SPDX-License-Identifier: Apache-2.0
"""The benchmark's text: a table for each mode, and the models."""

from model import RANKS, points_of, predict
from records import medians, size_text

TITLES = {
    "graph": "graph: us per all-reduce, medians, slowest rank",
    "eager": "eager: us per all-reduce, medians, slowest rank",
    "decode": "decode: us that an all-reduce adds between user kernels in a graph, medians, slowest rank",
}


def cell(value, width):
    return f"{'-' if value is None else f'{value:.2f}':>{width}}"


def ratio(over, under, width):
    usable = over is not None and under is not None and under > 0
    return f"{f'{over / under:.2f}x' if usable else '-':>{width}}"


def mode_table(records, mode):
    """All peers; how many times NCCL's as found, and NCCL's best of any setting, are Lamprey's."""
    rows, peers = medians(records, mode)
    if not rows:
        return []
    widths = {peer: max(len(peer), 7) + 2 for peer in peers}
    nccl_peers = [peer for peer in peers if peer.startswith("nccl")]
    compare = "lamprey" in peers and "nccl" in peers
    head = f"{'bytes':>8} {'ranks':>5}" + "".join(f"{peer:>{widths[peer]}}" for peer in peers)
    lines = ["", TITLES[mode], head + ("  nccl/lamprey  best nccl/lamprey" if compare else "")]
    for (nbytes, ranks), row in rows.items():
        line = f"{size_text(nbytes):>8} {ranks:>5}" + "".join(cell(row.get(peer), widths[peer]) for peer in peers)
        if compare:
            best = min((row[peer] for peer in nccl_peers if peer in row), default=None)
            line += ratio(row.get("nccl"), row.get("lamprey"), 14) + ratio(best, row.get("lamprey"), 19)
        lines.append(line)
    return lines


def launch_lines(records):
    rows, peers = medians(records, "launch")
    figures = [row[peer] for row in rows.values() for peer in peers if peer in row]
    if not figures:
        return []
    return ["", f"launch: {min(figures):.2f} to {max(figures):.2f} us for a graph's node that writes 4 bytes"]


def model_table(records, model):
    bandwidth = f"{model.gb_per_s:.0f} GB/s" if model.gb_per_s else "no limit seen"
    lines = [
        "",
        f"MODEL of {model.peer}, in a graph, us. Only the measured columns were measured.",
        f"  {model.launch_us:.2f} us launch + {model.latency_us:.2f} us latency + bytes x (n - 1) / {bandwidth};"
        f" fitted to {model.points} points, {100 * model.worst_error:.0f} % off at worst",
    ]
    measured = {(nbytes, ranks): us for nbytes, ranks, us in points_of(records, model.peer)}
    counts = sorted({ranks for _, ranks in measured})
    lines.append(
        f"{'bytes':>8}"
        + "".join(f"{f'measured n={ranks}':>14}" for ranks in counts)
        + "".join(f"{f'model n={ranks}':>12}" for ranks in RANKS)
    )
    for nbytes in sorted({nbytes for nbytes, _ in measured}):
        line = f"{size_text(nbytes):>8}" + "".join(cell(measured.get((nbytes, ranks)), 14) for ranks in counts)
        lines.append(line + "".join(cell(predict(model, nbytes, ranks), 12) for ranks in RANKS))
    return lines


def peer_lines(peers):
    lines = ["", "peers:"]
    for peer in peers:
        lines.append(f"  {peer.name:<28} {peer.state:<9} {peer.seconds:>4} s  {peer.note}".rstrip())
    return lines


def everything(records, peers, models):
    lines = peer_lines(peers) + launch_lines(records)
    for mode in TITLES:
        lines += mode_table(records, mode)
    for model in models:
        lines += model_table(records, model)
    return "\n".join(lines) + "\n"
