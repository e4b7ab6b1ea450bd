"""Windows, mailboxes and counters of a replay: each says what it said when it was recorded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mpimomentum.chronicle import Kind
from mpimomentum.simulator.recorded import Came
from mpimomentum.worker import Handle, Vector

if TYPE_CHECKING:
    from mpimomentum.simulator.replay_worker import ReplayWorker

T = TypeVar("T")


class Pass(Handle[T]):
    """What an algorithm awaits: it goes on when it is its turn, with what `fetch` returns."""

    __slots__ = ("_fetch",)

    def __init__(self, fetch: Callable[[], T], what: str) -> None:
        super().__init__(what)
        self._fetch = fetch

    def __await__(self) -> Generator[Handle[Any], None, T]:
        """Let the rank say whose turn it is."""
        yield self
        return self._fetch()


def nothing() -> None:
    """Return at once."""


class ReplayWindow:
    """A worker.Window into which others' deltas come where they came."""

    def __init__(self, worker: ReplayWorker, name: str, index: int, x0: Vector) -> None:
        self.name, self.dim = name, x0.numel()
        self._worker, self._index = worker, index
        self._x = x0.clone()
        self._version = self._mixes = self._operations = self._writes = 0
        self._came = worker.recorded.came[index]
        self._written()

    @property
    def version(self) -> int:  # noqa: D102  # as worker.Window
        self._begin()
        return self._version

    @property
    def mixes(self) -> int:  # noqa: D102  # as worker.Window
        self._begin()
        return self._mixes

    def read(self, out: Vector | None = None) -> Vector:
        """Copy the own vector."""
        self._begin()
        return self._x.clone() if out is None else out.copy_(self._x)

    def get(self, rank: int) -> Handle[tuple[Vector, int]]:
        """Return `rank`'s vector as it was when it was read."""
        w = self._worker
        if rank == w.rank:
            found = (self.read(), self._version)
            return Pass(lambda: found, "a read of the own vector")
        what = f"a read of rank {rank}"

        def fetch() -> tuple[Vector, int]:
            writes = w.next_of(w.recorded.got[self._index, rank], what)
            there = w.exchange.there
            w.block(lambda: there(self._index, rank, writes), f"write {writes} of rank {rank}")
            x, version = w.exchange.read(self._index, rank, writes)
            w.tell(f"read {self.name} of rank {rank} at version {version}")
            return x, version

        return Pass(fetch, what)

    def add(self, rank: int, v: Vector) -> Handle[None]:
        """Do x_rank += v: here at once, elsewhere where it came in."""
        if rank == self._worker.rank:
            self._begin()
            self._x.add_(v)
            self._version += 1
            self._count_write()
        else:
            self._queue(Kind.ADDED, self._worker.rank, rank).append(v.clone())
        return Pass(nothing, f"an add to rank {rank}")

    def writing(self) -> Iterator[tuple[Vector, slice]]:
        """Change the own vector; one add."""
        self._begin()
        yield self._x, slice(0, self.dim)
        self._version += 1
        self._count_write()

    def average(self, rank: int) -> Handle[bool]:
        """Say whether both were free; the exchange comes where it came."""
        self._begin()
        w, what = self._worker, f"an average with rank {rank}"
        return Pass(lambda: bool(w.next_of(w.recorded.averages[self._index], what)), what)

    def restore(self, x: Vector, version: int, mixes: int) -> None:
        """Refuse: a replay begins at the beginning."""
        raise NotImplementedError

    # -- what others have part in ------------------------------------------------------------------

    def catch_up(self) -> None:
        """Let everything come that came before the next operation."""
        while self._due():
            self.move()  # which a rank does while it waits, too
            if self._due():
                first = self._came[0]  # once it has come, the words are those of the next
                self._worker.block(partial(self._has_come, first), _words(first))

    def move(self) -> bool:
        """Let come what is due and there."""
        moved = False
        while self._due() and self._there(self._came[0]):
            self._come()
            moved = True
        return moved

    def _begin(self) -> None:
        """Begin an operation, if it is the algorithm's."""
        if self._worker.task is not None:
            self.catch_up()
            self._operations += 1

    def _has_come(self, came: Came) -> bool:
        return not self._came or self._came[0] is not came

    def _due(self) -> bool:
        return bool(self._came) and self._came[0].at <= self._operations

    def _there(self, came: Came) -> bool:
        w = self._worker
        if came.kind is Kind.EXCHANGED:
            return w.exchange.there(self._index, came.who, came.value)
        return bool(self._queue(came.kind, came.who, w.rank))

    def _come(self) -> None:
        came, w = self._came.popleft(), self._worker
        w.tell(f"write {self._writes + 1} of {self.name}: {_told(came)}")
        if came.kind is Kind.EXCHANGED:
            theirs, _ = w.exchange.read(self._index, came.who, came.value)
            difference = self._x - theirs
            self._x.sub_(difference, alpha=0.5)
            self._queue(Kind.AVERAGED, w.rank, came.who).append(difference)
            self._mixes += 1
        elif came.kind is Kind.AVERAGED:
            self._x.add_(self._queue(came.kind, came.who, w.rank).popleft(), alpha=0.5)
            self._mixes += 1
        else:
            self._x.add_(self._queue(came.kind, came.who, w.rank).popleft())
            self._version += 1
        self._count_write()

    def _queue(self, kind: Kind, source: int, target: int) -> deque[Vector]:
        return self._worker.exchange.queues[kind, self._index, source, target]

    def _count_write(self) -> None:
        self._writes += 1
        self._written()

    def _written(self) -> None:
        w = self._worker
        w.exchange.written(self._index, w.rank, self._writes, self._x, self._version)


class ReplayMailbox:
    """A worker.Mailbox whose messages come from whom they came."""

    def __init__(self, worker: ReplayWorker, name: str, index: int) -> None:
        self._worker, self._name, self._index = worker, name, index

    def send(self, rank: int, v: Vector, version: int = 0) -> Handle[None]:
        """Send a copy."""
        source = self._worker.rank
        message = (source, version, v.clone())
        self._worker.exchange.queues["mail", self._index, source, rank].append(message)
        return Pass(nothing, f"a message to rank {rank} to leave")

    def recv(self) -> Handle[tuple[int, int, Vector]]:
        """Receive the message that came next."""
        w, what = self._worker, f"a message in mailbox {self._name!r}"

        def fetch() -> tuple[int, int, Vector]:
            source = w.next_of(w.recorded.received[self._index], what)
            queue = w.exchange.queues["mail", self._index, source, w.rank]
            w.block(lambda: bool(queue), f"{what} from rank {source}")
            message: tuple[int, int, Vector] = queue.popleft()
            return message

        return Pass(fetch, what)


class ReplayCounter:
    """A worker.Counter that says what it said."""

    def __init__(self, worker: ReplayWorker, counted: deque[int], *, at_home: bool) -> None:
        self._worker, self._counted = worker, counted
        self.at_home = at_home

    def fetch_add(self, k: int = 1) -> Handle[int]:
        """Return what it said."""
        return Pass(lambda: self._worker.next_of(self._counted, "a counter"), "a counter")


def _words(came: Came) -> str:
    if came.kind is Kind.EXCHANGED:
        return f"write {came.value} of rank {came.who}, read in an average"
    return f"what rank {came.who} handed over"


def _told(came: Came) -> str:
    if came.kind is Kind.EXCHANGED:
        return f"average with rank {came.who}, as after its write {came.value}"
    return f"{'average' if came.kind is Kind.AVERAGED else 'add'} by rank {came.who}"
