"""A recorded run once more, serially: every rank in a thread of its own, one of which runs.

A rank blocks where it needs what another has not made yet, and nowhere else: the chronicles say
which message, which version of a vector, which coroutine. So what is computed does not depend on
when threads take turns. A vector that is read after it has changed is kept as it was until then.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from mpimomentum.simulator.recorded import Recorded
from mpimomentum.simulator.replay_worker import NO_MORE, ReplayWorker
from mpimomentum.topology import Topology
from mpimomentum.worker import Vector


class Diverged(RuntimeError):
    """The replay takes another course than the run: another program, or other data."""


class _Stopped(BaseException):
    """Ends a rank's thread."""


class Exchange:
    """What the ranks hand each other: queues, and vectors as they were."""

    def __init__(self, recorded: Sequence[Recorded]) -> None:
        self.queues: dict[Any, collections.deque[Any]] = collections.defaultdict(collections.deque)
        self._wanted = collections.Counter(read for one in recorded for read in one.reads())
        self._kept: dict[tuple[int, int, int], tuple[Vector, int]] = {}
        self._meetings: dict[tuple[str, int], dict[int, Any]] = {}
        self._results: dict[tuple[str, int], dict[int, Any]] = {}

    def written(self, window: int, rank: int, writes: int, x: Vector, version: int) -> None:
        """Keep a copy of a vector after a write, if somebody has read it then."""
        if (window, rank, writes) in self._wanted:
            self._kept[window, rank, writes] = (x.clone(), version)

    def there(self, window: int, rank: int, writes: int) -> bool:
        """Whether the vector has come so far."""
        return (window, rank, writes) in self._kept

    def read(self, window: int, rank: int, writes: int) -> tuple[Vector, int]:
        """Return a copy of the vector after a write, and its version."""
        key = (window, rank, writes)
        x, version = self._kept[key]
        self._wanted[key] -= 1
        if not self._wanted[key]:
            del self._kept[key]
            return x, version
        return x.clone(), version

    def meet(
        self, key: tuple[str, int], size: int, rank: int, value: Any, combine: Callable[..., Any]
    ) -> None:
        """Bring a value to a collective."""
        values = self._meetings.setdefault(key, {})
        values[rank] = value
        if len(values) == size:
            del self._meetings[key]
            self._results[key] = dict(enumerate(combine([values[r] for r in range(size)])))

    def met(self, key: tuple[str, int]) -> bool:
        """Whether all have come."""
        return key in self._results

    def result(self, key: tuple[str, int], rank: int) -> Any:
        """Return what a collective has for a rank."""
        results = self._results[key]
        value = results.pop(rank)
        if not results:
            del self._results[key]
        return value


class Replay:
    """The ranks of a recorded run.

    Parameters
    ----------
    topology : Topology
    seed : int
        Of the run.
    recorded : sequence of Recorded
        One a rank; used up.
    goals : sequence of int, optional
        Steps of each rank after which the replay ends; some make more, as far as others need that.

    Attributes
    ----------
    ends : list of str
        Of a run that failed, where each rank ends, in words; nothing if it does not come so far.
    """

    def __init__(
        self,
        topology: Topology,
        seed: int,
        recorded: Sequence[Recorded],
        goals: Sequence[int] | None = None,
    ) -> None:
        exchange = Exchange(recorded)
        self._goals = goals
        self.ends: list[str] = []
        self._threads = [_Rank(rank) for rank in range(topology.size)]
        self.workers = [
            ReplayWorker(exchange, rank, topology, seed, recorded[rank], self._threads[rank].block)
            for rank in range(topology.size)
        ]
        for worker, goal in zip(self.workers, goals or (), strict=goals is not None):
            worker.limit = goal

    def run(self, rank: Callable[[ReplayWorker], Coroutine[Any, Any, None]]) -> None:
        """Run one coroutine per rank to the end, or until all have come to their goals.

        Of a run that failed, as far as what was recorded goes.

        Raises
        ------
        Diverged
            If a rank does something else than it did, or waits for what nobody will make.
        BaseException
            Whatever a rank raised.
        """
        ranks = list(zip(self.workers, self._threads, strict=True))
        try:
            for worker, thread in ranks:
                thread.start(partial(_drive, worker, rank), worker.move)
            for worker, thread in ranks:  # each makes its State, if all are there at once, too
                self._carry_on(worker, thread)
            while not self._there():
                if any([self._carry_on(w, t) for w, t in ranks]) or self._further():
                    continue
                if not all(w.recorded.ended for w in self.workers):
                    break  # here the run has failed
                waiting = [f"rank {t.rank} waits for {t.what}" for t in self._threads if not t.over]
                raise Diverged(
                    "the replay takes another course than the recorded run: "
                    + "; ".join(waiting[:8])
                )
            if not self._there():
                self.ends = [_end(w, t) for w, t in ranks]
        finally:
            for thread in self._threads:
                thread.stop()

    def _carry_on(self, worker: ReplayWorker, thread: _Rank) -> bool:
        try:
            return thread.carry_on()
        except Exception as error:
            recorded = worker.recorded
            if isinstance(error, Diverged) or recorded.ended or recorded.turns:
                raise
            worker.raised = error  # here the run has failed, too
            return True

    def _there(self) -> bool:
        """Whether all are where the replay ends: not one that has raised before its goal."""
        ranks = zip(self.workers, self._threads, strict=True)
        if self._goals is None:
            return all(t.over and not t.error for _, t in ranks)
        return all(
            w.step > goal or w.held or not goal or (t.over and (not t.error or w.step == goal))
            for (w, t), goal in zip(ranks, self._goals, strict=True)
        )

    def _further(self) -> bool:
        """Let ranks make a step beyond their goals; False if none waits for that."""
        held = [w for w in self.workers if w.held]
        for w in held:
            w.limit += 1
        return bool(held)


def _end(worker: ReplayWorker, thread: _Rank) -> str:
    where = f"rank {worker.rank} ends in step {worker.step}"
    if worker.raised is not None:
        return f"{where}: {type(worker.raised).__name__}: {worker.raised}"
    if thread.over:
        return f"{where}, the last one"
    if thread.what == NO_MORE:
        return f"{where}, as far as it was recorded"
    return f"{where}, waiting for {thread.what}"


def _drive(worker: ReplayWorker, rank: Callable[[ReplayWorker], Coroutine[Any, Any, None]]) -> None:
    worker.drive(rank(worker))


class _Rank:
    """A thread that runs only while :meth:`carry_on` waits for it.

    Attributes
    ----------
    over : bool
        Whether it has come to its end.
    what : str
        What it waits for.
    error : BaseException or None
        What it has raised.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.over = False
        self.what = ""
        self._ready: Callable[[], bool] = lambda: True
        self._move: Callable[[], bool] = lambda: False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], None], move: Callable[[], bool]) -> None:
        """Make the thread; it does not run yet. `move` does what can be done while it waits."""
        self._move = move

        def main() -> None:
            self._go.acquire()
            try:
                if not self._stopping:
                    work()
            except _Stopped:
                pass
            except BaseException as error:  # raised again by carry_on()
                self.error = error
            self.over = True
            self._back.release()

        thread = threading.Thread(target=main, name=f"replay of rank {self.rank}")
        thread.start()
        self._thread = thread  # not if the system has no more: nobody could wait for it

    def block(self, ready: Callable[[], bool], what: str) -> None:
        """Wait, in the thread, until `ready`."""
        while not ready():
            self._ready, self.what = ready, what
            self._back.release()
            self._go.acquire()
            if self._stopping:
                raise _Stopped

    def carry_on(self) -> bool:
        """Run the thread until it waits or is over; False if it could not move."""
        if self.over:
            return False
        moved = self._move()
        if not self._ready():
            return moved
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            self.error.add_note(f"in the replay of rank {self.rank}")
            raise self.error
        return True

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self._stopping = True
        if self._thread is not None:
            if not self.over:
                self._go.release()
            self._thread.join()
