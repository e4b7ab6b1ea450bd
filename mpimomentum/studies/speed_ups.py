"""Speed-ups over the number of workers, a panel for each network."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mpimomentum.reports import drawing
from mpimomentum.studies.study import Mean

TITLE = 36  # characters in a line above a panel


def draw(panels: Mapping[str, Mapping[str, Sequence[Mean]]], sizes: Sequence[int]) -> Figure:
    """Draw them.

    Parameters
    ----------
    panels : mapping
        Title -> name of a curve -> a speed-up for each of `sizes`. Five at most: the last place is
        the legend's.
    sizes : sequence of int
        Numbers of workers.
    """
    figure = Figure(figsize=(11.0, 6.4), layout="constrained")
    places = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    for axes, (title, curves) in zip(places, panels.items(), strict=False):
        for i, (name, means) in enumerate(curves.items()):
            axes.errorbar(
                sizes,
                [m.mean for m in means],
                yerr=[m.sd for m in means],
                **drawing.style_of(i),
                marker="o",
                markersize=3.5,
                capsize=2,
                label=name,
            )
        axes.set_title(textwrap.fill(title, TITLE, break_on_hyphens=False), fontsize=9)
        _scales(axes, sizes)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    places[-1].legend(*places[0].get_legend_handles_labels(), loc="center", fontsize=10)
    figure.supxlabel("workers")
    figure.supylabel("speed-up of an epoch")
    return figure


def _scales(axes: Axes, sizes: Sequence[int]) -> None:
    axes.plot(sizes, sizes, ":", color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_ticks(sizes, [str(n) for n in sizes])
    axes.yaxis.set_ticks(sizes, [str(n) for n in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelbottom=True, labelleft=True)
