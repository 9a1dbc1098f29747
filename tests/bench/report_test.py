#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The benchmark's report on made-up records whose model is known. Run by report_test.sh."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

import model
import plot
import records
import tables

HERE = pathlib.Path(__file__).resolve().parent
SVG = "{http://www.w3.org/2000/svg}"
SIZES = [256 << (2 * i) for i in range(7)]


def record(peer, mode, nbytes, us, **more):
    made = dict(peer=peer, mode=mode, bytes=nbytes, type="bfloat16", op="sum", ranks=2, processes=True, registered=False)
    made.update(calls=200, rounds=100, median_us=us, p1_us=us * 0.9, p99_us=us * 1.1, wrong=0, served=None, nccl=22809)
    made.update(more)
    return made


def law(nbytes, ranks):
    """0.9 us launch, 0.8 us latency, 300 GB/s."""
    return 0.9 + 0.8 + nbytes * (ranks - 1) / 300e3


def sample():
    made = [record("nccl", "launch", 4, 0.9), record("lamprey", "launch", 4, 0.9, served=None)]
    for mode, factor in (("graph", 1), ("eager", 2), ("decode", 0.5)):
        for nbytes in SIZES:
            made.append(record("nccl", mode, nbytes, 4 * law(nbytes, 2) * factor))
            made.append(record("nccl-no-mixing", mode, nbytes, 3 * law(nbytes, 2) * factor))
            made.append(record("lamprey", mode, nbytes, law(nbytes, 2) * factor, served=True))
    # Larger than the limit: NCCL's figures under Lamprey's name.
    made.append(record("lamprey", "graph", 16 << 20, 1000.0, served=False))
    return made


class Folder(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.write(sample())

    def write(self, made, rest=""):
        (self.folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made) + rest)
        (self.folder / "peers.tsv").write_text("nccl\tdone\t9\t\nflashinfer-one-shot\tskipped\t1\tnot installed: torch\n")
        (self.folder / "machine.txt").write_text("name, driver\nNVIDIA H200, 580\nNVIDIA H200, 580\n")

    def report(self):
        command = [sys.executable, "-B", str(HERE / "report.py"), str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)


class Report(Folder):
    def test_writes_all_files(self):
        done = self.report()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, (self.folder / "tables.txt").read_text())
        with open(self.folder / "results.csv", newline="") as table:
            rows = list(csv.DictReader(table))
        self.assertEqual(len(rows), len(sample()))
        self.assertEqual([row["peer"] for row in rows[:2]], ["nccl", "lamprey"])
        self.assertEqual(float(rows[2]["p99_us"]), sample()[2]["p99_us"])
        results = json.loads((self.folder / "results.json").read_text())
        self.assertEqual(results["records"], sample())
        self.assertEqual([fitted["peer"] for fitted in results["models"]], ["lamprey"])
        self.assertIn("not installed: torch", results["peers"][1]["note"])
        self.assertTrue(any("NVIDIA H200" in line for line in results["machine"]))
        self.assertTrue(results["method"][0].startswith("method:"))

    def test_prints_tables_and_the_model(self):
        text = self.report().stdout
        lines = text.splitlines()
        start = lines.index("graph: us per all-reduce, medians, slowest rank, 2 ranks")
        table = [(line[:28].strip(), line[28:].split()) for line in lines[start + 1 : start + 7]]
        self.assertEqual(table[0][1][:6], ["256", "1", "Ki", "4", "Ki", "16"])
        self.assertEqual([name for name, _ in table[1:4]], ["nccl", "nccl-no-mixing", "lamprey"])
        self.assertEqual([values[0] for _, values in table[1:4]], ["6.80", "5.10", "1.70"])
        self.assertEqual(table[4], ("nccl / lamprey", ["4.00"] * len(SIZES) + ["-"]))
        self.assertEqual(table[5], ("best nccl / lamprey", ["3.00"] * len(SIZES) + ["-"]))
        self.assertRegex(text, r"MODEL of lamprey.*\n +0\.90 us launch \+ 0\.80 us latency \+ .* / 300 GB/s")
        heads = next(line for line in text.splitlines() if "measured n=2" in line)
        for ranks in (2, 4, 8, 16, 36, 72):
            self.assertIn(f"model n={ranks}", heads)
        self.assertIn("flashinfer-one-shot", text)

    def test_takes_a_stopped_peers_half_line(self):
        self.write(sample(), '{"peer": "nccl", "mode": "gra')
        self.assertEqual(self.report().returncode, 0)
        self.assertEqual(len(records.read_records(self.folder / "records.jsonl")), len(sample()))

    def test_fails_without_figures(self):
        self.write([])
        done = self.report()
        self.assertEqual(done.returncode, 1)
        self.assertIn("no peer measured anything", done.stderr)
        self.assertIn("not installed: torch", done.stdout)
        self.assertFalse((self.folder / "tables.txt").exists())


class Model(unittest.TestCase):
    def test_finds_the_law_of_several_numbers_of_ranks(self):
        made = [record("lamprey", "launch", 4, 0.9)]
        made += [record("lamprey", "graph", size, law(size, n), ranks=n) for n in (2, 4, 8) for size in SIZES]
        fitted = model.fit(made, "lamprey")
        self.assertAlmostEqual(fitted.launch_us, 0.9, places=6)
        self.assertAlmostEqual(fitted.latency_us, 0.8, places=6)
        self.assertAlmostEqual(fitted.gb_per_s, 300, places=3)
        self.assertAlmostEqual(model.predict(fitted, 8192, 72), law(8192, 72), places=6)
        self.assertLess(fitted.worst_error, 1e-6)

    def test_leaves_out_what_nccl_served(self):
        fitted = model.fit(sample(), "lamprey")
        self.assertEqual(fitted.points, len(SIZES))
        self.assertAlmostEqual(fitted.gb_per_s, 300, places=3)

    def test_tells_how_far_it_is_off(self):
        made = [record("lamprey", "graph", size, law(size, 2) * (1.5 if size == 4096 else 1)) for size in SIZES]
        self.assertGreater(model.fit(made, "lamprey").worst_error, 0.1)

    def test_never_fits_what_cannot_be(self):
        falling = [record("lamprey", "graph", size, 10 - i) for i, size in enumerate(SIZES)]
        fitted = model.fit(falling, "lamprey")
        self.assertIsNone(fitted.gb_per_s)
        self.assertGreater(model.predict(fitted, 256, 2), 0)
        steep = [record("lamprey", "graph", size, size / 1e3) for size in SIZES]
        fitted = model.fit(steep, "lamprey")
        self.assertGreaterEqual(fitted.latency_us, 0)
        self.assertGreaterEqual(fitted.launch_us, 0)

    def test_needs_three_sizes_and_a_one_shot_peer(self):
        self.assertIsNone(model.fit([record("lamprey", "graph", size, 2.0) for size in SIZES[:2]], "lamprey"))
        self.assertEqual([fitted.peer for fitted in model.fit_all(sample())], ["lamprey"])


class Plot(unittest.TestCase):
    def lines(self, made):
        root = xml.etree.ElementTree.fromstring(plot.svg(made, "2 x <H200> & more"))
        tracks = {}
        for polyline in root.iter(f"{SVG}polyline"):
            points = [tuple(map(float, pair.split(","))) for pair in polyline.get("points").split()]
            tracks.setdefault(polyline.find(f"{SVG}title").text, []).append(points)
        return root, tracks

    def test_draws_a_line_a_peer_in_every_panel(self):
        root, tracks = self.lines(sample())
        self.assertEqual(set(tracks), {"nccl", "nccl-no-mixing", "lamprey"})
        self.assertEqual([len(track) for track in tracks["nccl"]], [len(SIZES)] * 3)
        self.assertEqual(len(tracks["lamprey"][0]), len(SIZES) + 1)
        words = [element.text for element in root.iter(f"{SVG}text")]
        self.assertIn("lamprey", words)
        self.assertTrue(any("<H200> & more" in word for word in words))

    def test_axes_are_logarithmic(self):
        made = [record("nccl", "graph", 256 * 4**i, 2.0 * 10**i) for i in range(4)]
        (track,) = self.lines(made)[1]["nccl"]
        steps = {(round(b[0] - a[0]), round(a[1] - b[1])) for a, b in zip(track, track[1:])}
        self.assertEqual(len(steps), 1)
        self.assertGreater(min(next(iter(steps))), 0)

    def test_leaves_out_what_no_logarithm_has(self):
        made = [record("nccl", "decode", 256, -0.1), record("nccl", "decode", 512, 1.0), record("nccl", "decode", 1024, 2)]
        self.assertEqual([len(track) for track in self.lines(made)[1]["nccl"]], [2])
        self.assertIsNone(plot.svg([record("nccl", "decode", 256, -0.1)], "nothing"))


class Tables(unittest.TestCase):
    def test_a_missing_figure_is_a_dash(self):
        made = [record("nccl", "graph", 256, 6.0), record("nccl", "graph", 512, 6.0), record("lamprey", "graph", 256, 2.0)]
        lines = tables.mode_table(made, "graph")
        self.assertEqual(lines[-4].split(), ["nccl", "6.00", "6.00"])
        self.assertEqual(lines[-3].split(), ["lamprey", "2.00", "-"])
        self.assertEqual(lines[-2].split(), ["nccl", "/", "lamprey", "3.00", "-"])

    def test_ranks_have_tables_of_their_own(self):
        made = [record("nccl", "eager", 256, 6.0), record("nccl", "eager", 256, 9.0, ranks=8)]
        lines = tables.mode_table(made, "eager")
        self.assertEqual([line.split()[-1] for line in lines if line.startswith("nccl")], ["6.00", "9.00"])
        self.assertTrue(lines[-3].endswith(", 8 ranks"))


if __name__ == "__main__":
    unittest.main()
