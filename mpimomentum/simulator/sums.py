"""Sums on the virtual clock: each row of a shard is added to, and read, in an event of its own.

So what a read finds may be torn between shards and between rows, as on MPI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mpimomentum.measures import Traffic
from mpimomentum.worker import Handle, Vector

if TYPE_CHECKING:
    from mpimomentum.simulator.simulation import Simulation


class VirtualSums:
    """A worker.Sums on the virtual clock.

    Parameters
    ----------
    simulation : Simulation
    name : str
    rank : int
    x0 : Vector, shape (dim,)
    rows : int
    parts : list
        The sums of all ranks; these enter themselves.
    """

    def __init__(
        self,
        simulation: Simulation,
        name: str,
        rank: int,
        x0: Vector,
        rows: int,
        parts: list[Any],
    ) -> None:
        self.name = name
        self.rank = rank
        self.traffic = Traffic()
        self._simulation = simulation
        self._worker = simulation.workers[rank]
        self._dim = x0.numel()
        size = simulation.size
        self._shards = [
            slice(r * self._dim // size, (r + 1) * self._dim // size) for r in range(size)
        ]
        mine = x0[self._shards[rank]]
        self._own = mine.new_zeros((rows, len(mine)))
        self._own[0] = mine
        self._parts: list[VirtualSums] = parts
        parts[rank] = self

    def add(self, v: Vector, factors: Mapping[int, float]) -> Handle[None]:
        """Do row r += factors[r] v."""
        if self._worker.guard is not None:
            self._worker.guard.leaving(v, f"what is added to sums {self.name!r}")
        handle: Handle[None] = Handle(f"an add to sums {self.name!r}")
        self._simulation.departed()
        self._worker.travel(self._add(v, factors, handle))
        return handle

    async def _add(self, v: Vector, factors: Mapping[int, float], handle: Handle[None]) -> None:
        simulation = self._simulation
        on_the_way = [
            self._moved(peer.rank, peer._own[row], v[self._shards[peer.rank]] * factor)
            for peer in self._from_own_on()
            for row, factor in factors.items()
        ]
        for message in on_the_way:
            await message
        latency_s = simulation.network.latency_s
        await simulation.delay(max(latency_s(p.rank, self.rank) for p in self._parts))
        simulation.arrived()  # and acknowledged
        handle.resolve(None)

    def read(self, rows: Sequence[int]) -> Handle[torch.Tensor]:
        """Copy rows, each row of a shard as it is when its last number leaves."""
        handle: Handle[torch.Tensor] = Handle(f"a read of sums {self.name!r}")
        self._worker.travel(self._read(rows, handle))
        return handle

    async def _read(self, rows: Sequence[int], handle: Handle[torch.Tensor]) -> None:
        simulation = self._simulation
        found = self._own.new_empty((len(rows), self._dim))
        on_the_way = []
        for peer in self._from_own_on():
            asked_s = simulation.now_s + simulation.network.latency_s(self.rank, peer.rank)
            for row, out in zip(rows, found, strict=True):
                answer: Handle[None] = Handle(f"a row of rank {peer.rank}")
                on_the_way.append(answer)
                copy = partial(_copy, peer._own[row], out[self._shards[peer.rank]])
                simulation.at(asked_s, partial(self._answered, peer, peer._own[row], copy, answer))
        for answer in on_the_way:
            await answer
        handle.resolve(found)

    def _answered(
        self, peer: VirtualSums, row: Vector, copy: Callable[[], None], answer: Handle[None]
    ) -> None:
        """Send a row, read when its last number leaves."""
        simulation = self._simulation
        nbytes = self._count(peer.rank, row)
        simulation.send(peer.rank, self.rank, nbytes, lambda: answer.resolve(None), copy)

    def own(self) -> torch.Tensor:
        """Copy the own shard."""
        return self._own.clone()

    def restore(self, own: torch.Tensor) -> None:
        """Set the own shard."""
        self._own.copy_(own)

    def _from_own_on(self) -> list[VirtualSums]:
        return self._parts[self.rank :] + self._parts[: self.rank]

    def _moved(self, target: int, row: Vector, change: Vector) -> Handle[None]:
        """Add `change` to a row of `target`; done when it is there."""
        handle: Handle[None] = Handle(f"an add to a row of rank {target}")

        def arrived() -> None:
            row.add_(change)
            handle.resolve(None)

        self._simulation.send(self.rank, target, self._count(target, change), arrived)
        return handle

    def _count(self, other: int, v: Vector) -> int:
        """Count a message between this rank and another; return its bytes."""
        nbytes = v.numel() * v.element_size()
        if other != self.rank:
            self.traffic.count(nbytes)
        return nbytes


def _copy(source: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(source)
