"""Exact histograms of integers, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


class Histogram:
    """How often each integer came: as large as the number of different ones, however many came.

    Attributes
    ----------
    counts : dict of int to int
        Value -> how often.
    """

    __slots__ = ("counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    def add(self, value: float) -> None:
        """Count `value`, rounded to an integer; one that is not finite is left out."""
        if type(value) is not int:
            if not math.isfinite(value):
                return
            value = round(value)
        self.counts[value] = self.counts.get(value, 0) + 1

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Histogram:
        """Return the histogram of all that `parts` counted."""
        whole = cls()
        for part in parts:
            for value, count in part.counts.items():
                whole.counts[value] = whole.counts.get(value, 0) + count
        return whole

    def copy(self) -> Histogram:
        """Return a copy: one moment's counts, also while another thread goes on counting."""
        return Histogram(self.counts.copy())

    @property
    def count(self) -> int:
        """How many values came."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """Their mean; NaN if none came."""
        counts = self.counts.copy()
        total = sum(counts.values())
        return sum(v * c for v, c in counts.items()) / total if total else math.nan

    def quantile(self, q: float) -> float:
        """Return the `q`-quantile, 0 <= q <= 1, as ``numpy.quantile`` does; NaN if none came."""
        total = self.count
        if not total:
            return math.nan
        position = q * (total - 1)
        low = self._ordered(math.floor(position))
        high = self._ordered(math.ceil(position))
        return low + (high - low) * (position - math.floor(position))

    def _ordered(self, index: int) -> int:
        """Return the value at `index` of all values, sorted."""
        seen = 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if index < seen:
                return value
        raise IndexError(index)

    def summary(self) -> dict[str, Any]:
        """Return mean, median, 99th percentile, maximum and the counts.

        Returns
        -------
        dict
            The first four are None where nothing came. ``histogram``: value, as text -> count, by
            ascending value.
        """
        if not self.counts:
            return {"mean": None, "p50": None, "p99": None, "max": None, "histogram": {}}
        return {
            "mean": self.mean,
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
            "max": max(self.counts),
            "histogram": self.state_dict(),
        }

    def state_dict(self) -> dict[str, int]:
        """Return the counts, ready for JSON."""
        return {str(value): self.counts[value] for value in sorted(self.counts)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, int]) -> Histogram:
        """Return the histogram of which :meth:`state_dict` was taken."""
        return cls({int(value): count for value, count in state.items()})
