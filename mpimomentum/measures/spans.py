"""A rank's timeline, as events that wait for whoever writes them down."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Literal, NamedTuple

STEPS, PROGRAM, COMMUNICATION, DISK = range(4)
"""The tracks: steps with what they await; the program's thread; the communication thread;
checkpoints that are written beside all that."""

LIMIT = 100_000  # events, about 20 MB, that may wait for a slow disk


class Event(NamedTuple):
    """Something on a track; times are those of the rank's clock, in seconds.

    Attributes
    ----------
    kind : {"span", "count", "instant"}
    track : int
    name : str
    begin_s : float
    end : float
        When a span ends, in seconds; the value of a counter; unused of an instant.
    """

    kind: Literal["span", "count", "instant"]
    track: int
    name: str
    begin_s: float
    end: float


class Spans:
    """Collects the events of one rank; bounded. For the thread that drives its coroutines.

    Parameters
    ----------
    limit : int
        Most events that may wait; more are lost.
    full : callable, optional
        Called when so many wait; may :meth:`take` them, and none are lost then.

    Attributes
    ----------
    clock : callable
        What the times are read from.
    origin_s : float
        When the run began, on that clock.
    lost : int
        Events that found no room.
    """

    def __init__(self, limit: int = LIMIT, full: Callable[[], object] | None = None) -> None:
        self.clock: Callable[[], float] | None = None
        self.origin_s = 0.0
        self.lost = 0
        self.limit = limit
        self.full = full
        self._waiting: collections.deque[Event] = collections.deque()
        # the last span of a track, which may go on: [name, begin, end]
        self._open: dict[int, tuple[str, float, float]] = {}

    def begin(self, clock: Callable[[], float], origin_s: float) -> None:
        """Begin a run: times are read from `clock`, on which it began at `origin_s`."""
        self.clock, self.origin_s = clock, origin_s

    def now_s(self) -> float:
        """Return the time on the rank's clock."""
        return 0.0 if self.clock is None else self.clock()

    def spend(self, since_s: float, until_s: float, on: str, computing: bool) -> None:
        """Note what :class:`~mpimomentum.measures.TimeSplit` puts down; stretches are joined."""
        if computing:
            self._extend(PROGRAM, "compute", since_s, until_s)
        if not computing or on == "gossip":
            self._extend(COMMUNICATION, on, since_s, until_s)

    def cut(self) -> None:
        """End the present gradient's span: what is computed from now on is another."""
        self._close(PROGRAM)

    def span(self, track: int, name: str, begin_s: float, end_s: float) -> None:
        """Note a span that has ended."""
        self._put(Event("span", track, name, begin_s, end_s))

    def count(self, name: str, value: float) -> None:
        """Note the present value of a counter."""
        self._put(Event("count", STEPS, name, self.now_s(), value))

    def instant(self, name: str) -> None:
        """Note that something happens now."""
        self._put(Event("instant", STEPS, name, self.now_s(), 0.0))

    def close(self) -> None:
        """End the spans that are open."""
        for track in tuple(self._open):
            self._close(track)

    def take(self) -> list[Event]:
        """Hand over what waits, in the order in which it ended; for another thread, too."""
        return [self._waiting.popleft() for _ in range(len(self._waiting))]

    def _extend(self, track: int, name: str, since_s: float, until_s: float) -> None:
        begin_s = since_s
        if track in self._open:
            before, began_s, ended_s = self._open[track]
            if before == name and ended_s == since_s:
                begin_s = began_s
            else:
                self._close(track)
        self._open[track] = name, begin_s, until_s

    def _close(self, track: int) -> None:
        if track in self._open:
            self.span(track, *self._open.pop(track))

    def _put(self, event: Event) -> None:
        if self.clock is None:  # the run has not begun
            return
        if len(self._waiting) >= self.limit:
            if self.full is not None:
                self.full()
            if len(self._waiting) >= self.limit:
                self.lost += 1
                return
        self._waiting.append(event)
