"""What a rank's communication moved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Traffic:
    """Payload bytes, and messages: one for each piece that goes to, or is read from, a rank.

    An allreduce is what the best algorithms for it send, 2(n−1) pieces of 1/n of the vector. Heads
    of messages and words of a protocol are not counted; a fetch-and-add is a message of 0 bytes.
    """

    nbytes: int = 0
    messages: int = 0

    def count(self, nbytes: int, messages: int = 1) -> None:
        """Count `messages` that carry `nbytes` together."""
        self.nbytes += nbytes
        self.messages += messages

    def __add__(self, other: Traffic) -> Traffic:
        """Return both together."""
        return Traffic(self.nbytes + other.nbytes, self.messages + other.messages)

    def __neg__(self) -> Traffic:
        """Return what takes this away from a sum."""
        return Traffic(-self.nbytes, -self.messages)

    @classmethod
    def total(cls, parts: Iterable[Traffic]) -> Traffic:
        """Return all `parts` together."""
        return sum(parts, start=cls())
