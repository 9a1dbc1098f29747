# SPDX-License-Identifier: Apache-2.0
"""The benchmark's text: a table for each mode, and the models."""

from model import RANKS, points_of, predict
from records import medians, size_text

NAME, CELL = 28, 9  # widths
TITLES = {
    "graph": "graph: us per all-reduce, medians, slowest rank",
    "eager": "eager: us per all-reduce, medians, slowest rank",
    "host": "host: us that an eager call takes the calling thread, medians, slowest rank",
    "decode": "decode: us that an all-reduce adds between user kernels in a graph, medians, slowest rank",
}


def cell(value, width, digits=2):
    return f"{'-' if value is None else f'{value:.{digits}f}':>{width}}"


def ratio(over, under):
    return over / under if over is not None and under is not None and under > 0 else None


def mode_table(records, mode):
    """A row a peer, a column a size; how many times NCCL's as found, and NCCL's best of any setting, are Lamprey's."""
    rows, peers = medians(records, mode)
    lines = []
    for ranks in sorted({ranks for _, ranks in rows}):
        sizes = [nbytes for nbytes, n in rows if n == ranks]
        columns = [rows[nbytes, ranks] for nbytes in sizes]
        lines += ["", f"{TITLES[mode]}, {ranks} ranks"]
        lines.append(f"{'':<{NAME}}" + "".join(f"{size_text(nbytes):>{CELL}}" for nbytes in sizes))
        for peer in peers:
            lines.append(f"{peer:<{NAME}}" + "".join(cell(column.get(peer), CELL) for column in columns))
        if "lamprey" in peers and "nccl" in peers:
            found = [ratio(column.get("nccl"), column.get("lamprey")) for column in columns]
            best = [ratio(best_of_nccl(column), column.get("lamprey")) for column in columns]
            lines.append(f"{'nccl / lamprey':<{NAME}}" + "".join(cell(value, CELL) for value in found))
            lines.append(f"{'best nccl / lamprey':<{NAME}}" + "".join(cell(value, CELL) for value in best))
    return lines


def best_of_nccl(column):
    return min((us for peer, us in column.items() if peer.startswith("nccl")), default=None)


def launch_lines(records):
    rows, peers = medians(records, "launch")
    figures = [row[peer] for row in rows.values() for peer in peers if peer in row]
    if not figures:
        return []
    return ["", f"launch: {min(figures):.2f} to {max(figures):.2f} us for a graph's node that writes 4 bytes"]


def model_table(records, model):
    bandwidth = f"{model.gb_per_s:.3g} GB/s" if model.gb_per_s else "no limit seen"
    lines = [
        "",
        f"MODEL of {model.peer}, in a graph, us. Only the measured columns were measured.",
        f"  {model.launch_us:.2f} us launch + {model.latency_us:.2f} us latency + bytes x (n - 1) / {bandwidth};"
        f" fitted to {model.points} points, {100 * model.worst_error:.0f} % off at worst",
        "  not in it: that a rank also reads n inputs, and what crosses from one switch to another",
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


def everything(title, records, peers, models):
    lines = ["", title] + peer_lines(peers) + launch_lines(records)
    for mode in TITLES:
        lines += mode_table(records, mode)
    for model in models:
        lines += model_table(records, model)
    return "\n".join(lines) + "\n"
