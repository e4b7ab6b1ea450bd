"""What the communication thread does in turn: coroutines, polls, and the one back-off.

A driver (:mod:`mpimomentum.transport.driver`) calls :meth:`Engine.poll` again and again.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

from mpimomentum.measures import Seconds, Spans, Spent, TimeSplit
from mpimomentum.worker import Handle

T = TypeVar("T")
Coro = Coroutine[Any, Any, T]

MOVES, BEATS = range(2)


class Task(Handle[T]):
    """A coroutine under way; :meth:`test` carries it on to the next thing it must wait for."""

    __slots__ = ("_coroutine", "_waiting", "background", "moves")

    def __init__(self, coroutine: Coro[T], what: str, *, background: bool = False) -> None:
        super().__init__(what)
        self._coroutine = coroutine
        self.background = background
        self._waiting: Handle[Any] | None = None
        self.moves = 0

    def test(self) -> bool:
        """Advance; True once the coroutine has returned or raised."""
        if not self._done and (self._waiting is None or self._waiting.test()):
            if not isinstance(self._waiting, NextPoll):  # trying again is no progress
                self.moves += 1
            try:
                self._waiting = self._coroutine.send(None)
            except StopIteration as stop:
                self.resolve(stop.value)
            except BaseException as error:  # raised again where it is awaited
                self.fail(error)
        return self._done

    @property
    def is_idle(self) -> bool:
        """Whether all it waits for is a message that may never come."""
        return self._waiting is not None and self._waiting.may_never_come

    def is_waiting_for(self, handle: Handle[Any]) -> bool:
        """Whether the coroutine stands at ``await handle``."""
        return self._waiting is handle

    def waits_for(self) -> str:
        """Return what the innermost coroutine waits for, in words."""
        inner = self._waiting
        return inner.waits_for() if isinstance(inner, Task) else inner.what if inner else self.what

    def cancel(self) -> None:
        """Stop the coroutine at its ``await``."""
        self._coroutine.close()
        if not self._done:
            self.resolve(None)  # type: ignore[arg-type]  # nobody awaits a cancelled task


class Poll(Handle[T]):
    """A handle that is done when `poll` returns something other than None."""

    __slots__ = ("_poll",)

    def __init__(self, poll: Callable[[], T | None], what: str) -> None:
        super().__init__(what)
        self._poll = poll

    def test(self) -> bool:
        """Call `poll` until it answers."""
        if not self._done:
            value = self._poll()
            if value is not None:
                self.resolve(value)
        return self._done


class Chance(Poll[T]):
    """A poll for what may never come to be: a run may end meanwhile."""

    __slots__ = ()

    may_never_come = True


class NextPoll(Handle[None]):
    """Done at the next poll: lets everything else move before the coroutine tries again."""

    __slots__ = ()

    def test(self) -> bool:
        """Say no once."""
        if not self._done:
            self.resolve(None)
            return False
        return True


class Backoff:
    """The one way to wait: a few polls in a row, then naps that an event can cut short.

    Parameters
    ----------
    nap_s : float
        Seconds between polls once nothing has moved for a while. While a gradient is computed,
        whose core and GIL every poll takes from it, naps grow to five times that.
    spins : int
        Polls that only yield the core before the first nap; none while a gradient is computed.
    """

    def __init__(self, nap_s: float = 200e-6, spins: int = 20) -> None:
        self.nap_s = nap_s
        self.spins = spins
        self.wake = threading.Event()
        self._idle = 0

    def reset(self) -> None:
        """Something moved."""
        self._idle = 0

    def pause(self, *, computing: bool) -> None:
        """Nothing moved: yield, or nap until `wake` is set."""
        self._idle += 1
        if computing:
            self.wake.wait(self.nap_s * min(self._idle, 5))
        elif self._idle <= self.spins:
            os.sched_yield()
        else:
            self.wake.wait(self.nap_s)
        self.wake.clear()


class Engine:
    """What the communication thread runs in turn: pollers (inboxes) and tasks (coroutines).

    Attributes
    ----------
    vitals : ndarray, shape (2,), int64
        MOVES, which grows whenever something moves here, and BEATS, which grows while a gradient
        is computed, or is -1 if that keeps this thread from counting. The watchdog puts them where
        other ranks see them.
    blocking : str
        The blocking call under way outside any task, such as the start of MPI; empty if none.
    split : TimeSplit
        What the time went into, up to the last time that something moved.
    at_rest : {"wait", "idle"}
        What the time goes into while nothing moves: "wait" while this rank has steps to make.
    """

    def __init__(self) -> None:
        self.pollers: list[Callable[[], bool]] = []
        self.tasks: list[Task[Any]] = []
        self.vitals: np.ndarray[Any, np.dtype[np.int64]] = np.zeros(2, dtype=np.int64)
        self.blocking = ""
        self._kept: list[Handle[Any]] = []
        # of those, what may not fail in silence, with what says that somebody was told
        self._heard: dict[Handle[Any], Callable[[], bool]] = {}
        self.last_poll_s = self.last_move_s = time.monotonic()
        # two counters, each written by one thread only
        self.gradients_asked = 0
        self.gradients_returned = 0
        # those owed by a main thread that waits here itself; it alone writes this
        self.put_aside = 0
        self._returned_s = 0.0  # when the last gradient came; written before its counter
        self.split = TimeSplit(self.last_poll_s)
        self.at_rest: Spent = "idle"
        self._began_poll_s = math.inf  # of the poll under way

    @property
    def computing(self) -> bool:
        """Whether the main thread owes a gradient."""
        return self.gradients_asked != self.gradients_returned

    @property
    def busy_elsewhere(self) -> bool:
        """Whether the main thread computes a gradient, rather than waits here before it does."""
        return self.gradients_asked - self.gradients_returned > self.put_aside

    def gradient_asked(self) -> None:
        """Count a gradient that the main thread owes from now on: for the thread that polls."""
        now_s = time.monotonic()
        self._account(self.split, min(self._began_poll_s, now_s), self.at_rest)
        self._account(self.split, now_s, "gossip")  # within a poll: a coroutine runs
        self.gradients_asked += 1
        self.split.computing = True
        if self.split.spans is not None:
            self.split.spans.cut()

    def gradient_returned(self) -> None:
        """Count a gradient as returned: for the thread that computed it."""
        self._returned_s = time.monotonic()
        self.gradients_returned += 1

    def rest(self, at_rest: Spent) -> None:
        """Say what time goes into from now on while nothing moves."""
        self._account(self.split, min(self._began_poll_s, time.monotonic()), self.at_rest)
        self.at_rest = at_rest

    def begin_split(self, now_s: float, before: Seconds, spans: Spans | None) -> None:
        """Let :attr:`split` count from `now_s`, which has just passed, on top of `before`."""
        self.split = TimeSplit(now_s, before, spans)
        self.split.computing = self.computing

    def end_spans(self, now_s: float) -> None:
        """Tell the spans of :attr:`split` what has gone on up to `now_s`, and no more."""
        spans = self.split.spans
        if spans is not None:
            self._account(self.split, min(self._began_poll_s, now_s), self.at_rest)
            self._account(self.split, now_s, "gossip")
            self.split.spans = None
            spans.close()

    def split_until(self, now_s: float) -> Seconds:
        """Return :attr:`split`, with what has gone on since something moved, up to `now_s`."""
        split = self.split.copy()
        self._account(split, min(self._began_poll_s, now_s), self.at_rest)
        self._account(split, now_s, "gossip")
        return split.seconds

    def _account(self, split: TimeSplit, until_s: float, on: Spent) -> None:
        """Put the time up to `until_s` down; a gradient's up to its return.

        What goes on changes only when something moves, so polls that move nothing cost nothing.
        """
        if split.computing and not self.computing:
            split.spend(min(self._returned_s, until_s), on)
            if self._returned_s <= until_s:
                split.computing = False
        split.spend(until_s, on)

    @property
    def open_tasks(self) -> int:
        """Background tasks that wait for anything but a message which may never come."""
        return sum(task.background and not task.is_idle for task in self.tasks)

    def begin(self, task: Task[Any]) -> None:
        """Take up a task; waiting is counted from now."""
        self.last_poll_s = self.last_move_s = time.monotonic()
        self.tasks.append(task)

    def spawn(self, coroutine: Coro[T], what: str) -> Task[T]:
        """Start a coroutine at once; it goes on with every :meth:`poll` until it is done.

        If it raises, the next :meth:`poll` raises too: no failure goes unnoticed because nobody
        awaits the task.
        """
        task = Task(coroutine, what, background=True)
        if not task.test() or task.failed:
            self.tasks.append(task)
        return task

    async def within(self, limit_s: float, coroutine: Coro[T], what: str) -> T:
        """Await `coroutine`, but not for longer than `limit_s` seconds.

        Raises
        ------
        TimeoutError
            With what the coroutine, now stopped, waited for.
        """
        task = Task(coroutine, what)
        self.begin(task)
        end_s = time.monotonic() + limit_s
        await Poll(lambda: task.done or time.monotonic() > end_s or None, what)
        if not task.done:
            waited_for = task.waits_for()
            self.cancel(task)
            raise TimeoutError(f"waited {limit_s:g} s for {waited_for}")
        return task.result()

    def keep(self, handle: Handle[T], told: Callable[[], bool] | None = None) -> Handle[T]:
        """Hold `handle`, and with it its buffers, until it is done, awaited or not.

        If it fails, and neither is somebody waiting for it nor was `told`, a :meth:`poll` raises;
        this does, if it has failed by now.
        """
        if not handle.test():
            self._kept.append(handle)
            if told is not None:
                self._heard[handle] = told
        elif told is not None and handle.failed:
            handle.result()  # raises
        return handle

    def poll(self) -> bool:
        """Let everything move that can; True if something did."""
        moved = False
        self._began_poll_s = time.monotonic()
        if self._kept:
            over = [handle for handle in self._kept if handle.test()]
            self._kept = [handle for handle in self._kept if not handle.done]
            for handle in over:
                self._hear(handle)
        for poller in self.pollers:
            moved |= poller()
        for task in tuple(self.tasks):
            before = task.moves
            if task.test():
                self.forget(task)
                if task.background:
                    task.result()
            moved |= task.moves != before
        self.last_poll_s = time.monotonic()
        if moved or self.busy_elsewhere:
            self.last_move_s = self.last_poll_s
        if moved:
            self.vitals[MOVES] += 1
            self._account(self.split, self._began_poll_s, self.at_rest)
            self._account(self.split, self.last_poll_s, "gossip")
        self._began_poll_s = math.inf
        return moved

    def _hear(self, handle: Handle[Any]) -> None:
        """Raise what a handle failed of, unless it is raised where that is awaited."""
        told = self._heard.pop(handle, None)
        if told is None or not handle.failed or told():
            return
        if not any(task.is_waiting_for(handle) for task in self.tasks):
            handle.result()

    def cancel(self, task: Task[Any]) -> None:
        """Take a task out and stop its coroutine."""
        self.forget(task)
        task.cancel()

    def fail_all(self, error: BaseException) -> None:
        """Fail whatever is under way."""
        tasks, self.tasks = self.tasks, []
        for task in tasks:
            task.fail(error)

    def forget(self, task: Task[Any]) -> None:
        """Take a task out, if it is in."""
        if task in self.tasks:  # a task that another one cancelled during this poll is out already
            self.tasks.remove(task)

    def waiting_for(self) -> str:
        """Return what the tasks wait for, in words."""
        return "; ".join(task.waits_for() for task in tuple(self.tasks)) or "nothing"
