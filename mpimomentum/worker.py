"""The contract: what an algorithm may ask of the rank it runs on.

An algorithm is a coroutine over a :class:`Worker`. Every ``await`` marks a point where another rank
may interleave. The same algorithm file runs on real MPI ranks (``transport/``) and on a
deterministic virtual clock (``simulator/``); neither is visible from here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

import numpy as np
import torch

T = TypeVar("T")
S = TypeVar("S")

Vector: TypeAlias = torch.Tensor
"""A flat 1-D torch tensor, any device, float32 (float64 for the laws)."""

Batch: TypeAlias = Any
"""What ``Objective.sample`` returned; only the objective looks inside."""

# What becomes of a State's field when a run goes on, from a checkpoint, on another number of ranks.
Mean: TypeAlias = Annotated[T, "mean"]
"""The mean over the old ranks, on every new one."""
Same: TypeAlias = Annotated[T, "same"]
"""The same on all ranks, so any one's."""
Own: TypeAlias = Annotated[T, "own"]
"""That of the rank of this number, where there was one: what servers hold."""
Fresh: TypeAlias = Annotated[T, "fresh"]
"""As ``init`` makes it: scratch, or what ``finish``, which is called then, takes over."""
Scaled: TypeAlias = Annotated[T, "scaled"]
"""A count of all ranks' steps: as many for each as before."""

Requires: TypeAlias = Literal[
    "none", "symmetric", "above_minus_third", "doubly_stochastic", "column_stochastic", "bipartite"
]
"""What an algorithm asks of the mixing matrix or, for ``bipartite``, of the graph.

``above_minus_third``: symmetric, doubly stochastic, the same at every step, and all eigenvalues
greater than -1/3.
"""


class Handle(Generic[T]):
    """An operation under way: a promise that can be polled and awaited.

    Parameters
    ----------
    what : str
        The operation and the ranks it involves, in words: what a watchdog prints.
    """

    __slots__ = ("_callback", "_done", "_error", "_value", "what")

    may_never_come: ClassVar[bool] = False
    """Whether a run may end while somebody waits for this: the next message of a mailbox."""

    def __init__(self, what: str = "an operation") -> None:
        self.what = what
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callback: Callable[[], None] | None = None

    @classmethod
    def completed(cls, value: T) -> Handle[T]:
        """Return a handle that is already done with `value`."""
        handle: Handle[T] = cls()
        handle.resolve(value)
        return handle

    def test(self) -> bool:
        """Poll: True once done. Never blocks; a subclass may make progress here."""
        return self._done

    @property
    def done(self) -> bool:
        """Whether it was done when last polled."""
        return self._done

    @property
    def failed(self) -> bool:
        """Whether it is done with an error."""
        return self._error is not None

    def result(self) -> T:
        """Return the value, or raise the error, of a handle that is done."""
        if not self._done:
            raise RuntimeError(f"not done yet: {self.what}")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set by resolve; None where T is None

    def resolve(self, value: T) -> None:
        """Complete with `value` (for whoever carries out the operation)."""
        self._value = value
        self._finish()

    def fail(self, error: BaseException) -> None:
        """Complete with `error`, raised again by :meth:`result` and by ``await``."""
        self._error = error
        self._finish()

    def on_done(self, callback: Callable[[], None]) -> None:
        """Call `callback` once done: at once if done already. One callback a handle."""
        if self._done:
            callback()
        else:
            self._callback = callback

    def _finish(self) -> None:
        self._done = True  # last: another thread may be polling
        if self._callback is not None:
            callback, self._callback = self._callback, None  # it may hold this handle: no cycle
            callback()

    def __await__(self) -> Generator[Handle[Any], None, T]:
        """Yield this handle to the driver until it is done, then return its result."""
        while not self.test():
            yield self
        return self.result()


@dataclass(frozen=True)
class Mixing:
    """Row and column of W that concern one rank at one step, its own weight included.

    ``in_weights[j]`` = W_ij multiplies what comes from j; ``out_weights[j]`` = W_ji is what j
    gives to what comes from here.
    """

    in_weights: Mapping[int, float]
    out_weights: Mapping[int, float]


@runtime_checkable
class Window(Protocol):
    """A vector of this rank that all ranks can read, and change through their owner.

    Only its owner writes it, so a State may hold it like a vector that others average with.
    """

    @property
    def dim(self) -> int:
        """Length of this rank's vector."""

    @property
    def version(self) -> int:
        """Gradient updates (:meth:`add`) applied to this rank's vector so far."""

    @property
    def mixes(self) -> int:
        """Averages applied to this rank's vector so far, whoever began them."""

    def read(self, out: Vector | None = None) -> Vector:
        """Return a private copy, shape (dim,), of this rank's vector (or fill `out`).

        Another rank's update may land before and after, as "inconsistent read" says in theory.
        """

    def get(self, rank: int) -> Handle[tuple[Vector, int]]:
        """Return a whole (untorn) copy of `rank`'s vector with the version it was read at."""

    def add(self, rank: int, v: Vector) -> Handle[None]:
        """Do x_rank += v. Done when *applied*; `v` must not be changed before that.

        Remote adds of one rank to another are applied first in, first out.
        """

    def writing(self) -> Iterator[tuple[Vector, slice]]:
        """Change this rank's vector in place, in one pass; the whole loop counts as one add.

        Yields
        ------
        x : Vector
            A piece of the vector, to be changed now.
        now : slice
            Which piece: what other vectors go with it. The loop must run to its end, with no
            ``await`` in it.
        """

    def average(self, rank: int) -> Handle[bool]:
        """Average this rank's vector with `rank`'s: both become the mean, their sum is conserved.

        Returns
        -------
        bool
            False if one of the two was busy: nothing happened, draw another.
        """

    def restore(self, x: Vector, version: int, mixes: int) -> None:
        """Set this rank's vector and counts; only while nothing is in flight."""


@runtime_checkable
class Mailbox(Protocol):
    """Messages between ranks, with source and version; in order from each source."""

    def send(self, rank: int, v: Vector, version: int = 0) -> Handle[None]:
        """Send `v` to `rank`. Once done, `v` may be changed; nothing is said about arrival."""

    def recv(self) -> Handle[tuple[int, int, Vector]]:
        """Receive the next message from anyone: (source, version, v). `v` is the receiver's."""


@runtime_checkable
class Counter(Protocol):
    """A 64-bit integer kept at one rank, shared by all."""

    @property
    def at_home(self) -> bool:
        """Whether this is the rank that keeps it."""

    def fetch_add(self, k: int = 1) -> Handle[int]:
        """Add `k` atomically; returns the value before. ``fetch_add(0)`` reads."""


@runtime_checkable
class Sums(Protocol):
    """Rows of numbers, cut into a shard a rank, that every rank can add to and read.

    Each number is added to and read atomically, and no more than that: a read may find one part of
    another's add and not yet the rest. The owner of a shard need not run.
    """

    def add(self, v: Vector, factors: Mapping[int, float]) -> Handle[None]:
        """Do row r += factors[r] v; done when in, and `v` must not be changed before that."""

    def read(self, rows: Sequence[int]) -> Handle[torch.Tensor]:
        """Return a copy of some rows, shape (len(rows), dim)."""

    def own(self) -> torch.Tensor:
        """Return a copy of this rank's shard of all rows; only while nothing is in flight."""

    def restore(self, own: torch.Tensor) -> None:
        """Set this rank's shard of all rows; only while nothing is in flight."""


class Worker(Protocol):
    """One rank, as an algorithm sees it."""

    rank: int
    size: int
    step: int
    """Steps this rank has completed."""
    active: bool
    """On a bipartite graph: in the class that begins paired exchanges; True on any other."""
    lr: float | Vector
    """Step size now; read it *after* awaiting the gradient, or it lags a schedule by a step."""
    weight_decay: float | Vector
    """Of an algorithm that decays the weights itself; read it when you read :attr:`lr`."""
    rng: np.random.Generator
    """This rank's own stream (the data have another)."""
    shared_rng: np.random.Generator
    """The same stream on all ranks: draw from it in the same order everywhere."""

    @property
    def samples(self) -> int:
        """Size of this rank's data."""

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Numbers of coordinates of the model's layers, in order; one of all if none are known."""

    @property
    def neighbors(self) -> tuple[int, ...]:
        """Ranks joined to this one by the graph of the current step, ascending."""

    def mixing(self, t: int) -> Mixing:
        """Return this rank's row and column of W at step `t`."""

    def sample(self, indices: Sequence[int] | None = None) -> Batch:
        """Draw the next mini-batch of this rank's data, or the given one."""

    def gradient(self, x: Vector, batch: Batch) -> Handle[Vector]:
        """Start the gradient at `x`. The result is overwritten by the next gradient.

        `x` must not be changed until done.
        """

    def full_gradient(self, x: Vector) -> Handle[Vector]:
        """Start the gradient over all of this rank's data."""

    def mean_gradient(self, x: Vector, batch: Batch) -> Handle[Vector]:
        """Start the mean over all ranks of their gradients at `x`. Collective.

        The sum over the ranks, divided by their number, as :meth:`gradient` and :meth:`allreduce`
        would give it; but on MPI ranks the first parts of a gradient are on their way while the
        rest is computed. `x` must be the same on all ranks for the mean to be a gradient.

        The result is to be read only, and is overwritten by the next gradient of any kind: await
        it before asking for another. `x` must not be changed until done.
        """

    def allreduce(self, v: Vector) -> Handle[Vector]:
        """Sum over all ranks; `v` may be changed once done."""

    def allgather(self, v: Vector) -> Handle[Vector]:
        """Return all ranks' vectors, shape (size, len(v)), row r from rank r."""

    def alltoall(self, rows: Vector) -> Handle[Vector]:
        """Send row j of `rows` (size, m) to rank j; row i of the result came from rank i."""

    def neighbor_allgather(self, v: Vector, t: int | None = None) -> Handle[dict[int, Vector]]:
        """Send `v` along the out-edges of step `t` (default: now), collect from the in-edges.

        Returns
        -------
        dict
            source rank -> its vector, in ascending order of rank, this rank's own included.
        """

    def window(self, name: str, x0: Vector) -> Window:
        """Make this rank's part of a window, starting at a copy of `x0`. Collective."""

    def mailbox(self, name: str) -> Mailbox:
        """Make this rank's part of a mailbox. Collective."""

    def counter(self, name: str, home: int = 0) -> Counter:
        """Make a counter kept at rank `home`, starting at 0. Collective."""

    def sums(self, name: str, x0: Vector, rows: int) -> Sums:
        """Make sums: the first row starts at `x0`, the same on all ranks, others at 0. Collective.

        A rank has its share of each row, `rows` len(x0) / size numbers in all.
        """

    async def numbers(self, v: Vector) -> list[float]:
        """Return the elements of a short vector, once they are known.

        In place of ``float(v)`` and ``v.tolist()``, at which a GPU would be waited for.
        """

    def record(self, **scalars: float) -> None:
        """Append a telemetry record: tau=…, peer=…; rank, step and time are added."""


@runtime_checkable
class Algorithm(Protocol[S]):
    """One paper: a frozen dataclass of hyper-parameters with a loop body.

    Optional further methods: ``roles(size) -> (workers, servers)``, two tuples of ranks that may
    overlap (default: all are workers and all run ``serve`` if there is one); ``async serve(w, s)``,
    which runs beside ``step`` on the same State and interleaves with it only at ``await``;
    ``async finish(w, s)``, once, after every rank has made its last step and all is delivered.
    The State has a field ``x``, a Vector or a Window: this rank's model. A run can go on on another
    number of ranks if every field but mailboxes says what becomes of it: ``x: Mean[Vector]``, or
    one of :data:`Same`, :data:`Own`, :data:`Fresh`, :data:`Scaled`. A State for which there is no
    saying has a text ``no_resizing``: why.

    An algorithm that decays the weights itself says ``decoupled_weight_decay = True``, has a
    hyper-parameter ``weight_decay`` and reads ``w.weight_decay``. For all others weight decay is
    part of the gradient.

    One that has a hyper-parameter ``wire``, how vectors travel, and asks anything of the graph is
    refused a graph that changes, unless ``wire`` is "float32": neighbours hold replicas.

    One that asks for full gradients says ``finite_sum = True`` and has a hyper-parameter
    ``inner_steps``, how many mini-batches, each at two points, it takes in a step on average. It
    is refused where there are no full gradients, or where a sample's gradient is not its own.
    """

    name: ClassVar[str]
    """What the command line calls it."""
    synchronous: ClassVar[bool]
    """Whether a step waits for other ranks, so that all must agree on when to stop."""
    lr: Any

    @property
    def requires(self) -> Requires:
        """What it needs of the mixing matrix."""

    def init(self, w: Worker, x0: Vector) -> S:
        """Make this rank's State from the common start `x0` (collective: may make windows)."""

    async def step(self, w: Worker, s: S) -> None:
        """One step: the paper's loop body."""


class Objective(Protocol):
    """What is minimised, as one worker sees it: its own data, its own f_i.

    Optional: ``layer_sizes``, as :attr:`Worker.layer_sizes` says; and further methods:
    ``full_gradient(x)``, over all `samples` of this worker's data, and
    ``gradient_in_parts(x, batch, emit) -> Vector``, which is ``gradient`` but calls ``emit(part)``
    for contiguous slices of its result, each as soon as it is final, together all of it. The slices
    and their order are the same on every rank and in every call. They are averaged over the ranks
    *in place*, while it computes on and after it has returned: it must not touch them any more.
    """

    dim: int

    def initial(self) -> Vector:
        """Return the start x_0, shape (dim,), the same on every rank."""

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> Batch:
        """Draw a mini-batch."""

    def gradient(self, x: Vector, batch: Batch) -> Vector:
        """Return the mini-batch gradient at `x`; may be a buffer that the next call overwrites."""

    def loss(self, x: Vector) -> float:
        """Return f_i(x)."""
