"""A rank's chronicle: what a recorded run must remember to be repeated, in the order it happened.

Everything that a rank computes follows from what it began with and from a few decisions that time
made: which of its two coroutines went on, whose message came next, what a counter said, which
update of another rank's vector a read found, and between which of its own operations the deltas of
others came into its vector. Only these are noted, as rows of five integers.

Operations on the own window are counted, so that a delta has its place among them. The count is of
what the algorithm does, not of what watches it: `task` is set only while one of its coroutines
runs.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpimomentum.worker import Handle

STEP, SERVE = range(2)
"""The coroutines of an algorithm on one rank: its steps with ``finish``, and ``serve``."""

COLUMNS = 5


class Kind(enum.IntEnum):
    """What a row says: (kind, which object, operations on it before, who, value)."""

    TURN = 0  # coroutine `object` went on `value` times in a row
    AVERAGED = 1  # what rank `who` handed over in an average came into window `object`
    ADDED = 2  # what `who` added came in
    EXCHANGED = 3  # the own half of an average with `who`, read after its write number `value`
    AVERAGE = 4  # an average begun came to `value`: 1, or 0 for busy
    GOT = 5  # a whole read of the vector of `who`, after its write number `value`
    RECEIVED = 6  # the next message of mailbox `object` was from `who`
    COUNTED = 7  # counter `object` said `value`
    ENDED = 8  # after `value` steps


class Chronicle:
    """The rows of one rank, in memory.

    Attributes
    ----------
    task : int or None
        Which of the algorithm's coroutines runs now: STEP, SERVE, or none of them.
    """

    def __init__(self) -> None:
        self.task: int | None = None
        self._rows = array("q")
        self._turn, self._count = STEP, 0

    def note(self, kind: Kind, thing: int, at: int = 0, who: int = 0, value: int = 0) -> None:
        """Append a row."""
        self._rows.extend((kind, thing, at, who, value))

    def passed(self) -> None:
        """Note that the coroutine that runs now has gone on behind an ``await``."""
        assert self.task is not None
        if self.task != self._turn:
            self._end_turn()
            self._turn = self.task
        self._count += 1

    def begins(self) -> Generator[Handle[Any], None, None]:
        """Note that a coroutine begins; nothing is waited for."""
        self.passed()
        yield from ()

    def ended(self, steps: int) -> None:
        """Note that the run has come to its end."""
        self._end_turn()
        self.note(Kind.ENDED, 0, value=steps)

    def table(self) -> NDArray[np.int64]:
        """Return a copy of all rows, shape (rows, 5)."""
        return np.array(self._rows, dtype=np.int64).reshape(-1, COLUMNS)

    def _end_turn(self) -> None:
        if self._count:
            self.note(Kind.TURN, self._turn, value=self._count)
        self._count = 0


class WindowChronicle:
    """One window's part of a chronicle.

    Parameters
    ----------
    chronicle : Chronicle
    index : int
        Of the window, in the order in which the algorithm makes them.

    Attributes
    ----------
    index : int
    operations : int
        Of the algorithm on the own vector, so far.
    """

    def __init__(self, chronicle: Chronicle, index: int) -> None:
        self.operations = 0
        self._chronicle = chronicle
        self.index = index

    def came(self, kind: Kind, who: int, value: int = 0) -> None:
        """Note a change of the own vector that another rank has part in."""
        self._chronicle.note(kind, self.index, self.operations, who, value)

    def reading(self, who: int) -> Callable[[int], None] | None:
        """Return what is to be told the number of the write that a read of `who` found.

        None for a read that is not the algorithm's.
        """
        if self._chronicle.task is None:
            return None
        return lambda writes: self._chronicle.note(Kind.GOT, self.index, 0, who, writes)
