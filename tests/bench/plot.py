# SPDX-License-Identifier: Apache-2.0
"""The benchmark's figures as SVG: one panel a mode, logarithmic axes, one line a peer."""

import math
from xml.sax.saxutils import escape

from records import size_text

MODES = ("graph", "eager", "host", "decode")
COLOURS = (
    "#0072b2 #d55e00 #009e73 #cc79a7 #56b4e9 #e69f00 #000000 #8c564b #7f7f7f #9467bd #17becf #bcbd22".split()
)
DASHES = ("", "6 3", "2 2")
WIDTH, HEIGHT, LEFT, TOP, GAP, LINE = 380, 300, 60, 50, 70, 16


class Axis:
    """Positions of values on a logarithmic axis from low to high."""

    def __init__(self, low, high, start, length):
        self.low, self.high = low, max(high, low * 2)
        self.start, self.length = start, length

    def at(self, value):
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * self.length


def text(x, y, content, anchor="middle", size=11):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(content)}</text>'


def line(x1, y1, x2, y2, colour, extra=""):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{extra}/>'


def time_ticks(low, high):
    ticks = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def style(index):
    dash = DASHES[index // len(COLOURS) % len(DASHES)]
    colour = COLOURS[index % len(COLOURS)]
    return f'stroke="{colour}" stroke-width="1.8" fill="none"' + (f' stroke-dasharray="{dash}"' if dash else "")


def panel(mode, series, peers, left):
    """series: {peer: [(bytes, us), ...]}, all positive."""
    points = [point for values in series.values() for point in values]
    sizes = sorted({nbytes for nbytes, _ in points})
    times = [us for _, us in points]
    x = Axis(sizes[0], sizes[-1], left, WIDTH)
    y = Axis(min(times) / 1.2, max(times) * 1.2, TOP + HEIGHT, -HEIGHT)
    out = [text(left + WIDTH / 2, TOP - 12, f"{mode}: us per all-reduce", size=13)]
    for i, nbytes in enumerate(sizes):
        out.append(line(x.at(nbytes), TOP, x.at(nbytes), TOP + HEIGHT, "#e5e5e5"))
        if i % 2 == 0 or len(sizes) <= 9:
            out.append(text(x.at(nbytes), TOP + HEIGHT + 16, size_text(nbytes).replace(" ", ""), size=9))
    for tick in time_ticks(y.low, y.high):
        out.append(line(left, y.at(tick), left + WIDTH, y.at(tick), "#e5e5e5"))
        out.append(text(left - 6, y.at(tick) + 4, f"{tick:g}", "end"))
    out.append(f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#444"/>')
    out.append(text(left + WIDTH / 2, TOP + HEIGHT + 34, "bytes"))
    for peer, values in series.items():
        track = " ".join(f"{x.at(nbytes):.1f},{y.at(us):.1f}" for nbytes, us in sorted(values))
        out.append(f'<polyline points="{track}" {style(peers.index(peer))}><title>{escape(peer)}</title></polyline>')
    return out


def series_of(records, mode, ranks):
    """A difference of two times may come out at nothing, which has no place on a logarithmic axis."""
    series = {}
    for record in records:
        if record["mode"] == mode and record["ranks"] == ranks and record["median_us"] > 0:
            series.setdefault(record["peer"], []).append((record["bytes"], record["median_us"]))
    return series


def svg(records, title):
    """None if there is nothing to draw. Of several numbers of ranks, the largest."""
    ranks = max((record["ranks"] for record in records), default=0)
    panels = [(mode, series_of(records, mode, ranks)) for mode in MODES]
    panels = [(mode, series) for mode, series in panels if series]
    if not panels:
        return None
    peers = list(dict.fromkeys(peer for _, series in panels for peer in series))
    legend = TOP + HEIGHT + 60
    width = LEFT + len(panels) * (WIDTH + GAP)
    columns = max(1, width // 220)
    height = legend + LINE * (-(-len(peers) // columns) + 1)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(LEFT, 18, f"{title}, {ranks} ranks: medians, slowest rank", "start", 14),
    ]
    for i, (mode, series) in enumerate(panels):
        out += panel(mode, series, peers, LEFT + i * (WIDTH + GAP))
    for i, peer in enumerate(peers):
        x, y = LEFT + 220 * (i % columns), legend + LINE * (i // columns)
        out.append(f'<path d="M{x} {y - 4}h24" {style(i)}/>')
        out.append(text(x + 30, y, peer, "start"))
    return "\n".join(out + ["</svg>", ""])
