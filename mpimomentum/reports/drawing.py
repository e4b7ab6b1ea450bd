"""How the figures of a report look, and what their captions say alike."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Literal

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mpimomentum.reports.bins import Bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
LABELLED = 32  # bars with a name of their own
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "text.parse_math": False,  # names of runs are not formulas
    "svg.hashsalt": "mpimomentum",
    "axes.formatter.useoffset": False,
}


def make_axes(x: str, y: str, height: float = 3.6) -> tuple[Figure, Axes]:
    """Return a figure, `height` inches high, with labelled axes."""
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def make_bars(rows: Mapping[str, Any], x: str) -> tuple[Figure, Axes]:
    """Return axes for a bar a row, the first row on top."""
    height = 1.4 + 0.32 * len(rows) if len(rows) <= LABELLED else 5.5
    figure, axes = make_axes(x, "", height)
    axes.grid(visible=False, axis="y")
    if len(rows) <= LABELLED:
        axes.set_yticks(range(len(rows)), [short(name) for name in rows])
    else:
        axes.set_ylabel("rank")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    return figure, axes


def style_of(index: int) -> dict[str, Any]:
    """Return what tells the `index`-th of several curves from the others."""
    dash = DASHES[index // len(COLORS) % len(DASHES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": dash, "linewidth": 1.6}


def legend(axes: Axes, rows: Sized) -> None:
    """Name the curves if they are several."""
    if len(rows) > 1 and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)


def label(name: str) -> str:
    """Return a name for a legend."""
    return " " + short(name)  # matplotlib leaves out what begins with _


def short(name: str, most: int = 36) -> str:
    """Return a name without its middle if it is long."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-most // 2 + 1 :]}"


def log_if_wide(axes: Axes, values: Sequence[float], all_bins: Iterable[Bins]) -> None:
    """Take a logarithmic axis where a linear one would hide most of the values."""
    if min(min(bins.low) for bins in all_bins) <= 0 or max(values) < 20 * min(values):
        return
    log_axis(axes, math.log10(max(values) / min(values)))


def log_axis(axes: Axes, decades: float, which: Literal["x", "y"] = "y") -> None:
    """Take a logarithmic axis, with plain numbers."""
    if which == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def widths(all_bins: Iterable[Bins]) -> str:
    """Return how many bins there are, in words."""
    counts = sorted({len(bins.bins) for bins in all_bins})
    if counts == [1]:
        return "1 bin"
    return f"{counts[0]} bins" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} bins"


def many(count: int, one: str, more: str) -> str:
    """Return a number of things in words."""
    return f"{count:,} {one if count == 1 else more}"


def svg(figure: Figure) -> bytes:
    """Return a figure as a file; the same bytes for the same figure."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
