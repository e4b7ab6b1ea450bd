"""Sums on the virtual clock: each row of a shard is added to, and read, in an event of its own.

So what a read finds may be torn between shards and between rows, as on MPI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        simulation, now_s = self._simulation, self._simulation.now_s
        last_s = now_s
        for peer in self._from_own_on():
            shard = self._shards[peer.rank]
            for row, factor in factors.items():
                change = v[shard] * factor
                arrival_s = self._moved_by(self.rank, peer.rank, change)
                simulation.at(arrival_s, partial(_add, peer._own[row], change))
                last_s = max(last_s, arrival_s)
        acknowledged_s = simulation.latency_s if last_s > now_s else 0.0
        await simulation.delay(last_s + acknowledged_s - now_s)
        simulation.arrived()
        handle.resolve(None)

    def read(self, rows: Sequence[int]) -> Handle[torch.Tensor]:
        """Copy rows, each row of a shard as it is when its last number leaves."""
        handle: Handle[torch.Tensor] = Handle(f"a read of sums {self.name!r}")
        self._worker.travel(self._read(rows, handle))
        return handle

    async def _read(self, rows: Sequence[int], handle: Handle[torch.Tensor]) -> None:
        simulation = self._simulation
        found = self._own.new_empty((len(rows), self._dim))
        asked_s = simulation.now_s
        here, *others = self._from_own_on()
        arrivals = [here._answer(rows, found, self)]
        if others:
            await simulation.delay(simulation.latency_s)
            arrivals += [peer._answer(rows, found, self) for peer in others]
        await simulation.delay(max(asked_s, *arrivals, simulation.now_s) - simulation.now_s)
        handle.resolve(found)

    def _answer(self, rows: Sequence[int], found: torch.Tensor, reader: VirtualSums) -> float:
        """Send rows of this shard; return when the last is there."""
        simulation, shard = self._simulation, self._shards[self.rank]
        last_s = simulation.now_s
        for row, out in zip(rows, found, strict=True):
            source = self._own[row]
            last_s = reader._moved_by(self.rank, reader.rank, source)
            leaves_s = max(last_s - simulation.latency_s, simulation.now_s)
            simulation.at(leaves_s, partial(_copy, source, out[shard]))
        return last_s

    def own(self) -> torch.Tensor:
        """Copy the own shard."""
        return self._own.clone()

    def restore(self, own: torch.Tensor) -> None:
        """Set the own shard."""
        self._own.copy_(own)

    def _from_own_on(self) -> list[VirtualSums]:
        return self._parts[self.rank :] + self._parts[: self.rank]

    def _moved_by(self, source: int, target: int, v: Vector) -> float:
        """Count a message of this rank's doing; return when it arrives."""
        nbytes = v.numel() * v.element_size()
        if source != target:
            self.traffic.count(nbytes)
        return self._simulation.network.arrival_s(self._simulation.now_s, source, target, nbytes)


def _add(x: torch.Tensor, change: torch.Tensor) -> None:
    x += change


def _copy(source: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(source)
