"""What runs with one slow worker or link come to: throughput, its law, tables and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mpimomentum.reports import drawing
from mpimomentum.studies.study import Mean, Results, Table

EVEN, WORKER, LINK = "none", "worker", "link"
"""What is slow."""

TICKS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Slowed:
    """Runs of several methods, each with and without a straggler.

    Parameters
    ----------
    results : Results
        Cases with `method`, `slow` (EVEN, WORKER or LINK), `by`; figures `samples_per_s` and
        `reached_s`, and `even` where the throughput without a straggler was measured beside it.
    workers : int
    waiting : sequence of str
        Methods whose workers wait for each other.
    """

    results: Results
    workers: int
    waiting: Sequence[str]

    def by(self, slow: str) -> list[float]:
        """Return how many times slower the straggler was, 1 first."""
        found = {case["by"] for case, _ in self.results.where(slow=slow).found}
        return [1, *sorted(found)]

    def at(self, method: str, slow: str, by: float, what: str) -> Mean:
        """Return a figure; without a straggler where it is once as slow."""
        return self._where(method, slow, by).mean(what)

    def kept(self, method: str, slow: str, by: float) -> Mean:
        """Return the throughput over the same method's without a straggler."""
        even = self.at(method, EVEN, 1, "samples_per_s").mean
        found = self._where(method, slow, by).found
        return Mean.of(f["samples_per_s"] / (f.get("even", even) or math.nan) for _, f in found)

    def law(self, method: str, by: float) -> float:
        """Return the throughput that is kept where messages cost nothing (law L9)."""
        n = self.workers
        return 1 / by if method in self.waiting else (n - 1 + 1 / by) / n

    def to_law(self, methods: Sequence[str]) -> list[float]:
        """Return the throughput kept with one slow worker over the law's, of all cases."""
        return [
            self.kept(method, WORKER, by).mean / self.law(method, by)
            for method in methods
            for by in self.by(WORKER)
        ]

    def _where(self, method: str, slow: str, by: float) -> Results:
        return self.results.where(method=method, slow=EVEN if by == 1 else slow, by=by)


def epochs(runs: Slowed, methods: Sequence[str], samples: int, alone_per_s: float) -> Table:
    """Return seconds an epoch and speed-up, with one slow worker; the AD-PSGD paper's table.

    Parameters
    ----------
    runs : Slowed
    methods : sequence of str
    samples : int
        In an epoch.
    alone_per_s : float
        Samples that one worker alone does a second.
    """
    columns = ["slower"]
    rows: list[list[str | float | Mean]] = [[f"{by:g}×"] for by in runs.by(WORKER)]
    for method in methods:
        columns += [f"{method}: epoch (s)", "speed-up"]
        for row, by in zip(rows, runs.by(WORKER), strict=True):
            rate = runs.at(method, WORKER, by, "samples_per_s").mean
            row += [samples / rate, rate / alone_per_s]
    title = f"as in the paper: one of {runs.workers} workers slower; speed-up over one alone"
    return Table(title, columns, rows)


def table(runs: Slowed, slow: str, methods: Sequence[str], what: str, words: str) -> Table:
    """Return the figure `what`, `words` in words, of all methods."""

    def shown(mean: Mean) -> Mean | int:
        return round(mean.mean) if mean.mean > 100 and mean.sd < 0.01 * mean.mean else mean

    rows: list[tuple[str | float | Mean, ...]] = [
        (f"{by:g}×", *(shown(runs.at(method, slow, by, what)) for method in methods))
        for by in runs.by(slow)
    ]
    return Table(f"one {slow} slower: {words}", ("slower", *methods), rows)


def beside(ranks: Slowed, virtual: Slowed, methods: Sequence[str], target: str) -> Table:
    """Return what ranks do beside as many virtual workers and the law."""
    rows = [
        (
            f"{by:g}×",
            method,
            ranks.at(method, WORKER, by, "samples_per_s"),
            100 * ranks.kept(method, WORKER, by).mean,
            100 * virtual.kept(method, WORKER, by).mean,
            100 * ranks.law(method, by),
            ranks.at(method, WORKER, by, "reached_s"),
            virtual.at(method, WORKER, by, "reached_s"),
        )
        for by in ranks.by(WORKER)
        for method in methods
    ]
    columns = ("slower", "method", "samples/s", "kept (%)", "virtual (%)", "law (%)",
               f"s to {target}", "virtual (s)")  # fmt: skip
    title = f"{ranks.workers} real ranks beside {virtual.workers} virtual workers"
    return Table(title, columns, rows)


def draw(panels: Mapping[str, tuple[Slowed, str]], methods: Sequence[str], target: str) -> Figure:
    """Return a figure: above the throughput that is kept, below the time to `target`.

    Parameters
    ----------
    panels : mapping
        Title -> runs, and what is slow in them.
    methods : sequence of str
    target : str
    """
    figure = Figure(figsize=(3.2 * len(panels) + 1.6, 6.0), layout="constrained")
    top, bottom = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False)
    for column, (title, (runs, slow)) in enumerate(panels.items()):
        above, below = top[column], bottom[column]
        by = runs.by(slow)
        for i, method in enumerate(methods):
            kept = [runs.kept(method, slow, s) for s in by]
            times = [runs.at(method, slow, s, "reached_s") for s in by]
            _curve(above, i, method, by, [Mean(100 * m.mean, 100 * m.sd, m.count) for m in kept])
            _curve(below, i, method, by, times)
            if slow == WORKER:
                law = [100 * runs.law(method, s) for s in by]
                above.plot(by, law, ":", color="black", linewidth=1, zorder=3)
        above.set_title(title)
        below.set_xlabel("times slower")
        drawing.log_axis(below, 3, "x")
        below.xaxis.set_ticks(TICKS, [str(t) for t in TICKS])
        below.xaxis.set_minor_locator(NullLocator())
    drawing.log_axis(top[0], 3)
    drawing.log_axis(bottom[0], 3)
    top[0].set_ylabel("throughput kept (%)")
    bottom[0].set_ylabel(f"time to {target} (s)")
    figure.legend(
        *top[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    return figure


def _curve(axes: Axes, index: int, name: str, x: Sequence[float], means: Sequence[Mean]) -> None:
    shown = [(at, m) for at, m in zip(x, means, strict=True) if math.isfinite(m.mean)]
    style: dict[str, Any] = drawing.style_of(index)
    axes.errorbar(
        [at * 1.03 ** (index - 2) for at, _ in shown],  # side by side
        [m.mean for _, m in shown],
        yerr=[m.sd for _, m in shown],
        **style,
        marker="osD^v"[index],
        markersize=4,
        capsize=2,
        label=name,
    )
