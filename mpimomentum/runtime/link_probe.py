"""How long a worker's operations take: the same probe on MPI ranks and on the virtual clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from mpimomentum.codecs import mix
from mpimomentum.worker import Mailbox, Requires, Vector, Window, Worker

SHORT = 64  # parameters of the vectors by which latencies are measured
OPERATIONS = ("message", "far message", "all", "average", "exchange", "collective")


@dataclass
class State:
    """What a rank has for it.

    Attributes
    ----------
    windows : dict
        Length of the vectors -> window.
    seconds : dict
        (operation, length) -> what it took, again and again; on rank 0.
    """

    x: Vector
    windows: dict[int, Window]
    box: Mailbox
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class LinkProbe:
    """Times operations between ranks; its one step is all there is.

    Operations: ``message``, there and back between rank 0 and another of its node, or any if it has
    none; ``far message``, with a rank of another node; ``all``, a message from every rank to the
    next one of its node at once; ``average``, of rank 0 with the furthest of the two; ``exchange``,
    with the neighbours; ``collective``, an allreduce.

    Parameters
    ----------
    nodes : sequence of int
        Node of each rank.
    length : int
        Parameters of the long vectors.
    repeats : int
        Of each operation, after a first one that does not count.
    """

    nodes: Sequence[int]
    length: int
    repeats: int = 31
    lr: float = 0.0

    name: ClassVar[str] = "link-probe"
    synchronous: ClassVar[bool] = True

    @property
    def requires(self) -> Requires:
        """Any graph will do."""
        return "none"

    @property
    def near(self) -> int | None:
        """Another rank of rank 0's node."""
        return next((r for r in range(1, len(self.nodes)) if self.nodes[r] == self.nodes[0]), None)

    @property
    def far(self) -> int | None:
        """A rank of another node."""
        return next((r for r, node in enumerate(self.nodes) if node != self.nodes[0]), None)

    def init(self, w: Worker, x0: Vector) -> State:
        """Make windows and a mailbox."""
        lengths = (SHORT, self.length)
        windows = {n: w.window(f"probe {n}", x0.new_zeros(n)) for n in lengths}
        return State(x0.new_zeros(1), windows, w.mailbox("probe"))

    async def step(self, w: Worker, s: State) -> None:
        """Time everything, short and long in turns: what else the machine does meets both."""
        vectors = {length: s.x.new_zeros(length) for length in (SHORT, self.length)}
        for name in OPERATIONS:
            for repeat in range(self.repeats + 1):
                for length, v in vectors.items():
                    operation = self._operation(name, w, s, v)
                    if operation is None:
                        continue
                    await w.allreduce(s.x)  # all begin together
                    await _ended(w)
                    began_s = w.now_s()  # type: ignore[attr-defined]
                    await operation()
                    await _ended(w)
                    if repeat > 0:
                        taken_s = w.now_s() - began_s  # type: ignore[attr-defined]
                        s.seconds.setdefault((name, length), []).append(taken_s)

    def _operation(
        self, name: str, w: Worker, s: State, v: Vector
    ) -> Callable[[], Awaitable[Any]] | None:
        """Return what this rank does in an operation; None if it is not possible here."""
        peer = {"message": self.near, "far message": self.far}.get(name, self.far or self.near)
        if peer is None:
            return None

        async def there_and_back() -> None:
            if w.rank == 0:
                await s.box.send(peer, v)
                await s.box.recv()
            elif w.rank == peer:
                await s.box.recv()
                await s.box.send(0, v)

        async def all_at_once() -> None:
            mates = [r for r, node in enumerate(self.nodes) if node == self.nodes[w.rank]]
            await s.box.send(mates[(mates.index(w.rank) + 1) % len(mates)], v)
            await s.box.recv()

        async def average() -> None:
            while w.rank == 0 and not await s.windows[len(v)].average(peer):
                pass

        async def exchange() -> None:
            await w.neighbor_allgather(v)

        async def collective() -> None:
            await w.allreduce(v)

        known = {"all": all_at_once, "average": average, "exchange": exchange,
                 "collective": collective}  # fmt: skip
        return known.get(name, there_and_back)


async def _ended(w: Worker) -> None:
    """Wait until a device has done what it was asked to, which goes on behind a handle's back."""
    if hasattr(w, "lane"):  # not the simulator's
        await w.lane.done("what is measured")


@dataclass
class AloneState:
    """What a rank keeps that trains by itself."""

    x: Vector
    m: Vector


@dataclass(frozen=True)
class Alone:
    """Heavy ball on every rank, and not a word between them: what a step takes by itself."""

    lr: float = 1e-4
    mu: float = 0.9

    name: ClassVar[str] = "alone"
    synchronous: ClassVar[bool] = False

    @property
    def requires(self) -> Requires:
        """Any graph will do."""
        return "none"

    def init(self, w: Worker, x0: Vector) -> AloneState:
        """Start at x0 without momentum."""
        return AloneState(x0.clone(), torch.zeros_like(x0))

    async def step(self, w: Worker, s: AloneState) -> None:
        """Take a momentum step."""
        g = await w.gradient(s.x, w.sample())
        mix.heavy_ball(s.x, s.m, g, w.lr, self.mu)
        await _ended(w)
