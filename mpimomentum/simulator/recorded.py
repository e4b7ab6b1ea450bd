"""What one rank's chronicle says, sorted by what asks for it."""

from __future__ import annotations

import collections
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpimomentum.chronicle import COLUMNS, Kind


@dataclass(frozen=True)
class Came:
    """A change of an own vector that another rank has part in.

    Attributes
    ----------
    kind : Kind
        AVERAGED, ADDED or EXCHANGED.
    at : int
        Operations of the algorithm on the window before it.
    who : int
    value : int
        Number of the write after which the vector of `who` was read, for EXCHANGED.
    """

    kind: Kind
    at: int
    who: int
    value: int


def _queues() -> Any:
    return collections.defaultdict(deque)


@dataclass
class Recorded:
    """One rank's part of a recorded run; queues, first in first out.

    Attributes
    ----------
    steps : int
        That the rank made; -1 if its run did not come to its end.
    turns : deque of [int, int]
        Coroutine, and how often in a row it went on.
    came : dict of int to deque of Came
        By window.
    averages, received, counted : dict of int to deque of int
        By window, mailbox, counter: what came of an average, of a receive, of a request.
    got : dict of (int, int) to deque of int
        By window and rank: after which write the vector of that rank was read.
    """

    steps: int = -1
    turns: deque[list[int]] = field(default_factory=deque)
    came: dict[int, deque[Came]] = field(default_factory=_queues)
    averages: dict[int, deque[int]] = field(default_factory=_queues)
    received: dict[int, deque[int]] = field(default_factory=_queues)
    counted: dict[int, deque[int]] = field(default_factory=_queues)
    got: dict[tuple[int, int], deque[int]] = field(default_factory=_queues)

    @classmethod
    def of(cls, table: NDArray[np.int64]) -> Recorded:
        """Sort the rows of a chronicle.

        Raises
        ------
        ValueError
            If it is not a chronicle.
        """
        if table.ndim != 2 or table.shape[1] != COLUMNS or table.dtype != np.int64:
            raise ValueError(f"not a chronicle: {table.shape} of {table.dtype}")
        self = cls()
        for number, thing, at, who, value in table.tolist():
            kind = Kind(number)
            if kind is Kind.TURN:
                self.turns.append([thing, value])
            elif kind is Kind.AVERAGE:
                self.averages[thing].append(value)
            elif kind is Kind.GOT:
                self.got[thing, who].append(value)
            elif kind is Kind.RECEIVED:
                self.received[thing].append(who)
            elif kind is Kind.COUNTED:
                self.counted[thing].append(value)
            elif kind is Kind.ENDED:
                self.steps = value
            else:
                self.came[thing].append(Came(kind, at, who, value))
        return self

    @property
    def ended(self) -> bool:
        """Whether the run came to its end; else the chronicle is one up to where it failed."""
        return self.steps >= 0

    def left(self) -> str:
        """Return, in words, what nobody has asked for; nothing of a chronicle that is used up.

        Reads do not count: one that is begun need not be awaited, and is noted all the same.
        """
        queues: dict[str, Any] = {
            "changes of windows by others": self.came,
            "averages": self.averages,
            "messages": self.received,
            "answers of counters": self.counted,
        }
        counts = {name: sum(map(len, each.values())) for name, each in queues.items()}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)

    def reads(self) -> list[tuple[int, int, int]]:
        """Return every read of another rank's vector: window, rank, number of its last write."""
        exchanged = [
            (window, c.who, c.value)
            for window, changes in self.came.items()
            for c in changes
            if c.kind is Kind.EXCHANGED
        ]
        return exchanged + [(w, who, value) for (w, who), q in self.got.items() for value in q]
