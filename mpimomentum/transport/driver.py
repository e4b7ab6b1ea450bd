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

from mpimomentum.transport.progress import BEATS, Backoff, Coro, Engine, Task
from mpimomentum.worker import Handle

T = TypeVar("T")


class Driver(Protocol):
    """Runs coroutines on the thread that owns MPI, and gradients on the caller's."""

    engine: Engine
    failure: BaseException | None
    """What ended the thread that owns MPI, or interrupted a run: nothing can be run any more."""

    def run(self, coroutine: Coro[T], what: str) -> T:
        """Run `coroutine` to its end, computing here what it asks for; raise what it raises."""

    def compute(self, function: Callable[[], T], what: str) -> Handle[T]:
        """Have the thread that called :meth:`run` call `function` (for coroutines)."""

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
    watch : callable
        Called whenever nothing moves: the watchdog.
    abort : callable
        Ends the job.
    backoff : Backoff
    """

    def __init__(
        self,
        engine: Engine,
        watch: Callable[[], None],
        abort: Callable[[], None],
        backoff: Backoff,
    ) -> None:
        self.engine = engine
        self._watch = watch
        self._abort = abort
        self._backoff = backoff
        self._jobs: collections.deque[Callable[[], None]] = collections.deque()
        self.failure: BaseException | None = None

    def run(self, coroutine: Coro[T], what: str) -> T:
        """Run `coroutine` to its end; gradients run when nothing else can move."""
        _refuse_after(self.failure, coroutine)
        task = Task(coroutine, what)
        self.engine.begin(task)
        try:
            while not task.done:  # every move within a poll, which is timed
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
        self.engine.forget(task)
        return task.result()

    def compute(self, function: Callable[[], T], what: str) -> Handle[T]:
        """Put `function` off until nothing else can move."""
        handle: Handle[T] = Handle(what)

        def job() -> None:
            self.engine.gradient_asked()
            self.engine.vitals[BEATS] = -1  # nobody here counts meanwhile
            _carry_out(function, handle)
            self.engine.vitals[BEATS] = 0
            self.engine.gradient_returned()
            self.engine.last_move_s = time.monotonic()

        self._jobs.append(job)
        return handle

    def wake(self) -> None:
        """Nobody sleeps while something is computed."""

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
        Called first in the new thread: initialises MPI there.
    watch : callable
        Called in that thread whenever nothing moves: the watchdog.
    abort : callable
        Ends the job, in that thread while it lives.
    backoff : Backoff
    """

    def __init__(
        self,
        engine: Engine,
        set_up: Callable[[], None],
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

    def run(self, coroutine: Coro[T], what: str) -> T:
        """Run `coroutine` on the communication thread; its gradients here, meanwhile."""
        _refuse_after(self.failure, coroutine)
        task = Task(coroutine, what)
        task.on_done(lambda: self._jobs.put(task))
        self._submitted.put(task)
        self._backoff.wake.set()
        try:
            while (job := self._jobs.get()) is not task:
                if not isinstance(job, Task):
                    job()
        except BaseException as error:  # Ctrl-C: the coroutine is still under way over there
            self.failure = error
            raise
        return task.result()

    def compute(self, function: Callable[[], T], what: str) -> Handle[T]:
        """Hand `function` to the thread that is inside :meth:`run`."""
        handle: Handle[T] = Handle(what)

        def job() -> None:
            try:
                _carry_out(function, handle)
            finally:
                self.engine.gradient_returned()
                self._backoff.wake.set()

        self.engine.gradient_asked()
        self._jobs.put(job)
        return handle

    def wake(self) -> None:
        """Cut the communication thread's nap short."""
        self._backoff.wake.set()

    def abort(self) -> None:
        """Have the communication thread end the job, and wait for the end."""
        self._aborting = True
        self._backoff.wake.set()
        self._thread.join()
        self._abort()  # reached only if the thread had ended before: nobody else calls MPI then

    def close(self) -> None:
        """Stop the thread once its tasks are done, and wait for it."""
        self._closing = True
        self._backoff.wake.set()
        self._thread.join()

    def _main(self, set_up: Callable[[], None], ready: Handle[None]) -> None:
        try:
            set_up()
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
            if self._closing and (self.failure is not None or not engine.tasks):
                return
            if engine.poll():
                self._backoff.reset()
            else:
                self._watch()
                self._backoff.pause(computing=engine.computing)


def _refuse_after(failure: BaseException | None, coroutine: Coro[Any]) -> None:
    if failure is not None:
        coroutine.close()
        raise RuntimeError(
            "the communication thread has failed or was interrupted, and what it did is lost: "
            "close this worker and make a new one"
        ) from failure


def _carry_out(function: Callable[[], T], handle: Handle[T]) -> None:
    try:
        value = function()
    except BaseException as error:  # raised again in the coroutine that awaits it
        handle.fail(error)
    else:
        handle.resolve(value)


def _emptied(items: queue.SimpleQueue[T]) -> list[T]:
    found = []
    while not items.empty():
        found.append(items.get())
    return found
