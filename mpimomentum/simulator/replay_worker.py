"""A Worker whose time is a chronicle: what it awaits is what the recorded rank went on with."""

from __future__ import annotations

import collections
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from mpimomentum.base_worker import BaseWorker
from mpimomentum.chronicle import SERVE, STEP
from mpimomentum.measures import Traffic
from mpimomentum.simulator import combining
from mpimomentum.simulator.recorded import Recorded
from mpimomentum.simulator.replay_shared import (
    Pass,
    ReplayCounter,
    ReplayMailbox,
    ReplayWindow,
    nothing,
)
from mpimomentum.topology import Topology
from mpimomentum.worker import Batch, Handle, Vector

if TYPE_CHECKING:
    from mpimomentum.simulator.replay import Exchange

T = TypeVar("T")

NO_MORE = "what it did then, which was not recorded"

Block = Callable[[Callable[[], bool], str], None]
"""Waits, in a rank's thread, until a condition holds; with words for what is waited for."""


class Rest(Handle[None]):
    """All of a rank's steps are made."""

    __slots__ = ()

    def __await__(self) -> Generator[Handle[Any], None, None]:
        """Let what was recorded come to its end."""
        yield self


class ReplayWorker(BaseWorker):
    """One rank of a :class:`~mpimomentum.simulator.replay.Replay`.

    Parameters
    ----------
    exchange : Exchange
    rank : int
    topology : Topology
    seed : int
    recorded : Recorded
    block : callable

    Attributes
    ----------
    task : int or None
        Which of the algorithm's coroutines runs.
    tell : callable
        Is told, in words, what others had part in, when it happens.
    limit : int
        Steps that may be made; :meth:`hold` waits for more.
    held : bool
        Whether it does.
    raised : Exception or None
    """

    def __init__(
        self,
        exchange: Exchange,
        rank: int,
        topology: Topology,
        seed: int,
        recorded: Recorded,
        block: Block,
    ) -> None:
        super().__init__(rank, topology.size, topology, seed)
        self.task: int | None = None
        self.exchange, self.recorded, self.block = exchange, recorded, block
        self.traffic = Traffic()
        self.tell: Callable[[str], None] = _ignore
        self.limit, self.held = sys.maxsize, False
        self.raised: Exception | None = None
        self._windows: list[ReplayWindow] = []
        self._mailboxes = self._counters = 0
        self._calls: collections.Counter[str | int] = collections.Counter()
        self._tasks: dict[int, Any] = {}
        self._at: dict[int, Any] = {}

    def now_s(self) -> float:
        """Nothing takes time."""
        return 0.0

    # -- whose turn it is --------------------------------------------------------------------------

    def drive(self, main: Coroutine[Any, Any, None]) -> None:
        """Run `main`, and what it spawns, in the recorded order."""
        self._tasks[STEP] = main
        turns = self.recorded.turns
        goes_on = self._resume(STEP)
        while goes_on:
            if not turns:
                self._no_more()
            task = turns[0][0] if turns else STEP
            if turns and not (task == STEP and isinstance(self._at[STEP], Rest)):
                turns[0][1] -= 1
                if not turns[0][1]:
                    turns.popleft()
                if not isinstance(self._at.get(task), Pass):
                    raise self._diverged("has come to its end, but went on when it was recorded")
            elif not isinstance(self._at[STEP], Rest):
                raise self._diverged(f"goes on to {self._at[STEP].what}, and did not then")
            goes_on = self._resume(task)
        self.catch_up()  # with what came while it finished
        left = self.recorded.left()
        if turns or left:
            more = f": {left} more" if left else ""
            raise self._diverged(f"is over, but went on when it was recorded{more}")

    def _resume(self, task: int) -> bool:
        """Run a coroutine to its next ``await``; False if it is over."""
        try:
            self._at[task] = self._tasks[task].send(None)
        except StopIteration:
            self._at.pop(task, None)
            return task != STEP
        return True

    def _diverged(self, how: str) -> RuntimeError:
        from mpimomentum.simulator.replay import Diverged

        return Diverged(
            f"the replay takes another course than the recorded run: rank {self.rank}, step "
            f"{self.step}, {how}"
        )

    def _no_more(self) -> None:
        """Stay where a run ends that failed; others may still change windows."""
        self.block(lambda: self.recorded.ended, NO_MORE)

    def pauses(self) -> None:
        """Note that none of the coroutines runs."""
        self.task = None

    def begins(self) -> Generator[Handle[Any], None, None]:
        """Let a coroutine begin when it is its turn."""
        task, self.task = self.task, None
        yield Pass(nothing, "its turn")
        self.task = task

    def next_of(self, queue: deque[T], what: str) -> T:
        """Return what comes next in a chronicle."""
        if not queue:
            self._no_more()
            raise self._diverged(f"asks for {what}, and did not then")
        return queue.popleft()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], what: str) -> Handle[Any]:
        """Run ``serve`` beside the steps."""
        self._tasks[SERVE] = coroutine
        self._resume(SERVE)
        return Handle(what)

    def cancel(self, task: Any) -> None:
        """Stop ``serve``."""
        self._tasks[SERVE].close()
        self._at.pop(SERVE, None)

    async def start(self) -> None:
        """Nothing to wait for."""

    def stepping(self, has_steps: bool) -> None:
        """Nothing to note: there is no time."""

    async def quiesce(self) -> None:
        """Wait until all that was recorded of the own windows has happened."""
        await Rest("the end of the recorded run")
        self.catch_up()

    def catch_up(self) -> None:
        """Wait until the own windows are as the next operation finds them."""
        for window in self._windows:
            window.catch_up()

    def hold(self) -> None:
        """Wait, between two steps, until further ones may be made."""
        self.held = True
        self.block(lambda: self.step < self.limit, "a further step to be asked for")
        self.held = False

    def move(self) -> bool:
        """Let come into the own windows what is due and there; whether anything was."""
        return any([window.move() for window in self._windows])

    # -- the contract ------------------------------------------------------------------------------

    def gradient(self, x: Vector, batch: Batch) -> Handle[Vector]:
        """Compute a gradient."""
        return Pass(self._computed(lambda: self.objective.gradient(x, batch)), "a gradient")

    def full_gradient(self, x: Vector) -> Handle[Vector]:
        """Compute a full gradient."""
        full: Callable[[Vector], Vector] = self.objective.full_gradient  # type: ignore[attr-defined]
        return Pass(self._computed(lambda: full(x)), "a full gradient")

    def mean_gradient(self, x: Vector, batch: Batch) -> Handle[Vector]:
        """Compute a gradient, then sum in ascending order of rank and divide."""
        g = self._computed(lambda: self.objective.gradient(x, batch))
        if self.raised is not None:
            return Pass(g, "a gradient")
        return self._meet("mean gradient", g(), combining.means)

    def _computed(self, gradient: Callable[[], Vector]) -> Callable[[], Vector]:
        """Return what hands a gradient over; one that fails does so where it is awaited."""
        try:
            g = gradient()
        except Exception as error:
            self.raised = error
            return partial(_raise, error)
        return lambda: g

    def allreduce(self, v: Vector) -> Handle[Vector]:
        """Sum in ascending order of rank."""
        return self._meet("allreduce", v, combining.sums)

    def allgather(self, v: Vector) -> Handle[Vector]:
        """Gather in order of rank."""
        return self._meet("allgather", v, combining.stacked)

    def alltoall(self, rows: Vector) -> Handle[Vector]:
        """Transpose blocks of rows."""
        return self._meet("alltoall", rows, combining.transposed)

    def _meet(self, name: str, v: Vector, combine: Callable[[list[Vector]], Any]) -> Handle[Vector]:
        key = (name, self._calls[name])
        self._calls[name] += 1
        exchange = self.exchange
        exchange.meet(key, self.size, self.rank, v.clone(), combine)
        what = f"all ranks to come to {name}"

        def fetch() -> Vector:
            self.block(lambda: exchange.met(key), what)
            result: Vector = exchange.result(key, self.rank)
            return result

        return Pass(fetch, what)

    def neighbor_allgather(self, v: Vector, t: int | None = None) -> Handle[dict[int, Vector]]:
        """Exchange with the neighbours of step `t`."""
        t = self.step if t is None else t
        call = (t, self._calls[t])  # of several in a step, the first sent is for the first asked
        self._calls[t] += 1
        mixing, queues = self.mixing(t), self.exchange.queues
        for target in mixing.out_weights.keys() - {self.rank}:
            queues[call, self.rank, target].append(v.clone())
        sources = sorted(mixing.in_weights.keys() - {self.rank})
        asked = {source: queues[call, source, self.rank] for source in sources}
        what = f"models of step {t} from ranks {sources}"

        def fetch() -> dict[int, Vector]:
            self.block(lambda: all(asked.values()), what)
            found = {source: queue.popleft() for source, queue in asked.items()}
            for source in sources:
                del queues[call, source, self.rank]
            return dict(sorted({self.rank: v, **found}.items()))

        return Pass(fetch, what)

    async def numbers(self, v: Vector) -> list[float]:
        """Return the elements of a short vector."""
        return await Pass(v.tolist, "numbers")

    def window(self, name: str, x0: Vector) -> ReplayWindow:
        """Make this rank's part of a window."""
        self._windows.append(ReplayWindow(self, name, len(self._windows), x0))
        return self._windows[-1]

    def mailbox(self, name: str) -> ReplayMailbox:
        """Make this rank's part of a mailbox."""
        self._mailboxes += 1
        return ReplayMailbox(self, name, self._mailboxes - 1)

    def counter(self, name: str, home: int = 0) -> ReplayCounter:
        """Make a counter."""
        self._counters += 1
        counted = self.recorded.counted[self._counters - 1]
        return ReplayCounter(self, counted, at_home=self.rank == home)


def _raise(error: Exception) -> NoReturn:
    raise error


def _ignore(words: str) -> None:
    pass
