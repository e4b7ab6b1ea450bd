"""What is to happen, in order of time: actions at later times on SimPy's kernel, others in queues.

Most actions come at the instant at which they are asked for. They need no sorting by time, and a
queue costs less than half of a kernel's event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import simpy

Do: TypeAlias = Callable[[], object]


class _Action(simpy.Event):
    """An event that has one thing to do and cannot fail."""

    callbacks = cast(Any, (lambda event: event.action(),))
    _ok, _value = True, None  # triggered, as by Event.succeed()

    def __init__(self, action: Do) -> None:
        self.action = action


class Events:
    """Actions at times; those of one time first in, first out, but for `at_once` and `last`.

    Attributes
    ----------
    now_s : float
        Virtual seconds.
    in_turn : deque
        What is due now, but for what the kernel has.
    at_once, soon, last : callable
        ``soon(action)`` calls `action` at this instant, in turn; ``at_once(action)`` before all
        that is due now, ``last(action)`` after it.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._kernel = simpy.Environment(0.0)
        self._later = 0  # actions that the kernel has
        self._at_once: deque[Do] = deque()
        self.in_turn: deque[Do] = deque()
        self._last: deque[Do] = deque()
        self.at_once: Callable[[Do], None] = self._at_once.append
        self.soon: Callable[[Do], None] = self.in_turn.append
        self.last: Callable[[Do], None] = self._last.append

    def at(self, time_s: float, action: Do) -> None:
        """Call `action` at `time_s`, but for rounding; now, if that is over."""
        delay_s = time_s - self.now_s
        if delay_s <= 0:
            self.in_turn.append(action)
            return
        self._later += 1
        self._kernel.schedule(_Action(action), delay=delay_s)

    def step(self) -> None:
        """Do what is next."""
        if self._at_once:
            self._at_once.popleft()()
        elif (self.in_turn or self._last) and self._kernel.peek() > self.now_s:
            (self.in_turn or self._last).popleft()()
        else:  # what the kernel has for this instant was asked for before all that is in turn
            self._later -= 1
            self.now_s = self._kernel.peek()
            self._kernel.step()

    def __len__(self) -> int:
        """Return how many actions are still to come."""
        return self._later + len(self._at_once) + len(self.in_turn) + len(self._last)
