"""The bar chart of bench_kernels.py: each operation's fraction of its ceiling, and the goals.

::

    python scripts/kernel_chart.py kernels.json docs/kernels.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = {"read": "#4477aa", "memcpy": "#66aa77"}

mpl.rcParams["svg.fonttype"] = "none"  # text stays text: a tenth of the size
mpl.rcParams["svg.hashsalt"] = "kernels"  # the same figures, the same file


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the rows of a report of bench_kernels.py to `path`, in the format of its suffix."""
    rows = report["rows"][::-1]
    figure = Figure(figsize=(8, 0.3 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    for ceiling, colour in COLOURS.items():
        places = [i for i, row in enumerate(rows) if row["ceiling"] == ceiling]
        fractions = [rows[i]["fractions"][ceiling] for i in places]
        rate = report["ceilings_gb_s"][ceiling]
        axes.barh(places, fractions, color=colour, label=f"of {ceiling}, {rate:.1f} GB/s")
    goals = [
        (i, goal["goal"])
        for i, row in enumerate(rows)
        for goal in row["goals"]
        if goal["of"] == row["ceiling"]
    ]
    axes.plot([g for _, g in goals], [i for i, _ in goals], "k|", markersize=14, label="goal")
    for i, row in enumerate(rows):
        label = f" {row['gb_s']:.1f} GB/s"
        axes.text(row["fractions"][row["ceiling"]], i, label, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xlabel("bytes per second, as a fraction of the ceiling's (1)")
    axes.set_title(f"{report['n']:,} float32, one thread, {report['instruction_set']}", fontsize=10)
    axes.axvline(1, color="0.6", linewidth=0.8, zorder=0)
    axes.margins(x=0.12)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
