"""A Worker on the virtual clock."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mpimomentum.base_worker import BaseWorker
from mpimomentum.measures import Seconds, Spent, TimeSplit, Traffic
from mpimomentum.simulator import combining
from mpimomentum.simulator.clock import ComputeTimes
from mpimomentum.simulator.serving import Serving
from mpimomentum.simulator.shared import VirtualCounter, VirtualMailbox, VirtualWindow
from mpimomentum.simulator.sums import VirtualSums
from mpimomentum.topology import Topology
from mpimomentum.worker import Batch, Handle, Objective, Vector

if TYPE_CHECKING:
    from mpimomentum.simulator.simulation import Process, Simulation


T = TypeVar("T")


class VirtualWorker(BaseWorker):
    """One of the workers of a :class:`~mpimomentum.simulator.Simulation`.

    Parameters
    ----------
    simulation : Simulation
    rank : int
    topology : Topology
    seed : int
    compute_times : ComputeTimes
    serve_s : float
        Of a pass over the whole model for others.

    Attributes
    ----------
    serving : Serving
        What this rank does for others.
    """

    def __init__(
        self,
        simulation: Simulation,
        rank: int,
        topology: Topology,
        seed: int,
        compute_times: ComputeTimes,
        serve_s: float,
    ) -> None:
        super().__init__(rank, simulation.size, topology, seed)
        self.serving = Serving(simulation, self, serve_s)
        self.windows: list[VirtualWindow] = []
        self._simulation = simulation
        self._compute_times = compute_times
        self._counters: list[VirtualCounter] = []
        self._calls: dict[str, int] = {}
        self._collective = Traffic()
        self._early = _Queues[Vector]()  # (source, t) -> models that nobody asked for yet
        self._expecting = _Queues[_Exchange]()  # (source, t) -> who waits for a model
        self._sent: list[VirtualMailbox] = []
        self._sums: list[VirtualSums] = []
        self._split = TimeSplit(0.0)
        self._owed = 0  # gradients under way
        self._travelling = 0  # own reads, averages, adds and counter requests under way
        self._at_rest: Spent = "idle"

    def now_s(self) -> float:
        """Virtual seconds."""
        return self._simulation.now_s

    def bind(self, objective: Objective, lr: float, weight_decay: float = 0.0) -> None:
        """Begin a run with this objective, whose messages may stand for those of a larger one."""
        super().bind(objective, lr, weight_decay)
        self._simulation.stand_for(objective.dim)
        self.serving.dim = objective.dim

    # -- compute -----------------------------------------------------------------------------------

    def gradient(self, x: Vector, batch: Batch) -> Handle[Vector]:
        """Compute a gradient; it takes virtual time."""
        objective = self.objective
        return self._compute(lambda: objective.gradient(x, batch), "a gradient")

    def full_gradient(self, x: Vector) -> Handle[Vector]:
        """Compute a full gradient; it takes the same virtual time as a mini-batch one."""
        full: Callable[[Vector], Vector] = self.objective.full_gradient  # type: ignore[attr-defined]
        return self._compute(lambda: full(x), "a full gradient")

    def mean_gradient(self, x: Vector, batch: Batch) -> Handle[Vector]:
        """Compute a gradient, then sum in ascending order of rank and divide.

        The virtual clock charges the whole gradient and then the whole allreduce: it has no idea
        of parts, so an algorithm never looks faster here than it may be on ranks.
        """
        mean: Handle[Vector] = Handle("the mean gradient")
        gradient = self.gradient(x, batch)

        def average() -> None:
            if gradient.failed:
                _pass_on(gradient, mean)
                return
            share = (self.size - 1) * _nbytes(gradient.result()) // self.size
            rounds = 2 * (self.size - 1)
            g = gradient.result().clone()
            total = self._meet("mean gradient", g, combining.means, 2 * share, rounds)
            total.on_done(lambda: _pass_on(total, mean))

        gradient.on_done(average)
        return mean

    def _compute(self, function: Callable[[], Vector], what: str) -> Handle[Vector]:
        handle: Handle[Vector] = Handle(what)
        self._account(owed=1)

        def finish() -> None:
            self._account(owed=-1)
            try:
                value = function()
            except BaseException as error:  # raised again where it is awaited
                handle.fail(error)
            else:
                handle.resolve(value)

        self._simulation.at(self.now_s() + self._compute_times.draw_s(), finish)
        return handle

    # -- collectives -------------------------------------------------------------------------------

    def allreduce(self, v: Vector) -> Handle[Vector]:
        """Sum in ascending order of rank."""
        self._leaving(v, "what this rank brings to an allreduce")
        share = (self.size - 1) * _nbytes(v) // self.size
        return self._meet("allreduce", v.clone(), combining.sums, 2 * share, 2 * (self.size - 1))

    def allgather(self, v: Vector) -> Handle[Vector]:
        """Gather in order of rank."""
        self._leaving(v, "what this rank brings to an allgather")
        sent = (self.size - 1) * _nbytes(v)
        return self._meet("allgather", v.clone(), combining.stacked, sent, self.size - 1)

    def alltoall(self, rows: Vector) -> Handle[Vector]:
        """Transpose blocks of rows."""
        self._leaving(rows, "what this rank brings to an alltoall")
        sent = (self.size - 1) * _nbytes(rows) // self.size
        transposed = combining.transposed
        return self._meet("alltoall", rows.clone(), transposed, sent, self.size - 1, "pairs")

    def neighbor_allgather(self, v: Vector, t: int | None = None) -> Handle[dict[int, Vector]]:
        """Exchange with the neighbours of step `t`; waits for them alone."""
        self._leaving(v, "what this rank sends to its neighbours")
        t = self.step if t is None else t
        mixing = self.mixing(t)
        sources = sorted(mixing.in_weights.keys() - {self.rank})
        mine = _Exchange({self.rank: v}, sources, t)
        for source in sources:
            model = self._early.take((source, t))
            if model is None:
                self._expecting.put((source, t), mine)
            else:
                mine.deliver(source, model)
        for target in sorted(mixing.out_weights.keys() - {self.rank}):
            self._collective.count(_nbytes(v))
            self._post(target, t, v.clone())
        mine.settle()
        return mine

    def _post(self, target: int, t: int, model: Vector) -> None:
        peer = self._simulation.workers[target]
        self._simulation.send(
            self.rank,
            target,
            _nbytes(model),
            lambda: peer._deliver(self.rank, t, model),
            operation="exchange",
        )

    def _deliver(self, source: int, t: int, model: Vector) -> None:
        exchange = self._expecting.take((source, t))
        if exchange is None:
            self._early.put((source, t), model)
        else:
            exchange.deliver(source, model)
            exchange.settle()

    def _meet(
        self,
        name: str,
        value: Any,
        combine: Callable[[list[Any]], list[Any]],
        sent: int,
        rounds: int,
        pattern: str = "ring",
    ) -> Handle[Any]:
        self._collective.count(sent, rounds)
        call = self._calls[name] = self._calls.get(name, -1) + 1
        rounds = min(rounds, _log_rounds(self.size))
        return self._simulation.meet(
            (name, call), (self.rank, value), combine, sent, rounds, pattern
        )

    # -- shared objects ----------------------------------------------------------------------------

    def window(self, name: str, x0: Vector) -> VirtualWindow:
        """Make this rank's part of a window."""
        parts = self._simulation.parts("window", len(self.windows))
        window = VirtualWindow(self._simulation, name, self.rank, x0, parts)
        self.windows.append(window)
        return window

    def mailbox(self, name: str) -> VirtualMailbox:
        """Make this rank's part of a mailbox."""
        parts = self._simulation.parts("mailbox", len(self._sent))
        mailbox = VirtualMailbox(self._simulation, name, self.rank, parts)
        self._sent.append(mailbox)
        return mailbox

    def counter(self, name: str, home: int = 0) -> VirtualCounter:  # a label
        """Make a counter."""
        parts = self._simulation.parts("counter", len(self._counters))
        if parts[home] is None:
            parts[home] = [0]
        counter = VirtualCounter(self, self._simulation, parts[home], home)
        self._counters.append(counter)
        return counter

    def sums(self, name: str, x0: Vector, rows: int) -> VirtualSums:
        """Make sums."""
        parts = self._simulation.parts("sums", len(self._sums))
        self._sums.append(VirtualSums(self._simulation, name, self.rank, x0, rows, parts))
        return self._sums[-1]

    # -- for the runtime ---------------------------------------------------------------------------

    def spawn(self, coroutine: Coroutine[Any, Any, Any], what: str) -> Process:
        """Run beside the current coroutine."""
        return self._simulation.spawn(coroutine, what, service=True)

    def cancel(self, process: Process) -> None:
        """Stop what :meth:`spawn` started."""
        process.cancel()

    async def start(self) -> None:
        """Wait until every rank has made its windows."""
        await self._simulation.meet(("start", 0), (self.rank, None), lambda values: values)
        if self.spans is not None:
            self.spans.begin(self.now_s, self.now_s())
        self._split = TimeSplit(self.now_s(), spans=self.spans)

    def end_spans(self) -> None:
        """End the spans of the run."""
        self._account()
        self._split.spans = None
        if self.spans is not None:
            self.spans.close()

    def stepping(self, has_steps: bool) -> None:
        """Say whether this rank has steps to make: what it waits for is idle time if not."""
        self._account()
        self._at_rest = "wait" if has_steps else "idle"

    def time_split(self) -> Seconds:
        """Return what this rank's virtual time went into."""
        self._account()
        return self._split.copy().seconds

    def travel(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Carry out an operation of this rank's; the time it takes is gossip."""
        self._simulation.spawn(self._travel(coroutine))

    async def _travel(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.departs()
        await coroutine
        self.arrives()

    def departs(self) -> None:
        """Count an operation of this rank's as under way."""
        self._account(travelling=1)

    def arrives(self) -> None:
        """Count it as carried out."""
        self._account(travelling=-1)

    def _account(self, owed: int = 0, travelling: int = 0) -> None:
        """Put the time so far down, then count what begins (1) or ends (-1) now."""
        now_s, split = self._simulation.now_s, self._split
        if now_s > split.since_s:
            split.spend(now_s, "gossip" if self._travelling else self._at_rest)
        if owed > 0 and split.spans is not None:
            split.spans.cut()
        self._owed += owed
        self._travelling += travelling
        split.computing = self._owed > 0

    async def quiesce(self) -> None:
        """Wait until every rank has come here and nothing is in flight."""
        await self._simulation.quiesce()

    @property
    def traffic(self) -> Traffic:
        """What this rank's communication moved."""
        parts = [w.traffic for w in self.windows] + [m.traffic for m in self._sent]
        parts += [c.traffic for c in self._counters] + [s.traffic for s in self._sums]
        moved, scale = Traffic.total([self._collective, *parts]), self._simulation.network.scale
        return moved if scale == 1 else Traffic(round(moved.nbytes * scale), moved.messages)


class _Queues(Generic[T]):
    """A queue, first in first out, for each (source, t); an empty one takes no memory."""

    def __init__(self) -> None:
        self._queues: dict[tuple[int, int], collections.deque[T]] = {}

    def put(self, key: tuple[int, int], item: T) -> None:
        self._queues.setdefault(key, collections.deque()).append(item)

    def take(self, key: tuple[int, int]) -> T | None:
        queue = self._queues.get(key)
        if queue is None:
            return None
        item = queue.popleft()
        if not queue:
            del self._queues[key]
        return item


class _Exchange(Handle[dict[int, Vector]]):
    """What one rank has received in one neighbor_allgather."""

    __slots__ = ("_missing", "_models")

    def __init__(self, models: dict[int, Vector], sources: list[int], t: int) -> None:
        super().__init__(f"models of step {t} from ranks {sources}")
        self._models = models
        self._missing = set(sources)

    def deliver(self, source: int, model: Vector) -> None:
        self._models[source] = model
        self._missing.discard(source)

    def settle(self) -> None:
        if not self._missing and not self._done:
            self.resolve(dict(sorted(self._models.items())))


def _nbytes(v: Vector) -> int:
    return v.numel() * v.element_size()


def _log_rounds(size: int) -> int:
    return 2 * math.ceil(math.log2(size)) if size > 1 else 0


def _pass_on(source: Handle[T], target: Handle[T]) -> None:
    try:
        value = source.result()
    except BaseException as error:  # raised again where `target` is awaited
        target.fail(error)
    else:
        target.resolve(value)
