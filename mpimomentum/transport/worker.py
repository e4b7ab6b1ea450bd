"""A Worker on a real MPI rank."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from mpimomentum.base_worker import BaseWorker
from mpimomentum.codecs.arrays import as_tensor
from mpimomentum.measures import Seconds, Traffic
from mpimomentum.topology import Topology
from mpimomentum.transport.accumulate import AccumulateWindow
from mpimomentum.transport.clocks import ClockReading, compare_clocks
from mpimomentum.transport.counter import FetchAddCounter
from mpimomentum.transport.lane import Lane, lane_of
from mpimomentum.transport.mailbox import PointToPoint
from mpimomentum.transport.mean_gradient import MeanGradients
from mpimomentum.transport.node_shared import NodeShared, require_room
from mpimomentum.transport.placement import OF_DEVICE
from mpimomentum.transport.progress import Coro, Task
from mpimomentum.transport.request_word import RequestWord
from mpimomentum.transport.session import CPU, Device, Session
from mpimomentum.transport.side_channel import SideChannel
from mpimomentum.transport.staging import Probe, untried
from mpimomentum.transport.sums import AccumulateSums
from mpimomentum.transport.window import InboxWindow
from mpimomentum.worker import Batch, Handle, Objective, Vector

T = TypeVar("T")


@dataclass(frozen=True)
class Moved:
    """What a rank's communication came to: its traffic, averages begun, those found busy."""

    nbytes: int = 0
    messages: int = 0
    attempts: int = 0
    busy: int = 0


class MPIWorker(Session, BaseWorker):
    """The rank of this process. Collective to make and to :meth:`close`.

    The methods of the contract (worker.Worker) are for coroutines, which run on the communication
    thread; those of :class:`Session` are for the program.

    Parameters
    ----------
    topology : callable
        size -> Topology.
    seed : int
        Of all random streams; the same on all ranks.
    driver : {"thread", "inline"}
        Whether a communication thread of its own drives MPI.
    timeout_s : float
        Longest wait before the watchdog ends the job.
    backoff_s : float
        Nap between two polls when nothing moves.
    device, make_lane, staging, probe
        As of :class:`Session`.

    Attributes
    ----------
    about_device : mapping
        What a run says of the ranks' devices.

    Raises
    ------
    RuntimeError
        If MPI does not start, or starts as n jobs of one rank.
    ValueError
        On all ranks, if the device of one cannot be used.
    """

    about_device: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        topology: Callable[[int], Topology],
        seed: int = 0,
        *,
        driver: str = "thread",
        timeout_s: float = 300.0,
        backoff_s: float = 200e-6,
        device: Device = CPU,
        make_lane: Callable[[torch.device], Lane] = lane_of,
        staging: str | None = "auto",
        probe: Probe = untried,
    ) -> None:
        Session.__init__(self, driver, timeout_s, backoff_s, device, make_lane, staging, probe)
        self._mean_gradients = MeanGradients(self._driver, self.collectives)
        self._began_s = time.monotonic()
        self._windows: list[InboxWindow | AccumulateWindow] = []
        self._mailboxes: list[PointToPoint] = []
        self._counters: list[FetchAddCounter] = []
        self._sums: list[AccumulateSums] = []
        self._words: list[RequestWord] = []
        self._channels: list[SideChannel] = []
        self._shared: list[NodeShared] = []
        self._before, self._spent_before = Moved(), Seconds()
        try:
            graph = topology(self.env.size)
        except ValueError:  # on all ranks alike
            self.close()
            raise
        BaseWorker.__init__(self, self.env.rank, self.env.size, graph, seed)

    # -- for the program ---------------------------------------------------------------------------

    def share(self, tensors: Sequence[torch.Tensor] | None) -> list[torch.Tensor]:
        """Hold `tensors` in memory once per node, for all its ranks. Collective.

        Parameters
        ----------
        tensors : sequence of Tensor, or None
            On the first rank of each node (``worker.env.local_rank == 0``), on the CPU; None
            elsewhere. Copied, unless the rank is alone on its node.

        Returns
        -------
        list of Tensor
            With the same content on all ranks of the node. They may be read until :meth:`close`,
            which frees them: later reads end in a segmentation fault. Nobody may write them, since
            the other ranks read them at any time.

        Raises
        ------
        OSError
            On all ranks, if a node's shared memory has no room.
        """
        return self.run(self._share(tensors), "sharing tensors on a node")

    async def _share(self, tensors: Sequence[torch.Tensor] | None) -> list[torch.Tensor]:
        await require_room(self.env, self.collectives, tensors)
        self._shared.append(NodeShared(self.env, tensors))
        return self._shared[-1].tensors

    # -- the contract ------------------------------------------------------------------------------

    def now_s(self) -> float:
        """Wall seconds since :meth:`start`."""
        return time.monotonic() - self._began_s

    def gradient(self, x: Vector, batch: Batch) -> Handle[Vector]:
        """Start a gradient on the program's thread, or ask the user's own loop for one."""
        objective = self.objective
        if hasattr(objective, "asked"):
            return self._ask("gradient", x, batch)
        return self._driver.compute(lambda: objective.gradient(x, batch), "a gradient")

    def _ask(self, kind: str, x: Vector, batch: Batch) -> Handle[Vector]:
        """Call the objective's ``asked(kind, x, batch, handle, None)`` in the program's thread."""
        asked = self.objective.asked  # type: ignore[attr-defined]
        return self._driver.ask(
            lambda handle: asked(kind, x, batch, handle, None), "this rank's program to call step()"
        )

    def full_gradient(self, x: Vector) -> Handle[Vector]:
        """Start a full gradient on the program's thread, or ask the user's own loop for one."""
        if hasattr(self.objective, "asked"):
            return self._ask("full", x, None)
        full: Callable[[Vector], Vector] = self.objective.full_gradient  # type: ignore[attr-defined]
        return self._driver.compute(lambda: full(x), "a full gradient")

    def mean_gradient(self, x: Vector, batch: Batch) -> Handle[Vector]:
        """Start a gradient on the program's thread, and average its parts as they come."""
        return self._engine.keep(self._mean_gradients.at(self.objective, x, batch))

    async def numbers(self, v: Vector) -> list[float]:
        """Return the elements of a short vector; of a device's once the lane has come so far."""
        if not self.lane.holds(v):
            return v.tolist()
        copy = self.lane.staging(v.numel(), v.dtype)
        self.lane.begin(lambda: copy.copy_(v, non_blocking=True))
        await self.lane.done("numbers from the device", hold=(copy, v))
        return copy.tolist()

    def compute(self, function: Callable[[], T], what: str) -> Handle[T]:
        """Start any other computation on the program's thread."""
        return self._driver.compute(function, what)

    def _leaving(self, v: Vector, what: str) -> None:
        """Look at what leaves; of what is on a device, the copy that leaves is looked at."""
        if not self.lane.holds(v):
            super()._leaving(v, what)

    def allreduce(self, v: Vector) -> Handle[Vector]:
        """Sum over all ranks."""
        v = as_tensor(v)
        self._leaving(v, "what this rank brings to an allreduce")
        return self._engine.keep(self.collectives.allreduce(v))

    def vote(self, v: Vector) -> Handle[Vector]:
        """Sum over all ranks what is no part of the run, and not counted in its traffic."""
        return self._engine.keep(self.collectives.allreduce(v, counted=False))

    def allgather(self, v: Vector) -> Handle[Vector]:
        """Gather from all ranks."""
        v = as_tensor(v)
        self._leaving(v, "what this rank brings to an allgather")
        return self._engine.keep(self.collectives.allgather(v))

    def alltoall(self, rows: Vector) -> Handle[Vector]:
        """Exchange rows with all ranks."""
        rows = as_tensor(rows)
        self._leaving(rows, "what this rank brings to an alltoall")
        return self._engine.keep(self.collectives.alltoall(rows))

    def neighbor_allgather(self, v: Vector, t: int | None = None) -> Handle[dict[int, Vector]]:
        """Exchange with the neighbours of step `t`."""
        v = as_tensor(v)
        self._leaving(v, "what this rank sends to its neighbours")
        t = self.step if t is None else t
        handle = self.collectives.neighbor_allgather(v, self.mixing(t), t)
        return self._engine.keep(handle)

    def broadcast(self, v: Vector, root: int = 0) -> Handle[Vector]:
        """Overwrite `v` with that of `root`."""
        return self._engine.keep(self.collectives.broadcast(v, root))

    def gather(self, v: Vector) -> Handle[list[Vector] | None]:
        """Collect a vector of any length from every rank at rank 0; None elsewhere."""
        return self.spawn(self.collectives.gather(v), "all ranks to come to the gather")

    def window(self, name: str, x0: Vector, kind: str = "inbox") -> InboxWindow | AccumulateWindow:
        """Make a window; `kind` "accumulate" takes element-wise atomic sums instead."""
        x0 = as_tensor(x0)
        window: InboxWindow | AccumulateWindow
        if kind == "accumulate":
            if self.lane.holds(x0):
                raise ValueError(f"window {name!r}: kind 'accumulate' is for vectors of the host")
            window = AccumulateWindow(self.env, name, x0)
        elif self.staging.windows == "host":
            window = InboxWindow(self.env, self._engine, name, x0, self.guard)
        else:
            make = OF_DEVICE[self.staging.windows]
            window = make(self.env, self._engine, self.lane, name, x0, self.guard)
        self._windows.append(window)
        return window

    def mailbox(self, name: str) -> PointToPoint:
        """Make a mailbox."""
        direct = self.staging.messages == "direct"
        mailbox = PointToPoint(self.env, self._engine, name, self.lane, self.guard, direct=direct)
        self._mailboxes.append(mailbox)
        return mailbox

    def counter(self, name: str, home: int = 0) -> FetchAddCounter:  # a label
        """Make a counter."""
        counter = FetchAddCounter(self.env, home)
        self._counters.append(counter)
        return counter

    def sums(self, name: str, x0: Vector, rows: int) -> AccumulateSums:
        """Make sums."""
        x0 = as_tensor(x0)
        sums = AccumulateSums(self.env, self._engine, self.lane, name, x0, rows, self.guard)
        self._sums.append(sums)
        return self._sums[-1]

    def request_word(self) -> RequestWord:
        """Make the word by which ranks ask all others for a checkpoint. Collective."""
        word = RequestWord(self.env)
        self._words.append(word)
        return word

    def side_channel(self) -> SideChannel:
        """Make a way to tell all ranks something beside what the run does. Collective."""
        channel = SideChannel(self.env)
        self._channels.append(channel)
        return channel

    async def free(self) -> None:
        """Free the windows, mailboxes and counters, and what the ranks of a node share."""
        await self.release()
        for shared in self._shared:
            shared.close()

    # -- for the runtime ---------------------------------------------------------------------------

    def failures(self) -> list[dict[str, Any]]:
        """Return what there is to know of each rank that died: here none was outlived."""
        return []

    def spawn(self, coroutine: Coro[T], what: str) -> Task[T]:
        """Run `coroutine` beside the current one."""
        return self._engine.spawn(coroutine, what)

    async def within(self, limit_s: float, coroutine: Coro[T], what: str) -> T:
        """Await `coroutine` for `limit_s` seconds at most, then raise TimeoutError."""
        return await self._engine.within(limit_s, coroutine, what)

    def cancel(self, task: Task[Any]) -> None:
        """Stop what :meth:`spawn` started."""
        self._engine.cancel(task)

    async def start(self) -> None:
        """Wait until every rank has made its windows; time counts from here."""
        await self.collectives.barrier()
        now_s = time.monotonic()
        self._began_s = now_s - self.elapsed_s
        if self.spans is not None:
            self.spans.begin(time.monotonic, self._began_s)
        self._engine.begin_split(now_s, self._spent_before, self.spans)

    def end_spans(self) -> tuple[float, Seconds]:
        """End the spans of the run; return :meth:`now_s`, and the time split, which come to it."""
        now_s = time.monotonic()
        self._engine.end_spans(now_s)
        return now_s - self._began_s, self._engine.split_until(now_s)

    async def compare_clocks(self, clock: Callable[[], float]) -> ClockReading:
        """Compare `clock` with that of rank 0. Collective."""
        return await compare_clocks(self.env, clock)

    def stepping(self, has_steps: bool) -> None:
        """Say whether this rank has steps to make: what it waits for is idle time if not."""
        self._engine.rest("wait" if has_steps else "idle")

    def time_split(self) -> Seconds:
        """Return what this rank's time since :meth:`start` went into."""
        return self._engine.split_until(time.monotonic())

    async def quiesce(self) -> None:
        """Wait until every rank has come here and nothing is in flight any more.

        Meanwhile serving, answering, averaging with those who still step, and draining go on.
        """
        await self.collectives.barrier()
        before, changed_s = None, time.monotonic()
        while True:  # messages answered with messages: until two counts in a row agree
            sent = sum(m.sent for m in self._mailboxes)
            received = sum(m.received for m in self._mailboxes)
            late = time.monotonic() - changed_s > self._timeout_s
            counts = torch.tensor([sent, received, self._engine.open_tasks, late])
            everyones = await self.collectives.allreduce(counts, counted=False)
            *total, late_ranks = everyones.tolist()
            if total[0] == total[1] and total[2] == 0 and total == before:
                break
            if late_ranks:  # agreed, so that all ranks leave here
                raise RuntimeError(
                    f"rank {self.rank}: the run does not end: on all ranks {total[0]} messages "
                    f"were sent, {total[1]} received and {total[2]} operations are open; here "
                    + ", ".join(f"{m.name!r} {m.sent}/{m.received}" for m in self._mailboxes)
                    + f"; waiting for {self._engine.waiting_for()}"
                )
            if total != before:
                before, changed_s = total, time.monotonic()
        for window in self._windows:
            await window.rest()
        await self.collectives.barrier()

    async def release(self) -> None:
        """Free the windows, mailboxes, counters and sums of a run; after :meth:`quiesce`."""
        await self.collectives.barrier()
        made: list[list[Any]] = [
            self._windows,
            self._mailboxes,
            self._counters,
            self._sums,
            self._words,
            self._channels,
        ]
        for kind in made:
            for item in kind:
                item.close()
            kind.clear()

    def bind(self, objective: Objective, lr: float, weight_decay: float = 0.0) -> None:
        """Begin a run.

        Raises
        ------
        ValueError
            If an optimizer is open on this worker, whose gradients the run would take over.
        """
        if self.closing:
            raise ValueError("this worker has an open optimizer: close() that one first")
        super().bind(objective, lr, weight_decay)
        self._before = Moved(**dataclasses.asdict(-self.collectives.traffic))
        self._spent_before = Seconds()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this worker, ready for JSON."""
        return super().state_dict() | {
            "moved": dataclasses.asdict(self._moved()),
            "time_split": dataclasses.asdict(self.time_split()),
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken; between :meth:`bind` and :meth:`start`."""
        super().load_state_dict(values)
        self._spent_before = Seconds(**values["time_split"])
        earlier = Moved(**values["moved"])
        self._before = Moved(
            nbytes=self._before.nbytes + earlier.nbytes,
            messages=self._before.messages + earlier.messages,
            attempts=earlier.attempts,
            busy=earlier.busy,
        )

    def _moved(self) -> Moved:
        before = self._before
        parts = [w.traffic for w in self._windows] + [m.traffic for m in self._mailboxes]
        parts += [c.traffic for c in self._counters] + [s.traffic for s in self._sums]
        traffic = Traffic.total([self.collectives.traffic, *parts])
        return Moved(
            nbytes=before.nbytes + traffic.nbytes,
            messages=before.messages + traffic.messages,
            attempts=before.attempts + sum(w.attempts for w in self._windows),
            busy=before.busy + sum(w.busy for w in self._windows),
        )

    @property
    def traffic(self) -> Traffic:
        """What this rank's communication moved in the current run."""
        moved = self._moved()
        return Traffic(moved.nbytes, moved.messages)

    @property
    def busy_rate(self) -> float:
        """Fraction of averages begun here that found a busy peer."""
        moved = self._moved()
        return moved.busy / moved.attempts if moved.attempts else 0.0
