"""What bench_kernels.py measured, for docs/kernels.md: the bar chart and the table.

::

    python scripts/bench_kernels.py --out kernels.json
    python scripts/kernel_doc.py kernels.json    # writes docs/kernels.svg and into docs/kernels.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

DOCUMENT = Path(__file__).parents[1] / "docs" / "kernels.md"
BEGIN, END = "<!-- begin: scripts/kernel_doc.py -->\n", "<!-- end -->\n"
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
    axes.margins(x=0.12, y=0.01)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def table(report: dict[str, Any]) -> str:
    """Return the figures as Markdown, with where and when they were measured."""
    rate = report["ceilings_gb_s"]
    calls = " and ".join(f"{c['us']:.2f} µs with {c['array']}" for c in report["calls"])
    goals = " and ".join(f"{c['goal']} µs" for c in report["calls"])
    lines = [
        f"{report['date'][:10]}, {report['processor']}, {report['cores']} cores, "
        f"{report['instruction_set']}, one thread, load average {report['load_before']:.1f} to "
        f"{report['load_after']:.1f}; read {rate['read']:.1f} GB/s, "
        f"memcpy {rate['memcpy']:.1f} GB/s.",
        "",
        "| | ms | GB/s | of the ceiling | goal | times faster than, written plainly |",
        "|---|--:|--:|--:|---|---|",
        *(_line(row) for row in report["rows"]),
        "",
        f"A call with 8 elements costs {calls} (`pack`; goals {goals}).",
    ]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    goals = {goal["of"]: goal for goal in row["goals"]}
    faster = ", ".join(
        f"{rival} {times:.1f}" + (_verdict(goals[rival]) if rival in goals else "")
        for rival, times in row["times_faster"].items()
    )
    ceiling = row["ceiling"]
    goal = f"{goals[ceiling]['goal']:g}{_verdict(goals[ceiling])}" if ceiling in goals else ""
    fraction = f"{row['fractions'][ceiling]:.2f} {ceiling}"
    return (
        f"| {row['name']} | {row['ms']:.1f} | {row['gb_s']:.1f} | {fraction} | {goal} | {faster} |"
    )


def _verdict(goal: dict[str, Any]) -> str:
    return " (met)" if goal["met"] else " (**missed**)"


def main() -> None:
    report = json.loads(Path(sys.argv[1]).read_text())
    draw(report, DOCUMENT.with_suffix(".svg"))
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table(report) + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
