# SPDX-License-Identifier: Apache-2.0
"""A model of one-shot all-reduces in graphs: launch + latency + bytes x (n - 1) / bandwidth.

Launch is measured: a graph's node that does next to nothing. Latency and bandwidth are fitted. Every rank sends all of
its data to each of the n - 1 others, so what its links carry grows with n, and the rest doesn't, where a switch joins
all GPUs.
"""

import collections

RANKS = (2, 4, 8, 16, 36, 72)
# A peer that isn't one-shot follows another law; NCCL changes its algorithm with the size.
ONE_SHOT = ("lamprey", "torch-one-shot", "flashinfer-one-shot")

Model = collections.namedtuple("Model", "peer launch_us latency_us gb_per_s worst_error points")


def is_one_shot(peer):
    return peer.startswith(ONE_SHOT)


def carried(nbytes, ranks):
    return nbytes * (ranks - 1)


def fit_line(points):
    """Least squares of y = a + b x with a, b >= 0 and relative errors: a latency of 2 us counts as much as 20 us."""
    weights = [1 / (y * y) for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points))
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points)) / spread if spread else 0.0
    slope = max(slope, 0.0)
    constant = mean_y - slope * mean_x
    if constant < 0:
        constant = 0.0
        slope = sum(w * x * y for w, (x, y) in zip(weights, points)) / sum(w * x * x for w, (x, _) in zip(weights, points))
    return constant, slope


def points_of(records, peer):
    """What the peer did itself: a call that Lamprey left to NCCL says nothing about Lamprey."""
    return [
        (record["bytes"], record["ranks"], record["median_us"])
        for record in records
        if record["peer"] == peer and record["mode"] == "graph" and record.get("served") is not False
        if record["median_us"] > 0
    ]


def launch_of(records, peer):
    """The peer's own launch figure, else anybody's."""
    figures = [record for record in records if record["mode"] == "launch" and record["median_us"] > 0]
    own = [record["median_us"] for record in figures if record["peer"] == peer]
    return min(own or [record["median_us"] for record in figures], default=0.0)


def predict(model, nbytes, ranks):
    transfer = carried(nbytes, ranks) / (model.gb_per_s * 1000) if model.gb_per_s else 0.0
    return model.launch_us + model.latency_us + transfer


def fit(records, peer):
    """None where there are fewer than three sizes."""
    points = points_of(records, peer)
    if len({nbytes for nbytes, _, _ in points}) < 3:
        return None
    constant, slope = fit_line([(carried(nbytes, ranks), us) for nbytes, ranks, us in points])
    launch = min(launch_of(records, peer), constant)
    model = Model(peer, launch, constant - launch, 1 / (slope * 1000) if slope else None, 0.0, len(points))
    worst = max(abs(predict(model, nbytes, ranks) / us - 1) for nbytes, ranks, us in points)
    return model._replace(worst_error=worst)


def fit_all(records):
    peers = dict.fromkeys(record["peer"] for record in records)
    return [model for model in (fit(records, peer) for peer in peers if is_one_shot(peer)) if model]
