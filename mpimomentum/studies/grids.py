"""Accuracies over two settings, as colours with their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray


def draw(
    axes: Axes,
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    compared: int | None = None,
    colors: tuple[float, float] = (50.0, 100.0),
) -> None:
    """Draw a grid and frame the best of each row.

    Parameters
    ----------
    axes : Axes
    values : ndarray, shape (rows, columns)
        In %.
    rows, columns : sequence of str
    compared : int, optional
        How many columns, from the left, the best is one of; all by default.
    colors : (float, float)
        What is darkest and what is brightest.
    """
    low, high = colors
    axes.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    best = values[:, :compared].argmax(axis=1)
    for row, column in np.ndindex(values.shape):
        axes.text(
            column, row, f"{values[row, column]:.1f}",
            ha="center", va="center", fontsize=8,
            color="black" if values[row, column] > (low + high) / 2 else "white",
            bbox={"fill": False, "edgecolor": "black", "linewidth": 1.2}
            if column == best[row] else None,
        )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(visible=False)
