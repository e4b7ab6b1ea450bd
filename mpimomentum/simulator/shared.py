"""Windows, mailboxes and counters between virtual workers.

A window's claim, publish and apply are separate events, as on MPI: others may act in between.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from mpimomentum.chronicle import Kind, WindowChronicle
from mpimomentum.measures import Traffic
from mpimomentum.non_finite import finite
from mpimomentum.worker import Handle, Vector

if TYPE_CHECKING:
    from mpimomentum.simulator.simulation import Simulation
    from mpimomentum.simulator.worker import VirtualWorker

Message: TypeAlias = tuple[int, int, Vector]
"""Source, version, vector."""


class VirtualWindow:
    """A worker.Window on the virtual clock.

    Parameters
    ----------
    simulation : Simulation
    name : str
    rank : int
    x0 : Vector, shape (dim,)
        Copied.
    parts : list
        The windows of all ranks; this one enters itself.

    Attributes
    ----------
    chronicle : WindowChronicle, optional
        Of a run that is recorded.
    writes : int
        Changes of the own vector.
    """

    chronicle: WindowChronicle | None = None
    recordable: ClassVar[bool] = True

    def __init__(
        self, simulation: Simulation, name: str, rank: int, x0: Vector, parts: list[Any]
    ) -> None:
        self.name = name
        self.rank = rank
        self.dim = x0.numel()
        self.version = self.mixes = self.writes = 0
        self.attempts = self.busy = 0
        self.traffic = Traffic()
        self._simulation = simulation
        self._worker = simulation.workers[rank]
        self._x = x0.clone()
        self._nbytes = x0.numel() * x0.element_size()
        self._claimed = False  # the word: FREE or not
        self._inbox: tuple[Vector, int] | None = None  # full if not None; from whom
        self._adds: collections.deque[tuple[Vector, Handle[None], int]] = collections.deque()
        self._parts: list[VirtualWindow] = parts
        parts[rank] = self

    def read(self, out: Vector | None = None) -> Vector:
        """Copy the own vector, after applying what has arrived."""
        self.drain()
        return self._x.clone() if out is None else out.copy_(self._x)

    def drain(self) -> None:
        """Apply what the inbox holds, then free it."""
        if self._inbox is not None:
            e, source = self._inbox
            self._x.add_(e, alpha=0.5)
            self._inbox = None
            self.mixes += 1
            self._written(Kind.AVERAGED, source)
            self._free()

    def _written(self, kind: Kind, who: int, value: int = 0) -> None:
        """Count a change that another rank has part in."""
        self.writes += 1
        if self.chronicle is not None:
            self.chronicle.came(kind, who, value)

    def get(self, rank: int) -> Handle[tuple[Vector, int]]:
        """Read `rank`'s vector with its version, both as of when the request gets there."""
        if rank == self.rank:
            return Handle.completed((self.read(), self.version))
        handle: Handle[tuple[Vector, int]] = Handle(f"a read of rank {rank}")
        self.traffic.count(self._parts[rank]._nbytes)
        told = None if self.chronicle is None else self.chronicle.reading(rank)
        self._worker.travel(self._get(rank, handle, told))
        return handle

    async def _get(self, rank: int, handle: Handle[tuple[Vector, int]], told: Any) -> None:
        peer = self._parts[rank]
        await self._simulation.delay(self._simulation.network.latency_s(self.rank, rank))
        value = (peer.read(), peer.version)
        if told is not None:
            told(peer.writes)
        await self._simulation.transfer(rank, self.rank, peer._nbytes)
        handle.resolve(value)

    def add(self, rank: int, v: Vector) -> Handle[None]:
        """Do x_rank += v; done when applied there."""
        guard = self._worker.guard
        if guard is not None and (rank != self.rank or any(p.dim == 0 for p in self._parts)):
            guard.leaving(v, f"what is added to window {self.name!r} of rank {rank}")
        if rank == self.rank:
            self.drain()
            self._x += v
            self.version += 1
            self.writes += 1
            return Handle.completed(None)
        handle: Handle[None] = Handle(f"an add to rank {rank}")
        self.traffic.count(v.numel() * v.element_size())
        self._simulation.departed()
        self._worker.travel(self._add(self._parts[rank], v, handle))
        return handle

    def writing(self) -> Iterator[tuple[Vector, slice]]:
        """Change the own vector; one add."""
        self.drain()
        yield self._x, slice(0, self.dim)
        self.version += 1
        self.writes += 1

    async def _add(self, peer: VirtualWindow, v: Vector, handle: Handle[None]) -> None:
        await self._simulation.transfer(self.rank, peer.rank, v.numel() * v.element_size())
        applied: Handle[None] = Handle(f"the inbox of rank {peer.rank}")

        def arrived() -> None:
            peer._adds.append((v, applied, self.rank))
            peer._apply_adds()

        peer._worker.serving.after(v.numel(), arrived, self._simulation.now_s)
        await applied
        await self._simulation.delay(self._simulation.network.latency_s(peer.rank, self.rank))
        handle.resolve(None)

    def restore(self, x: Vector, version: int, mixes: int) -> None:
        """Set the own vector and its counts; only while nothing is in flight."""
        self._x.copy_(x)
        self.version, self.mixes = version, mixes

    def average(self, rank: int) -> Handle[bool]:
        """Average with `rank`; False if one of the two was busy."""
        handle: Handle[bool] = Handle(f"an average with rank {rank}")
        self.attempts += 1
        self._simulation.departed()
        self._worker.travel(self._average(self._parts[rank], handle))
        return handle

    async def _average(self, peer: VirtualWindow, handle: Handle[bool]) -> None:
        simulation = self._simulation
        self.drain()
        held: list[VirtualWindow] = []
        for window in (self, peer) if self.rank < peer.rank else (peer, self):
            if window is peer:
                await simulation.delay(
                    simulation.network.latency_s(self.rank, peer.rank, "average")
                )
            if window._claimed:
                self._give_up(held)
                handle.resolve(False)
                return
            window._claimed = True
            held.append(window)
        self.traffic.count(2 * self._nbytes, 2)
        # read when the claim gets there, not when the answer arrives
        theirs, writes = peer._x.clone(), peer.writes
        await simulation.transfer(peer.rank, self.rank, self._nbytes, "average")
        if not self._all_finite(peer, theirs):
            self._give_up(held)
            handle.resolve(False)
            return
        e = self._x - theirs
        self._x.sub_(e, alpha=0.5)
        self.mixes += 1
        self._written(Kind.EXCHANGED, peer.rank, writes)
        await simulation.transfer(self.rank, peer.rank, self._nbytes, "average")
        peer._inbox = e, self.rank  # published; its owner applies it in an event of its own
        self._free()
        simulation.arrived()
        simulation.at(simulation.now_s, peer.drain)
        handle.resolve(True)

    def _all_finite(self, peer: VirtualWindow, theirs: Vector) -> bool:
        """Whether both models are; an own one that is not is replaced."""
        guard = self._worker.guard
        if guard is None or (finite(theirs) and finite(self._x)):
            return True
        if not finite(theirs):
            guard.model_found(peer.rank)
        else:
            guard.model_found(self.rank)
            self._x.copy_(theirs)
        return False

    def _give_up(self, held: list[VirtualWindow]) -> None:
        self.busy += 1
        for window in held:
            window._free()
        self._simulation.arrived()

    def _free(self) -> None:
        self._claimed = False
        self._apply_adds()

    def _apply_adds(self) -> None:
        """Apply what waits for the inbox, all of it, in order of arrival, unless it is claimed."""
        while self._adds and not self._claimed:
            v, applied, source = self._adds.popleft()
            self._x += v
            self.version += 1
            self._written(Kind.ADDED, source)
            self._simulation.arrived()
            applied.resolve(None)


class VirtualMailbox:
    """A worker.Mailbox on the virtual clock; `parts` are the mailboxes of all ranks."""

    def __init__(self, simulation: Simulation, name: str, rank: int, parts: list[Any]) -> None:
        self.name = name
        self.rank = rank
        self.traffic = Traffic()
        self._simulation = simulation
        self._here: collections.deque[tuple[Message, float]] = collections.deque()  # since when
        # with whether it is to be served, not just taken
        self._waiting: collections.deque[tuple[Handle[Message], bool]] = collections.deque()
        self._parts: list[VirtualMailbox] = parts
        parts[rank] = self

    def send(self, rank: int, v: Vector, version: int = 0) -> Handle[None]:
        """Send a copy; done at once."""
        nbytes = v.numel() * v.element_size()
        simulation = self._simulation
        guard = simulation.workers[self.rank].guard
        if guard is not None:
            guard.leaving(v, f"a message to mailbox {self.name!r} of rank {rank}")
        message = (self.rank, version, v.clone())
        if rank != self.rank:
            self.traffic.count(nbytes)
        simulation.departed()
        simulation.send(self.rank, rank, nbytes, lambda: self._parts[rank]._deliver(message))
        return Handle.completed(None)

    def recv(self) -> Handle[Message]:
        """Receive the next message; in ``serve``, once this rank's vectors were gone through."""
        handle = _NextMessage(f"a message in mailbox {self.name!r}")
        self._waiting.append((handle, self._simulation.in_service))
        self._match()
        return handle

    def _deliver(self, message: Message) -> None:
        self._here.append((message, self._simulation.now_s))
        self._match()

    def _match(self) -> None:
        while self._here and self._waiting:
            handle, served = self._waiting.popleft()
            if handle.done:  # nobody waits any more
                continue
            message, since_s = self._here.popleft()
            if served:
                worker = self._simulation.workers[self.rank]
                parameters = sum(window.dim for window in worker.windows)
                worker.serving.after(parameters, partial(self._hand, handle, message), since_s)
            else:
                self._hand(handle, message)

    def _hand(self, handle: Handle[Message], message: Message) -> None:
        handle.resolve(message)
        self._simulation.arrived()


class _NextMessage(Handle[Message]):
    __slots__ = ()

    may_never_come = True


class VirtualCounter:
    """A worker.Counter on the virtual clock; `value` is the list that holds it at its home."""

    def __init__(
        self, worker: VirtualWorker, simulation: Simulation, value: list[int], home: int
    ) -> None:
        self._worker = worker
        self._simulation = simulation
        self._value = value
        self._latency_s = simulation.network.latency_s(worker.rank, home)
        self.at_home = worker.rank == home
        self.traffic = Traffic()

    def fetch_add(self, k: int = 1) -> Handle[int]:
        """Add `k`; returns the value before."""
        if not self.at_home:
            self.traffic.count(0)
        if self._latency_s == 0:  # at home, for one
            return Handle.completed(self._add(k))
        handle: Handle[int] = Handle("a counter")
        self._worker.departs()
        # no coroutine, unlike a window's: there may be two requests an update
        self._after_latency(lambda: self._asked(k, handle))
        return handle

    def _asked(self, k: int, handle: Handle[int]) -> None:
        value = self._add(k)
        self._after_latency(lambda: self._answered(value, handle))

    def _answered(self, value: int, handle: Handle[int]) -> None:
        self._worker.arrives()
        handle.resolve(value)

    def _after_latency(self, action: Callable[[], None]) -> None:
        self._simulation.at(self._simulation.now_s + self._latency_s, action)

    def _add(self, k: int) -> int:
        value = self._value[0]
        self._value[0] += k
        return value
