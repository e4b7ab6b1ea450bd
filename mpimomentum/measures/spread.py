"""Number, sum and extremes of a quantity that varies continuously."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Spread:
    """What is left of many values.

    Attributes
    ----------
    count : int
        How many there were.
    total, low, high, last : float
        Their sum, the least, the largest and the last; 0 without any.
    """

    count: int = 0
    total: float = 0.0
    low: float = 0.0
    high: float = 0.0
    last: float = 0.0

    def add(self, value: float) -> None:
        """Count one more."""
        self.low = min(self.low, value) if self.count else value
        self.high = max(self.high, value) if self.count else value
        self.count += 1
        self.total += value
        self.last = value

    def absorb(self, other: Spread) -> None:
        """Count all of `other`'s, as if they came after."""
        if other.count:
            self.low = min(self.low, other.low) if self.count else other.low
            self.high = max(self.high, other.high) if self.count else other.high
            self.count += other.count
            self.total += other.total
            self.last = other.last

    @staticmethod
    def merged(spreads: Iterable[Spread]) -> dict[str, float] | None:
        """Return mean, min and max of all, and the mean of the last ones; None without any."""
        some = [s for s in spreads if s.count]
        if not some:
            return None
        return {
            "mean": sum(s.total for s in some) / sum(s.count for s in some),
            "min": min(s.low for s in some),
            "max": max(s.high for s in some),
            "last": sum(s.last for s in some) / len(some),
        }
