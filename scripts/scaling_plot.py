#!/usr/bin/env python
"""The picture of a scaling study, from the lines that ``scripts/scaling_point.py`` wrote.

::

    python scripts/scaling_plot.py DIR                  # reads DIR/*.csv, writes into DIR
    python scripts/scaling_plot.py a.csv b.csv --out figures

Writes figure.png and figure.svg: for every kind of scaling in the files, samples per second over
the number of ranks with the ideal line, and efficiency. Prints the table of it, and writes it to
table.md. Medians over the repetitions are shown, bars from the least to the largest.

Efficiency is the samples per second of one rank, over those of one rank of no-communication at
the smallest size: what n ranks get done of what n such ranks could do that never speak. Without
no-communication in the files it is against the algorithm's own smallest size.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from pages import markdown

mpl.rcParams["svg.fonttype"] = "none"  # text stays text
mpl.rcParams["svg.hashsalt"] = "scaling"  # the same figures, the same file

ALONE = "no-communication"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
MARKERS = "osD^vPX"
ADDED = {"device": "cpu", "staging": "", "amp": "off"}  # which older files do not have
SETTING = ("compute", "compute_s", "parameters", "slow", "jitter", "topology", "model", "data",
           *ADDED)  # fmt: skip
"""What must be the same at all sizes of a study, but for compute_s where scaling is strong."""

Line = dict[str, str]


@dataclass(frozen=True)
class Point:
    """An algorithm at one size, over its repetitions."""

    algorithm: str
    ranks: int
    nodes: int
    rates: tuple[float, ...]  # samples per second
    step_s: float
    staleness: str
    efficiency: float = 0.0

    @property
    def rate(self) -> float:
        """Median samples per second."""
        return statistics.median(self.rates)


def read(paths: Iterable[Path]) -> list[Line]:
    """Return the lines of CSV files, and of those in folders.

    Raises
    ------
    SystemExit
        If there are none, or they are not of scaling_point.py.
    """
    files = [f for p in paths for f in (sorted(p.glob("*.csv")) if p.is_dir() else [p])]
    lines: list[Line] = []
    for file in files:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.DictReader(opened)
            missing = {"scaling", "algorithm", "ranks", "samples_per_s", *SETTING} - set(
                (*ADDED, *(reader.fieldnames or ()))
            )
            if missing:
                raise SystemExit(
                    f"{file}: no columns {', '.join(sorted(missing))}: give files of "
                    "scripts/scaling_point.py"
                )
            lines += (ADDED | line for line in reader)
    if not lines:
        raise SystemExit(f"no lines in {', '.join(map(str, files)) or 'no file at all'}")
    return lines


def studies(lines: Sequence[Line]) -> dict[str, list[Point]]:
    """Return scaling -> its points, by algorithm in the files' order, then by ranks.

    Raises
    ------
    SystemExit
        If lines of one kind of scaling are of different studies.
    """
    found: dict[str, list[Point]] = {}
    for scaling in dict.fromkeys(line["scaling"] for line in lines):
        mine = [line for line in lines if line["scaling"] == scaling]
        for column in SETTING:
            if column == "compute_s" and scaling == "strong":
                continue
            values = {line[column] for line in mine}
            if len(values) > 1:
                raise SystemExit(
                    f"lines of {scaling} scaling differ in {column} ({', '.join(sorted(values))}): "
                    "draw one study at a time"
                )
        found[scaling] = _points(mine)
    return found


def _points(lines: Sequence[Line]) -> list[Point]:
    groups: dict[str, dict[int, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        groups[line["algorithm"]][int(line["ranks"])].append(line)
    points = [
        Point(
            algorithm,
            ranks,
            int(group[0]["nodes"]),
            tuple(float(line["samples_per_s"]) for line in group),
            statistics.median(float(line["step_s"]) for line in group),
            group[-1]["staleness"],
        )
        for algorithm, sizes in groups.items()
        for ranks, group in sorted(sizes.items())
    ]
    return [_with_efficiency(p, reference(points, p.algorithm)) for p in points]


def reference(points: Sequence[Point], algorithm: str) -> float:
    """Return the samples per second of one rank that make an efficiency of 1."""
    silent = [p for p in points if p.algorithm == ALONE]
    first = (silent or [p for p in points if p.algorithm == algorithm])[0]
    return first.rate / first.ranks


def _with_efficiency(point: Point, one: float) -> Point:
    return Point(**{**vars(point), "efficiency": point.rate / point.ranks / one})


def table(points: Sequence[Point]) -> str:
    """Return the points as Markdown."""
    head = ("algorithm", "ranks", "nodes", "samples/s", "step (ms)", "efficiency", "staleness")
    return markdown(
        head,
        (
            (
                p.algorithm, str(p.ranks), str(p.nodes), f"{p.rate:.4g}", f"{1e3 * p.step_s:.1f}",
                f"{100 * p.efficiency:.1f} %", p.staleness or "-",
            )
            for p in points
        ),
    )  # fmt: skip


def caption(lines: Sequence[Line]) -> str:
    """Return what was measured, where and when."""
    line = lines[0]
    if line["compute"] == "sleep":
        what = f"Compute is a sleep of {1e3 * float(line['compute_s']):g} ms"
        if line["scaling"] == "strong":
            what += f" at {line['ranks']} ranks, less in proportion at more"
        what += f", {float(line['parameters']):g} float32"
    else:
        what = f"{line['model']} on {line['data']}, {int(line['parameters']):,} parameters"
    slow = f"; slow ranks {line['slow']}" if line["slow"] else ""
    jitter = f"; jitter {line['jitter']}" if float(line["jitter"] or 0) else ""
    if line["device"] != "cpu":
        what += f", vectors on {line['device']}"
    repeats = len({each["repeat"] for each in lines})
    return (
        f"{what}{slow}{jitter}; graph {line['topology']}; medians of {repeats}, bars from the "
        f"least to the largest. {line['mpi']}, {line['machine']}, {line['date'][:10]}. Dashed: "
        "ideal, n times the first size's rank."
    )


def draw(found: dict[str, list[Point]], lines: Sequence[Line], folder: Path) -> None:
    """Write figure.png and figure.svg."""
    figure = Figure(figsize=(10, 3.6 * len(found) + 0.9), layout="constrained")
    rows = figure.subplots(len(found), 2, squeeze=False)
    for (scaling, points), (left, right) in zip(found.items(), rows, strict=True):
        sizes = sorted({p.ranks for p in points})
        for i, algorithm in enumerate(dict.fromkeys(p.algorithm for p in points)):
            mine = [p for p in points if p.algorithm == algorithm]
            ranks = [p.ranks for p in mine]
            look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
                    "markersize": 4, "label": algorithm}  # fmt: skip
            bars = [[p.rate - min(p.rates) for p in mine], [max(p.rates) - p.rate for p in mine]]
            left.errorbar(ranks, [p.rate for p in mine], bars, capsize=2, **look)
            right.plot(ranks, [100 * p.efficiency for p in mine], **look)
        one = reference(points, points[0].algorithm)
        left.plot(sizes, [one * n for n in sizes], "k--", linewidth=0.8, label="ideal")
        right.axhline(100, color="k", linestyle="--", linewidth=0.8)
        left.set(ylabel="samples per second (1/s)", yscale="log", title=f"{scaling} scaling")
        right.set(ylabel="efficiency (%)", title=f"{scaling} scaling: efficiency")
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(n) for n in sizes])
            axes.set_xticks([], minor=True)
            axes.set_xlabel("ranks")
            axes.grid(alpha=0.3)
        left.legend(fontsize=8)
    texts = [
        f"{scaling}: {caption([line for line in lines if line['scaling'] == scaling])}"
        for scaling in found
    ]
    figure.supxlabel("\n".join(textwrap.fill(t, 150) for t in texts), fontsize=7)
    for name in ("figure.png", "figure.svg"):
        dated = {"metadata": {"Date": None}} if name.endswith("svg") else {"dpi": 150}
        figure.savefig(folder / name, **dated)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("csv", nargs="+", type=Path, help="files, or folders of them")
    parser.add_argument("--out", type=Path, help="folder for what is written")
    options = parser.parse_args()
    first: Path = options.csv[0]
    folder: Path = options.out or (first if first.is_dir() else first.parent)
    lines = read(options.csv)
    found = studies(lines)
    text = "\n".join(f"{scaling} scaling\n\n{table(points)}" for scaling, points in found.items())
    sys.stdout.write(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text, encoding="utf-8")
    draw(found, lines, folder)
    print(f"\n{folder / 'figure.png'} and .svg")


if __name__ == "__main__":
    main()
