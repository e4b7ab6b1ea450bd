"""A run that is recorded: worker and algorithm as ever, with everything that time decides noted.

Between the algorithm and its worker stands one that hands everything on. What the algorithm awaits
it hands on as a handle that tells the chronicle when the coroutine goes on, and what it went on
with where only time could know: the source of a message, the number of a counter, whether an
average found both free. What the run itself does between two steps, such as watching or saving,
goes the same way and is not noted.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any, Generic, TypeVar

from mpimomentum.chronicle import SERVE, STEP, Chronicle, Kind, WindowChronicle
from mpimomentum.worker import Counter, Handle, Mailbox, Vector, Window

T = TypeVar("T")

_AWAITED = (
    "gradient",
    "full_gradient",
    "mean_gradient",
    "allreduce",
    "allgather",
    "alltoall",
    "neighbor_allgather",
)


class Told(Handle[T]):
    """A handle that tells a chronicle when it has been awaited, and what came of it."""

    __slots__ = ("_chronicle", "_handle", "_note")

    def __init__(
        self, handle: Handle[T], chronicle: Chronicle, note: Callable[[T], None] | None = None
    ) -> None:
        super().__init__(handle.what)
        self._handle, self._chronicle, self._note = handle, chronicle, note

    def test(self) -> bool:
        """Poll."""
        return self._handle.test()

    @property
    def done(self) -> bool:  # noqa: D102  # as above
        return self._handle.done

    @property
    def failed(self) -> bool:  # noqa: D102  # as above
        return self._handle.failed

    def result(self) -> T:
        """Return the value, or raise the error."""
        return self._handle.result()

    def __await__(self) -> Generator[Handle[Any], None, T]:
        """Wait, then tell."""
        value = yield from self._handle.__await__()
        self._chronicle.passed()
        if self._note is not None:
            self._note(value)
        return value


class Labelled(Generic[T]):
    """A coroutine that says, whenever it runs, which one it is.

    Parameters
    ----------
    coroutine : coroutine
    teller : Chronicle or replaying worker
        Its `task` is set while the coroutine runs, its ``pauses()`` called when it does not any
        more; its ``begins()`` comes before all else.
    task : int
        STEP or SERVE.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], teller: Any, task: int) -> None:
        self._coroutine, self._teller, self._task = coroutine, teller, task

    def __await__(self) -> Generator[Any, None, T]:
        teller = self._teller
        try:
            teller.task = self._task
            yield from teller.begins()
            while True:
                teller.task = self._task
                try:
                    handle = self._coroutine.send(None)
                except StopIteration as stop:
                    value: T = stop.value
                    return value
                finally:
                    teller.pauses()
                yield handle
        finally:
            teller.pauses()
            self._coroutine.close()


class LabelledAlgorithm:
    """An algorithm whose coroutines say which one runs; everything else is the algorithm's own."""

    def __init__(self, algorithm: Any, teller: Any) -> None:
        self._algorithm, self._teller = algorithm, teller

    def __getattr__(self, name: str) -> Any:
        """Answer for the algorithm; its coroutines are labelled."""
        value = getattr(self._algorithm, name)
        if name not in ("step", "serve", "finish"):
            return value
        task = SERVE if name == "serve" else STEP

        async def labelled(w: Any, s: Any) -> None:
            await Labelled(value(w, s), self._teller, task)

        return labelled


class RecordingWorker:
    """A worker whose run goes into a chronicle; everything else is the worker's own.

    Parameters
    ----------
    worker : worker
        Bound to its objective.
    chronicle : Chronicle
    """

    def __init__(self, worker: Any, chronicle: Chronicle) -> None:
        kept = {"_worker": worker, "_chronicle": chronicle, "_made": {}}
        self.__dict__.update(kept)

    def __getattr__(self, name: str) -> Any:
        """Answer for the worker; what can be awaited tells the chronicle."""
        value = getattr(self._worker, name)
        if name not in _AWAITED:
            return value
        return lambda *args, **kwargs: told(value(*args, **kwargs), self._chronicle)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the worker's."""
        setattr(self._worker, name, value)

    async def numbers(self, v: Vector) -> list[float]:
        """Return the elements of a short vector, once they are known."""
        values: list[float] = await self._worker.numbers(v)
        if self._chronicle.task is not None:
            self._chronicle.passed()
        return values

    def window(self, name: str, x0: Vector) -> RecordedWindow:
        """Make this rank's part of a window.

        Raises
        ------
        ValueError
            If it is of a kind that cannot be recorded: on a device, or outliving ranks.
        """
        window = self._worker.window(name, x0)
        if not window.recordable:
            raise ValueError(f"window {name!r}: a {type(window).__name__} cannot be recorded")
        window.chronicle = WindowChronicle(self._chronicle, self._next(Window))
        return RecordedWindow(window, self._chronicle)

    def mailbox(self, name: str) -> RecordedMailbox:
        """Make this rank's part of a mailbox."""
        return RecordedMailbox(self._worker.mailbox(name), self._chronicle, self._next(Mailbox))

    def counter(self, name: str, home: int = 0) -> RecordedCounter:
        """Make a counter."""
        counter = self._worker.counter(name, home)
        return RecordedCounter(counter, self._chronicle, self._next(Counter))

    def sums(self, name: str, x0: Vector, rows: int) -> Any:
        """Refuse: numbers added to at once by all have no order that could be noted.

        Raises
        ------
        ValueError
        """
        raise ValueError(f"sums {name!r} cannot be recorded: use mode='server'")

    def _next(self, kind: Any) -> int:
        self._made[kind] = self._made.get(kind, -1) + 1
        return int(self._made[kind])


def told(
    handle: Handle[T], chronicle: Chronicle, note: Callable[[T], None] | None = None
) -> Handle[T]:
    """Return a handle that tells; the handle itself if the algorithm has not asked for it."""
    return handle if chronicle.task is None else Told(handle, chronicle, note)


class RecordedWindow:
    """A worker.Window whose operations are counted."""

    def __init__(self, window: Any, chronicle: Chronicle) -> None:
        self._window, self._chronicle = window, chronicle
        self._of_window: WindowChronicle = window.chronicle

    @property
    def dim(self) -> int:  # noqa: D102  # as worker.Window
        return int(self._window.dim)

    @property
    def version(self) -> int:  # noqa: D102  # as worker.Window
        version = self._window.version
        self._count()
        return int(version)

    @property
    def mixes(self) -> int:  # noqa: D102  # as worker.Window
        mixes = self._window.mixes
        self._count()
        return int(mixes)

    def _count(self) -> None:
        if self._chronicle.task is not None:
            self._of_window.operations += 1

    def read(self, out: Vector | None = None) -> Vector:
        """Copy the own vector."""
        v: Vector = self._window.read(out)
        self._count()
        return v

    def get(self, rank: int) -> Handle[tuple[Vector, int]]:
        """Read `rank`'s vector."""
        handle = self._window.get(rank)
        if rank == self._window.rank:
            self._count()
        return told(handle, self._chronicle)

    def add(self, rank: int, v: Vector) -> Handle[None]:
        """Do x_rank += v."""
        handle = self._window.add(rank, v)
        if rank == self._window.rank:
            self._count()
        return told(handle, self._chronicle)

    def writing(self) -> Iterator[tuple[Vector, slice]]:
        """Change the own vector."""
        yield from self._window.writing()
        self._count()

    def average(self, rank: int) -> Handle[bool]:
        """Average with `rank`."""
        handle = self._window.average(rank)
        self._count()
        index = self._of_window.index
        return told(
            handle,
            self._chronicle,
            lambda found: self._chronicle.note(Kind.AVERAGE, index, value=int(found)),
        )

    def restore(self, x: Vector, version: int, mixes: int) -> None:
        """Set the own vector."""
        self._window.restore(x, version, mixes)


class RecordedMailbox:
    """A worker.Mailbox of which the sources are noted."""

    def __init__(self, mailbox: Any, chronicle: Chronicle, index: int) -> None:
        self._mailbox, self._chronicle, self._index = mailbox, chronicle, index

    def send(self, rank: int, v: Vector, version: int = 0) -> Handle[None]:
        """Send."""
        return told(self._mailbox.send(rank, v, version), self._chronicle)

    def recv(self) -> Handle[tuple[int, int, Vector]]:
        """Receive the next message."""

        def note(message: tuple[int, int, Vector]) -> None:
            self._chronicle.note(Kind.RECEIVED, self._index, who=message[0])

        return told(self._mailbox.recv(), self._chronicle, note)


class RecordedCounter:
    """A worker.Counter of which the answers are noted."""

    def __init__(self, counter: Any, chronicle: Chronicle, index: int) -> None:
        self._counter, self._chronicle, self._index = counter, chronicle, index

    @property
    def at_home(self) -> bool:  # noqa: D102  # as worker.Counter
        return bool(self._counter.at_home)

    def fetch_add(self, k: int = 1) -> Handle[int]:
        """Add `k`."""
        return told(
            self._counter.fetch_add(k),
            self._chronicle,
            lambda value: self._chronicle.note(Kind.COUNTED, self._index, value=value),
        )
