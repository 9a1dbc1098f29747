#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a benchmark's records into tables, CSV, JSON and a plot.

report.py FOLDER: reads records.jsonl, peers.tsv and machine.txt there; writes results.csv, results.json, tables.txt and
plot.svg, and prints the tables.
"""

import json
import pathlib
import sys

import model
import plot
import records
import tables

HERE = pathlib.Path(__file__).resolve().parent


def title_of(machine):
    """The GPUs' name, from nvidia-smi's lines."""
    names = [line.split(",")[0] for line in machine if line.startswith("NVIDIA ")]
    return f"{len(names)} x {names[0]}" if names else "a rehearsal in the emulator, whose times mean nothing"


def main(folder):
    folder = pathlib.Path(folder)
    found = records.read_records(folder / "records.jsonl")
    peers = records.read_peers(folder / "peers.tsv")
    machine = (folder / "machine.txt").read_text(encoding="utf-8").splitlines()
    if not found:
        print("report: no peer measured anything", file=sys.stderr)
        for line in tables.peer_lines(peers):
            print(line)
        return 1
    models = model.fit_all(found)
    text = tables.everything(title_of(machine), found, peers, models)
    (folder / "tables.txt").write_text(text, encoding="utf-8")
    records.write_csv(folder / "results.csv", found)
    results = {
        "machine": machine,
        "method": (HERE / "method.txt").read_text(encoding="utf-8").splitlines(),
        "peers": [peer._asdict() for peer in peers],
        "records": found,
        "models": [fitted._asdict() for fitted in models],
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    picture = plot.svg(found, title_of(machine))
    if picture:
        (folder / "plot.svg").write_text(picture, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
