"""The figures of a report, as SVG. Needs matplotlib, which takes a second to import."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.ticker import (
    EngFormatter,
    MaxNLocator,
    PercentFormatter,
)

from mpimomentum.measures import Histogram
from mpimomentum.reports import drawing
from mpimomentum.reports.bins import Bins
from mpimomentum.reports.history import History
from mpimomentum.runtime.monitor import PARTS

if TYPE_CHECKING:
    pass

OF_PART = {"compute": "#0072B2", "gossip": "#E69F00", "wait": "#CC79A7", "idle": "#DDDDDD"}
FEW = 8  # lines that can be told apart
TAUS = 40  # bars of a histogram


@dataclass(frozen=True)
class Picture:
    """A figure with what has to be said about it.

    Attributes
    ----------
    title, caption : str
    svg : bytes
    """

    title: str
    caption: str
    svg: bytes


Named = Sequence[tuple[str, History]]


def figures(runs: Named) -> Iterator[Picture]:
    """Draw all for which the runs have data."""
    draws: list[Callable[[Named], Picture | None]] = [
        _loss_over_time,
        _loss_over_steps,
        _staleness,
        _utilisation,
        _consensus,
        _bytes,
    ]
    with mpl.rc_context(drawing.STYLE):
        for draw in draws:
            picture = draw(runs)
            if picture is not None:
                yield picture
        for name in sorted({name for _, history in runs for name in history.further}):
            curves = {label: h.further[name] for label, h in runs if name in h.further}
            if any(min(b.low) < max(b.high) for b in curves.values() if b.points):
                yield _further(name, curves, _seconds(runs))


def _loss_over_time(runs: Named) -> Picture | None:
    curves = {name: history.loss_by_time for name, history in runs}
    return _curves(
        "Loss over time", curves, _seconds(runs), "loss of mini-batches", of="losses", log=True
    )


def _loss_over_steps(runs: Named) -> Picture | None:
    curves = {name: history.loss_by_step for name, history in runs}
    x = "steps of a rank"
    return _curves("Loss over steps", curves, x, "loss of mini-batches", of="losses", log=True)


def _further(name: str, curves: Mapping[str, Bins], seconds: str) -> Picture:
    picture = _curves(f"{name} over time", curves, seconds, name, of="values")
    assert picture is not None
    return picture


def _consensus(runs: Named) -> Picture | None:
    """Draw the root of the mean square of the estimates."""
    found = {name: h.consensus for name, h in runs if h.consensus.points}
    ends = {name: h.summary["consensus_distance"] for name, h in runs if h.summary}
    if not found:
        return None
    figure, axes = drawing.make_axes(_seconds(runs), "consensus distance")
    for index, (name, bins) in enumerate(found.items()):
        look = drawing.style_of(index)
        estimates = [math.sqrt(v) for v in bins.mean]
        axes.plot(bins.x, estimates, label=drawing.label(name), marker=".", **look)
        if ends.get(name):
            axes.plot(max(bins.x), ends[name], "D", color=look["color"], markersize=5)
    values = [math.sqrt(v) for b in found.values() for v in b.mean]
    drawing.log_if_wide(axes, values, found.values())
    axes.set_xlim(left=0)
    drawing.legend(axes, runs)
    points = sum(b.points for b in found.values())
    return Picture(
        "Consensus distance over time",
        f"Root mean square over the ranks of the distance of their models from the mean. The line "
        f"is estimated from {drawing.many(points, 'pair', 'pairs')} of models that were read while "
        f"the run went on, as the root of the mean of their squares in "
        f"{drawing.widths(found.values())}; the diamond is exact, at the end.",
        drawing.svg(figure),
    )


def _curves(
    title: str, curves: Mapping[str, Bins], x: str, y: str, *, of: str, log: bool = False
) -> Picture | None:
    found = {name: bins for name, bins in curves.items() if bins.points}
    if not found:
        return None
    figure, axes = drawing.make_axes(x, y)
    single = len(found) == 1
    for index, (name, bins) in enumerate(found.items()):
        look = drawing.style_of(index)
        shade: dict[str, Any] = {"color": look["color"], "alpha": 0.25 if single else 0.12}
        axes.fill_between(bins.x, bins.low, bins.high, linewidth=0, **shade)
        look["marker"] = "o" if len(bins.x) < 3 else ""  # or nothing would be seen
        axes.plot(bins.x, bins.mean, label=drawing.label(name), **look)
    if log:
        drawing.log_if_wide(axes, [v for b in found.values() for v in b.mean], found.values())
    axes.set_xlim(left=0)
    drawing.legend(axes, curves)
    points = sum(bins.points for bins in found.values())
    return Picture(
        title,
        f"{drawing.many(points, 'recorded value', f'recorded {of}')} of all ranks, in "
        f"{drawing.widths(found.values())}: the line is the mean of a bin, the band reaches from "
        f"its smallest to its largest value.",
        drawing.svg(figure),
    )


def _staleness(runs: Named) -> Picture | None:
    if len(runs) == 1:
        ranks = runs[0][1].ranks.items()
        counts = {f"rank {r}": rank.staleness.counts for r, rank in sorted(ranks)}
    else:
        counts = {name: history.staleness.counts for name, history in runs}
    counts = {name: c for name, c in counts.items() if c}
    if not counts:
        return None
    largest = max(max(c) for c in counts.values())
    reach = min(largest, max(math.ceil(2 * Histogram(c).quantile(0.99)) for c in counts.values()))
    width = max(1, math.ceil((reach + 1) / TAUS))
    edges = [width * i - 0.5 for i in range(math.ceil((reach + 1) / width) + 1)]
    shares = {name: _shares(c, width, len(edges) - 1) for name, c in counts.items()}
    figure, axes = drawing.make_axes("staleness of an update (updates)", "share of the updates")
    if len(shares) <= FEW:
        for index, (name, share) in enumerate(shares.items()):
            look = drawing.style_of(index)
            axes.stairs(share, edges, label=drawing.label(name), **look)
        drawing.legend(axes, shares)
        lines = ""
    else:
        columns = list(zip(*shares.values(), strict=True))
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        axes.stairs(high, edges, baseline=low, fill=True, color=drawing.COLORS[0], alpha=0.3)
        axes.stairs(
            [statistics.median(c) for c in columns], edges, color=drawing.COLORS[0], linewidth=1.6
        )
        what = "ranks" if len(runs) == 1 else "runs"
        lines = f" Of {len(shares)} {what}: the median, and from the smallest share to the largest."
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bars = "one value a bar" if width == 1 else f"{width} values a bar"
    if largest > edges[-1]:
        bars += ", the last with all that are larger"
    total = sum(sum(c.values()) for c in counts.values())
    return Picture(
        "Staleness",
        f"How many updates lay between the reading of a model and the use of its gradient; "
        f"{drawing.many(total, 'update', 'updates')}, {bars}; the largest is {largest}.{lines}",
        drawing.svg(figure),
    )


def _shares(counts: Mapping[int, int], width: int, bars: int) -> list[float]:
    found = [0.0] * bars
    total = sum(counts.values())
    for value, count in counts.items():
        found[min(max(value, 0) // width, bars - 1)] += count / total
    return found


def _utilisation(runs: Named) -> Picture | None:
    if len(runs) == 1:
        rows = {f"rank {rank}": parts for rank, parts in runs[0][1].parts().items()}
        until = runs[0][1].summary is None
    else:
        rows = {name: _summed(history.parts().values()) for name, history in runs}
        until = any(history.summary is None for _, history in runs)
    rows = {name: parts for name, parts in rows.items() if sum(parts.values()) > 0}
    if not rows:
        return None
    figure, axes = drawing.make_bars(rows, "share of the time")
    positions = range(len(rows))
    left = [0.0] * len(rows)
    totals = [sum(parts.values()) for parts in rows.values()]
    for part in PARTS:
        widths = [p[part] / t for p, t in zip(rows.values(), totals, strict=True)]
        axes.barh(positions, widths, left=left, color=OF_PART[part], label=part, height=0.8)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    whose = "each rank's" if len(runs) == 1 else "the ranks'"
    end = " As last recorded: without the time since." if until else ""
    return Picture(
        "Where the time goes",
        f"What {whose} time went into: computing; communication that computing did not hide; "
        f"waiting in the middle of steps; idle, with no step to make.{end}",
        drawing.svg(figure),
    )


def _summed(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found = dict.fromkeys(PARTS, 0.0)
    for row in rows:
        for part in PARTS:
            found[part] += row[part]
    return found


def _bytes(runs: Named) -> Picture | None:
    if len(runs) == 1:
        rows = {f"rank {rank}": sent for rank, sent in runs[0][1].nbytes().items()}
    else:
        rows = {name: float(sum(history.nbytes().values())) for name, history in runs}
    if not any(rows.values()):
        return None
    figure, axes = drawing.make_bars(rows, "payload sent (bytes)")
    axes.barh(range(len(rows)), list(rows.values()), color=drawing.COLORS[0], height=0.8)
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    messages = [
        f"{'' if len(runs) == 1 else name + ': '}{history.summary['messages_sent']:,} messages"
        for name, history in runs
        if history.summary
    ]
    said = f" In {'; '.join(messages)}." if messages else " As last recorded."
    return Picture(
        "Bytes sent",
        f"Payload that {'each rank' if len(runs) == 1 else 'the ranks of each run'} sent or read "
        f"from others.{said}",
        drawing.svg(figure),
    )


def _seconds(runs: Named) -> str:
    virtual = ["workers" in history.run.config for _, history in runs]
    if all(virtual):
        return "virtual time (s)"
    return "time, virtual or wall (s)" if any(virtual) else "wall time (s)"
