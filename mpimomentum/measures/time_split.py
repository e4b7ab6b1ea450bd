"""Where a rank's time goes: compute, gossip, wait, idle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mpimomentum.measures.spans import Spans

Spent = Literal["gossip", "wait", "idle"]
"""What time goes into while no gradient is owed."""


@dataclass
class Seconds:
    """A rank's time by what it went into, in seconds; all but the last add up to the whole.

    Attributes
    ----------
    compute : float
        A gradient was owed, whatever else went on meanwhile.
    gossip : float
        None was, and communication or the algorithm's code ran here.
    wait : float
        Nothing ran here, and the rank was in the middle of its steps.
    idle : float
        Nothing ran here, and the rank had no step to make.
    gossip_hidden : float
        Part of `compute` in which communication or the algorithm's code ran beside the gradient.
    """

    compute: float = 0.0
    gossip: float = 0.0
    wait: float = 0.0
    idle: float = 0.0
    gossip_hidden: float = 0.0


class TimeSplit:
    """Adds up time by what it goes into; told when that changes, by one thread.

    Parameters
    ----------
    now_s : float
        When it begins, on the clock of all other times given to it.
    before : Seconds, optional
        Of an earlier part of the same run.
    spans : Spans, optional
        Told everything that is put down.
    """

    __slots__ = ("computing", "seconds", "since_s", "spans")

    def __init__(
        self, now_s: float, before: Seconds | None = None, spans: Spans | None = None
    ) -> None:
        self.computing = False
        self.spans = spans
        self.seconds = replace(before) if before is not None else Seconds()
        self.since_s = now_s

    def spend(self, until_s: float, on: Spent) -> None:
        """Put the time up to `until_s` down: to the gradient if one is owed, else to `on`."""
        took_s = until_s - self.since_s
        if took_s <= 0:
            return
        if self.spans is not None:
            self.spans.spend(self.since_s, until_s, on, self.computing)
        self.since_s = until_s
        seconds = self.seconds
        if self.computing:
            seconds.compute += took_s
            if on == "gossip":
                seconds.gossip_hidden += took_s
        elif on == "gossip":
            seconds.gossip += took_s
        elif on == "wait":
            seconds.wait += took_s
        else:
            seconds.idle += took_s

    def copy(self) -> TimeSplit:
        """Return a copy, which goes on by itself and tells nobody."""
        other = TimeSplit(self.since_s, self.seconds)
        other.computing = self.computing
        return other
