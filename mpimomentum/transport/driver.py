"""Who calls MPI: a communication thread of its own, or the program's thread.

The communication thread owns MPI and drives the coroutines; the main thread computes gradients
(:class:`ThreadDriver`). For debugging, :class:`InlineDriver` does both in the calling thread
(``MPIMOMENTUM_DRIVER=inline``); the same tests pass on both.
"""

from __future__ import annotations

import collections
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from mpimomentum.transport.hand_offs import HandOffs
from mpimomentum.transport.lane import Event, Lane
from mpimomentum.transport.progress import BEATS, Backoff, Coro, Engine, Task
from mpimomentum.worker import Handle

T = TypeVar("T")


class Driver(Protocol):
    """Runs coroutines on the thread that owns MPI, and gradients on the caller's."""

    engine: Engine
    hand_offs: HandOffs
    failure: BaseException | None
    """What ended the thread that owns MPI, or interrupted a run: nothing can be run any more."""

    def begin(self, coroutine: Coro[T], what: str) -> Task[T]:
        """Start `coroutine`; it goes on at the latest when :meth:`carry_on` is called."""

    def carry_on(self, task: Task[Any], until: Callable[[], bool] = lambda: False) -> None:
        """Compute here what coroutines ask for, until `task` is done or `until()` holds."""

    def run(self, coroutine: Coro[T], what: str) -> T:
        """Run `coroutine` to its end, computing here what it asks for; raise what it raises."""

    def compute(self, function: Callable[[], T], what: str) -> Handle[T]:
        """Have the thread inside :meth:`run` or :meth:`carry_on` call `function`."""

    def ask(self, request: Callable[[Handle[T]], None], what: str) -> Handle[T]:
        """Like :meth:`compute`, but the thread's own program completes the handle, later.

        `request` is called in that thread with the handle, for the program to find;
        :meth:`answer` completes it.
        """

    def answer(
        self, handle: Handle[T], value: T | None, error: BaseException | None = None
    ) -> None:
        """Complete a handle of :meth:`ask`, from the thread that was asked."""

    def nudge(self) -> None:
        """Have :meth:`carry_on` look at its condition again (from the thread that owns MPI)."""

    def wake(self) -> None:
        """Have the thread that owns MPI look at once at what there is to do (from any thread)."""

    def abort(self) -> None:
        """Have the thread that owns MPI end the job."""

    def close(self) -> None:
        """Stop; nothing can be run afterwards."""


class InlineDriver:
    """Everything in the calling thread: for debugging, and the reference in tests.

    Parameters
    ----------
    engine : Engine
    lane : Lane
        Of the calling thread.
    watch : callable
        Called whenever nothing moves: the watchdog.
    abort : callable
        Ends the job.
    backoff : Backoff
    """

    def __init__(
        self,
        engine: Engine,
        lane: Lane,
        watch: Callable[[], None],
        abort: Callable[[], None],
        backoff: Backoff,
    ) -> None:
        self.engine = engine
        self.hand_offs = HandOffs(lane, engine)
        self._watch = watch
        self._abort = abort
        self._backoff = backoff
        self._jobs: collections.deque[Callable[[], None]] = collections.deque()
        self._asked: dict[Handle[Any], Any] = {}  # gradients that the program owes: requests
        self.failure: BaseException | None = None

    def begin(self, coroutine: Coro[T], what: str) -> Task[T]:
        """Take `coroutine` up; it moves inside :meth:`carry_on` only."""
        _refuse_after(self.failure, coroutine)
        task = Task(self.hand_offs.enter(coroutine), what)
        self.engine.begin(task)
        return task

    def carry_on(self, task: Task[Any], until: Callable[[], bool] = lambda: False) -> None:
        """Let everything move; gradients run when nothing else can."""
        self.engine.last_poll_s = self.engine.last_move_s = time.monotonic()
        self.engine.put_aside = len(self._asked)
        self.engine.vitals[BEATS] = 0
        try:
            while not (task.done or until()):  # every move within a poll, which is timed
                if self.engine.poll():
                    self._backoff.reset()
                elif self._jobs:
                    self._jobs.popleft()()
                else:
                    self._watch()
                    self._backoff.pause(computing=False)
        except BaseException as error:
            self.failure = error
            self.engine.fail_all(error)
            raise
        self.engine.put_aside = 0
        self.hand_offs.leave()
        # nobody here counts while the program computes
        self.engine.vitals[BEATS] = -len(self._asked)

    def run(self, coroutine: Coro[T], what: str) -> T:
        """Run `coroutine` to its end."""
        task = self.begin(coroutine, what)
        self.carry_on(task)
        return _result(task, self.hand_offs)

    def compute(self, function: Callable[[], T], what: str) -> Handle[T]:
        """Put `function` off until nothing else can move."""
        handle: Handle[T] = Handle(what)
        asked = self.hand_offs.ask()

        def job() -> None:
            self.engine.gradient_asked()
            self.engine.vitals[BEATS] = -1  # nobody here counts meanwhile
            _carry_out(function, handle, asked, self.hand_offs)
            self.engine.vitals[BEATS] = 0
            self.engine.last_move_s = time.monotonic()

        self._jobs.append(job)
        return handle

    def nudge(self) -> None:
        """Do nothing: it looks at every turn."""

    def wake(self) -> None:
        """Nobody sleeps while something is computed."""

    def ask(self, request: Callable[[Handle[T]], None], what: str) -> Handle[T]:
        """Put `request` off until nothing else can move."""
        handle: Handle[T] = Handle(what)
        asked = self.hand_offs.ask()

        def job() -> None:
            self.engine.gradient_asked()
            self._asked[handle] = request
            self.hand_offs.accept(asked)
            request(handle)

        self._jobs.append(job)
        return handle

    def answer(
        self, handle: Handle[T], value: T | None, error: BaseException | None = None
    ) -> None:
        """Complete `handle`."""
        self.hand_offs.give(handle, value, error, hold=self._asked.pop(handle))
        self.engine.last_move_s = time.monotonic()

    def abort(self) -> None:
        """End the job."""
        self._abort()

    def close(self) -> None:
        """Nothing to stop."""


class ThreadDriver:
    """A communication thread beside the caller's: gossip hides behind compute.

    Parameters
    ----------
    engine : Engine
    set_up : callable
        Called first in the new thread: initialises MPI there, and returns the thread's lane.
    watch : callable
        Called in that thread whenever nothing moves: the watchdog.
    abort : callable
        Ends the job, in that thread while it lives.
    backoff : Backoff
    """

    def __init__(
        self,
        engine: Engine,
        set_up: Callable[[], Lane],
        watch: Callable[[], None],
        abort: Callable[[], None],
        backoff: Backoff,
    ) -> None:
        self.engine = engine
        self._watch = watch
        self._abort = abort
        self._backoff = backoff
        self._submitted: queue.SimpleQueue[Task[Any]] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Callable[[], None] | Task[Any]] = queue.SimpleQueue()
        self.failure: BaseException | None = None
        self._asked: dict[Handle[Any], Any] = {}  # gradients that the program owes: requests
        self._closing = False
        self._aborting = False
        ready: Handle[None] = Handle("start of the communication thread")
        started = threading.Event()
        ready.on_done(started.set)
        self._thread = threading.Thread(
            target=self._main, args=(set_up, ready), name="mpimomentum-communication", daemon=True
        )
        self._thread.start()
        started.wait()
        ready.result()

    def begin(self, coroutine: Coro[T], what: str) -> Task[T]:
        """Start `coroutine` on the communication thread."""
        _refuse_after(self.failure, coroutine)
        task = Task(self.hand_offs.enter(coroutine), what)
        task.on_done(lambda: self._jobs.put(task))  # wakes carry_on()
        self._submitted.put(task)
        self._backoff.wake.set()
        return task

    def carry_on(self, task: Task[Any], until: Callable[[], bool] = lambda: False) -> None:
        """Compute here what the coroutines over there ask for."""
        self.engine.put_aside = len(self._asked)
        try:
            while not (task.done or until()):
                job = self._jobs.get()
                if not isinstance(job, Task):  # a task that has ended: perhaps ours, perhaps not
                    job()
        except BaseException as error:  # Ctrl-C: the coroutine is still under way over there
            self.failure = error
            raise
        self.engine.put_aside = 0
        self.hand_offs.leave()

    def run(self, coroutine: Coro[T], what: str) -> T:
        """Run `coroutine` on the communication thread; its gradients here, meanwhile."""
        task = self.begin(coroutine, what)
        self.carry_on(task)
        return _result(task, self.hand_offs)

    def compute(self, function: Callable[[], T], what: str) -> Handle[T]:
        """Hand `function` to the thread that is inside :meth:`run`."""
        handle: Handle[T] = Handle(what)
        asked = self.hand_offs.ask()

        def job() -> None:
            _carry_out(function, handle, asked, self.hand_offs)
            self._backoff.wake.set()

        self.engine.gradient_asked()
        self._jobs.put(job)
        return handle

    def nudge(self) -> None:
        """Put something into the queue at which it waits."""
        self._jobs.put(lambda: None)

    def wake(self) -> None:
        """Cut the communication thread's nap short."""
        self._backoff.wake.set()

    def ask(self, request: Callable[[Handle[T]], None], what: str) -> Handle[T]:
        """Hand `request` to the program's thread."""
        handle: Handle[T] = Handle(what)
        asked = self.hand_offs.ask()

        def job() -> None:
            self._asked[handle] = request
            self.hand_offs.accept(asked)
            request(handle)

        self.engine.gradient_asked()
        self._jobs.put(job)
        return handle

    def answer(
        self, handle: Handle[T], value: T | None, error: BaseException | None = None
    ) -> None:
        """Complete `handle`, and wake the communication thread."""
        self.hand_offs.give(handle, value, error, hold=self._asked.pop(handle))
        self._backoff.wake.set()

    def abort(self) -> None:
        """Have the communication thread end the job, and wait for the end."""
        self._aborting = True
        self._backoff.wake.set()
        self._thread.join()
        self._abort()  # reached only if the thread had ended before: nobody else calls MPI then

    def close(self) -> None:
        """Stop the thread, with whatever is still under way there, and wait for it."""
        self._closing = True
        self._backoff.wake.set()
        self._thread.join()

    def _main(self, set_up: Callable[[], Lane], ready: Handle[None]) -> None:
        try:
            self.hand_offs = HandOffs(set_up(), self.engine)
        except BaseException as error:  # raised again in the caller's thread
            ready.fail(error)
            return
        ready.resolve(None)
        try:
            self._loop()
        except BaseException as error:  # reaches whoever waits in run(), now or later
            self.failure = error
            self.engine.fail_all(error)
            while not (self._closing or self._aborting):  # only this thread may abort
                for task in _emptied(self._submitted):
                    task.fail(error)
                self._backoff.wake.wait(0.1)
                self._backoff.wake.clear()
        for task in (*self.engine.tasks, *_emptied(self._submitted)):
            self.engine.cancel(task)
        if self._aborting:
            self._abort()

    def _loop(self) -> None:
        engine = self.engine
        while not self._aborting:
            for task in _emptied(self._submitted):
                engine.begin(task)
            if self._closing:
                return
            if engine.poll():
                self._backoff.reset()
            else:
                self._watch()
                # of what the device alone computes, polls take nothing
                self._backoff.pause(computing=engine.computing and not self.hand_offs.pending)


def _refuse_after(failure: BaseException | None, coroutine: Coro[Any]) -> None:
    if failure is not None:
        coroutine.close()
        raise RuntimeError(
            "the communication thread has failed or was interrupted, and what it did is lost: "
            "close this worker and make a new one"
        ) from failure


def _carry_out(
    function: Callable[[], T], handle: Handle[T], asked: Event, hand_offs: HandOffs
) -> None:
    value, error = None, None
    try:
        hand_offs.accept(asked)
        value = function()
    except BaseException as failure:  # raised again in the coroutine that awaits it
        error = failure
    hand_offs.give(handle, value, error, hold=function)


def _result(task: Task[T], hand_offs: HandOffs) -> T:
    value = task.result()
    hand_offs.leave(value)
    return value


def _emptied(items: queue.SimpleQueue[T]) -> list[T]:
    found = []
    while not items.empty():
        found.append(items.get())
    return found
