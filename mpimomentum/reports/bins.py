"""A curve of any number of points in bounded memory: smallest, mean and largest in equal bins."""

from __future__ import annotations

import math
from dataclasses import dataclass

COUNT = 300


@dataclass
class Bin:
    """The points of a stretch."""

    count: int = 0
    sum_x: float = 0.0
    sum_y: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, x: float, y: float) -> None:
        """Count a point."""
        self.count += 1
        self.sum_x += x
        self.sum_y += y
        self.low = min(self.low, y)
        self.high = max(self.high, y)

    def with_(self, other: Bin) -> Bin:
        """Return the points of both."""
        return Bin(
            self.count + other.count,
            self.sum_x + other.sum_x,
            self.sum_y + other.sum_y,
            min(self.low, other.low),
            max(self.high, other.high),
        )


class Bins:
    """Points (x, y), x ≥ 0, in order or not; the bins grow with the largest x.

    Parameters
    ----------
    width : float
        Of a bin at first; doubled whenever `count` bins do not reach.
    count : int
        Most bins; even.
    """

    def __init__(self, width: float, count: int = COUNT) -> None:
        self.width = width
        self._count = count
        self._bins: dict[int, Bin] = {}

    def add(self, x: float, y: float) -> None:
        """Count a point; one that is not finite is left out."""
        if not (math.isfinite(x) and math.isfinite(y)) or x < 0:
            return
        while x >= self.width * self._count:
            self._double()
        index = int(x / self.width)
        if index not in self._bins:
            self._bins[index] = Bin()
        self._bins[index].add(x, y)

    def _double(self) -> None:
        self.width *= 2
        merged: dict[int, Bin] = {}
        for index, one in self._bins.items():
            half = index // 2
            merged[half] = merged[half].with_(one) if half in merged else one
        self._bins = merged

    @property
    def points(self) -> int:
        """Points counted."""
        return sum(b.count for b in self._bins.values())

    @property
    def bins(self) -> list[Bin]:
        """Those that hold points, in order of x."""
        return [self._bins[index] for index in sorted(self._bins)]

    @property
    def x(self) -> list[float]:
        """Mean x of each bin."""
        return [b.sum_x / b.count for b in self.bins]

    @property
    def mean(self) -> list[float]:
        """Mean y of each bin."""
        return [b.sum_y / b.count for b in self.bins]

    @property
    def low(self) -> list[float]:
        """Smallest y of each bin."""
        return [b.low for b in self.bins]

    @property
    def high(self) -> list[float]:
        """Largest y of each bin."""
        return [b.high for b in self.bins]
