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
    BEGAN = 9  # first of a file, whose format is `value`


class Chronicle:
    """The rows of one rank, in memory or passed on as they come.

    Parameters
    ----------
    write : callable, optional
        Gets rows as bytes whenever none of the coroutines runs, so that together they are always
        the whole of what has happened; :meth:`table` has none then.

    Attributes
    ----------
    task : int or None
        Which of the algorithm's coroutines runs now: STEP, SERVE, or none of them.
    """

    def __init__(self, write: Callable[[bytes], object] | None = None) -> None:
        self.task: int | None = None
        self._write = write
        self._rows = array("q")
        self._turn, self._count = STEP, 0

    def note(self, kind: Kind, thing: int, at: int = 0, who: int = 0, value: int = 0) -> None:
        """Append a row."""
        self._rows.extend((kind, thing, at, who, value))
        if self.task is None:
            self.pauses()

    def passed(self) -> None:
        """Note that the coroutine that runs now has gone on behind an ``await``."""
        assert self.task is not None
        if self.task != self._turn:
            self._rows.extend(self._end_turn())
            self._turn = self.task
        self._count += 1

    def begins(self) -> Generator[Handle[Any], None, None]:
        """Note that a coroutine begins; nothing is waited for."""
        self.passed()
        yield from ()

    def pauses(self) -> None:
        """Note that none of the coroutines runs."""
        self.task = None
        if self._write is not None:
            self._rows.extend(self._end_turn())
            if self._rows:
                self._write(self._rows.tobytes())
                del self._rows[:]

    def ended(self, steps: int) -> None:
        """Note that the run has come to its end."""
        self._rows.extend(self._end_turn())
        self.note(Kind.ENDED, 0, value=steps)

    def table(self) -> NDArray[np.int64]:
        """Return a copy of all rows, shape (rows, 5); of a run that has failed, too."""
        self._rows.extend(self._end_turn())
        return np.array(self._rows, dtype=np.int64).reshape(-1, COLUMNS)

    def _end_turn(self) -> tuple[int, ...]:
        """Return the row that ends a turn; nothing if none has begun."""
        count, self._count = self._count, 0
        return (Kind.TURN, self._turn, 0, 0, count) if count else ()


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
