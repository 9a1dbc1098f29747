# SPDX-License-Identifier: Apache-2.0
"""The benchmark's records, and what became of each peer."""

import collections
import csv
import json

COLUMNS = (
    "peer mode bytes type op ranks processes registered calls group rounds median_us p1_us p99_us user_us wrong served nccl"
).split()
Peer = collections.namedtuple("Peer", "name state seconds note")


def read_records(path):
    """A peer that was stopped may have left half a line."""
    records = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and {"peer", "mode", "bytes", "ranks", "median_us"} <= record.keys():
                records.append(record)
    return records


def read_peers(path):
    with open(path, encoding="utf-8") as lines:
        return [Peer(*line.rstrip("\n").split("\t")) for line in lines]


def write_csv(path, records):
    with open(path, "w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(records)


def family(peer):
    """Baselines first."""
    families = ("nccl", "torch", "flashinfer", "lamprey")
    return next((i for i, name in enumerate(families) if peer.startswith(name)), len(families))


def medians(records, mode):
    """{(bytes, ranks): {peer: us}}, and the peers."""
    rows, peers = {}, []
    for record in records:
        if record["mode"] == mode:
            rows.setdefault((record["bytes"], record["ranks"]), {})[record["peer"]] = record["median_us"]
            if record["peer"] not in peers:
                peers.append(record["peer"])
    return dict(sorted(rows.items())), sorted(peers, key=family)


def size_text(nbytes):
    for unit, shift in (("Mi", 20), ("Ki", 10)):
        if nbytes >= 1 << shift and nbytes % (1 << shift) == 0:
            return f"{nbytes >> shift} {unit}"
    return str(nbytes)
