"""A device that is not there: work waits in its lane until somebody polls, as on a GPU.

Vectors on the "device" are host memory. Who looks at a result before its event has been passed
finds what was there before; who changes an input before then changes the result.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from mpimomentum.transport.lane import PASSED, Event, Lane, Marked, Program
from mpimomentum.worker import Handle

_one_at_a_time = threading.RLock()  # lanes advance in whatever thread polls


class _Mark:
    def __init__(self, stream: _Stream, end: int) -> None:
        self._stream, self._end = stream, end

    def query(self) -> bool:
        self._stream.advance()
        return self._stream.finished >= self._end


class _Stream:
    """Work and events to wait for, in order."""

    def __init__(self, seed: int, laziest: int) -> None:
        self._random = random.Random(seed)
        self._queue: deque[Callable[[], Any] | Event] = deque()
        self._laziest = laziest
        self._lazy = 0
        self.finished = 0

    def append(self, item: Callable[[], Any] | Event) -> None:
        with _one_at_a_time:
            self._queue.append(item)

    def mark(self) -> Event:
        with _one_at_a_time:
            return _Mark(self, self.finished + len(self._queue))

    def advance(self) -> None:
        """Do some of what is queued, perhaps nothing."""
        with _one_at_a_time:
            if self._lazy < self._laziest and self._random.random() < 0.5:
                self._lazy += 1
                return
            self._lazy = 0
            for _ in range(min(len(self._queue), self._random.randint(1, 3))):
                if not self._one():
                    return

    def work_off(self) -> None:
        """Do all of it."""
        with _one_at_a_time:
            while self._queue:
                self._one()

    def _one(self) -> bool:
        first = self._queue[0]
        if callable(first):
            first()
        elif not first.query():
            return False
        self._queue.popleft()
        self.finished += 1
        return True


class PretendProgram(Program):
    """The program's stream: what :meth:`begin` is given is done when events are polled."""

    def __init__(self, seed: int = 0, laziest: int = 3) -> None:
        self._stream = _Stream(seed, laziest)

    def begin(self, work: Callable[[], Any]) -> None:
        """Put `work` into the queue."""
        self._stream.append(work)

    def settle(self) -> None:
        """Work it all off: what the program does next, without :meth:`begin`, comes after it."""
        self._stream.work_off()

    def mark(self) -> Event:
        """Return the place of what was begun last."""
        return self._stream.mark()

    def after(self, event: Event) -> None:
        """Put the event into the queue."""
        if event is not PASSED:
            self._stream.append(event)


class PretendLane(Lane):
    """Work that is done when events are polled, a random number of pieces at a time.

    Parameters
    ----------
    seed : int
    laziest : int
        Most polls in a row that find nothing more done.

    Attributes
    ----------
    side : PretendProgram
        What :meth:`program` returns.
    """

    apart = True

    def __init__(self, seed: int = 0, laziest: int = 3) -> None:
        super().__init__()
        self._stream = _Stream(seed, laziest)
        self.side = PretendProgram(seed + 1, laziest)

    @property
    def finished(self) -> int:
        """Pieces of work done so far."""
        return self._stream.finished

    def program(self) -> Program:
        """Return the one program."""
        return self.side

    def begin(self, work: Callable[[], Any]) -> None:
        """Put `work` into the queue."""
        self._stream.append(work)

    def settle(self) -> None:
        """Work it all off: the next operation on the stream comes after it."""
        self._stream.work_off()

    def mark(self) -> Event:
        """Return the place of what was begun last."""
        return self._stream.mark()

    def after(self, event: Event) -> None:
        """Do what the other did: an order among streams, which needs nobody to poll."""
        while not event.query():
            pass

    def done(self, what: str, hold: Any = None) -> Handle[None]:
        """Poll a mark."""
        return Marked(self.mark(), what, hold)

    def advance(self) -> None:
        """Do some of what is queued, perhaps nothing."""
        self._stream.advance()
