"""What is to happen, in order of time: actions on SimPy's kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import simpy

AT_ONCE, IN_TURN, AFTER_ALL_ELSE = range(3)
"""Priorities; SimPy's own are the first two."""


class _Action(simpy.Event):
    """An event that has one thing to do and cannot fail."""

    __slots__ = ("action",)

    def __init__(self, kernel: simpy.Environment, action: Callable[[], object]) -> None:
        self.env = kernel
        self.action = action
        self.callbacks = _DO
        self._ok, self._value = True, None  # triggered, as by Event.succeed()


_DO = cast(Any, (lambda event: event.action(),))


class Events:
    """Actions at times; those of one time by priority, then first in, first out."""

    def __init__(self) -> None:
        self._kernel = simpy.Environment()
        self._waiting = 0

    @property
    def now_s(self) -> float:
        """Virtual seconds."""
        return float(self._kernel.now)

    def at(self, time_s: float, action: Callable[[], object], priority: int = IN_TURN) -> None:
        """Call `action` at `time_s`, but for rounding; now, if that is over."""
        kernel = self._kernel
        self._waiting += 1
        event = _Action(kernel, action)
        kernel.schedule(event, cast(Any, priority), max(time_s - kernel.now, 0.0))

    def soon(self, action: Callable[[], object], priority: int = IN_TURN) -> None:
        """Call `action` at this instant."""
        self._waiting += 1
        self._kernel.schedule(_Action(self._kernel, action), cast(Any, priority))

    def step(self) -> None:
        """Do what is next."""
        self._waiting -= 1
        self._kernel.step()

    def __len__(self) -> int:
        """Return how many actions are still to come."""
        return self._waiting
