"""Sums that every rank adds to by MPI's atomic accumulates, cut into a shard a rank.

As in ``accumulate.py`` all changes are ``MPI_Accumulate`` SUM, all reads ``Get_accumulate`` NO_OP.
Rows are added to and read chunk by chunk, all rows of a chunk before the next: what another rank
finds half done is little, and what is scaled here is in cache when MPI takes it.

The sums are the host's: a vector of a device is brought down, what is read goes up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mpimomentum.codecs.arrays import as_tensor
from mpimomentum.measures import Traffic
from mpimomentum.non_finite import Guard
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.lane import Lane
from mpimomentum.transport.line import Line, on_host
from mpimomentum.transport.memory import chunks
from mpimomentum.transport.mpi import MPI, own_memory
from mpimomentum.transport.progress import Engine
from mpimomentum.transport.room import require_room
from mpimomentum.worker import Handle, Vector


class AccumulateSums:
    """A worker.Sums. Collective to make and to :meth:`close`.

    Parameters
    ----------
    env : Environment
    engine : Engine
    lane : Lane
        Where vectors live.
    name : str
    x0 : Vector, shape (dim,)
        Start of the first row, the same on all ranks.
    rows : int
    guard : Guard, optional
        Looks at what is added.
    """

    def __init__(
        self,
        env: Environment,
        engine: Engine,
        lane: Lane,
        name: str,
        x0: Vector,
        rows: int,
        guard: Guard | None = None,
    ) -> None:
        self._lane = lane
        self._line = Line(lane, engine) if lane.apart else None
        x0 = on_host(lane, x0)
        self.name = name
        self._guard = guard
        self.traffic = Traffic()
        self._rank, self._size = env.rank, env.size
        self._dim, self._rows, self._dtype = x0.numel(), rows, x0.dtype
        self._shards = [
            slice(r * self._dim // env.size, (r + 1) * self._dim // env.size)
            for r in range(env.size)
        ]
        here = self._shards[env.rank]
        itemsize = x0.element_size()
        nbytes = max(rows * (here.stop - here.start), 1) * itemsize
        if env.nodes == 1:
            require_room(env, nbytes)
        make = MPI.Win.Allocate_shared if env.nodes == 1 else MPI.Win.Allocate
        self._window = make(nbytes, itemsize, comm=env.comm)
        self._window.Lock_all(MPI.MODE_NOCHECK)
        memory = own_memory(self._window, x0.numpy().dtype)
        self._own = memory[: rows * (here.stop - here.start)].reshape(rows, -1)
        self._own[:1], self._own[1:] = x0[here].numpy(), 0
        self._window.Sync()
        env.comm.Barrier()

    def add(self, v: Vector, factors: Mapping[int, float]) -> Handle[None]:
        """Do row r += factors[r] v."""
        v = as_tensor(v)
        if v.dtype != self._dtype or v.shape != (self._dim,):
            raise ValueError(
                f"rank {self._rank}: sums {self.name!r} are of ({self._dim},) {self._dtype}, got "
                f"{tuple(v.shape)} {v.dtype}"
            )
        if self._line is None:
            return self._add(v, factors)
        what = f"what is added to sums {self.name!r} to come from the device"
        return self._line.whole(v, lambda u: self._add(u, factors), lambda _: None, what)

    def _add(self, v: Vector, factors: Mapping[int, float]) -> Handle[None]:
        if self._guard is not None:
            self._guard.leaving(v, f"what is added to sums {self.name!r}")
        for rank, piece, width in self._pieces():
            scaled = [(v[piece] * factor).numpy() for factor in factors.values()]
            for row, source in zip(factors, scaled, strict=True):
                where = self._where(rank, row, piece, width)
                self._window.Accumulate(source, rank, where, MPI.SUM)
            self._window.Flush(rank)  # `scaled` is MPI's until here
        self._count(len(factors))
        return Handle.completed(None)

    def read(self, rows: Sequence[int]) -> Handle[torch.Tensor]:
        """Copy rows."""
        found = self._lane.staging(len(rows) * self._dim, self._dtype).view(len(rows), self._dim)
        unused: np.ndarray[Any, Any] = np.empty(0, dtype=self._own.dtype)
        for rank, piece, width in self._pieces():
            for row, target in zip(rows, found.numpy(), strict=True):
                where = self._where(rank, row, piece, width)
                self._window.Get_accumulate(unused, target[piece], rank, where, MPI.NO_OP)
            self._window.Flush(rank)
        self._count(len(rows))
        if self._line is not None:
            found = self._line.up(found)
            self._lane.settle()
        return Handle.completed(found)

    def own(self) -> torch.Tensor:
        """Copy the own shard."""
        self._window.Sync()
        return torch.from_numpy(self._own.copy())

    def restore(self, own: torch.Tensor) -> None:
        """Set the own shard."""
        self._own[:] = on_host(self._lane, own).numpy()
        self._window.Sync()

    def close(self) -> None:
        """Free the memory; collective."""
        if self._line is not None:
            self._line.close()
        del self._own
        self._window.Unlock_all()
        self._window.Free()

    def _pieces(self) -> list[tuple[int, slice, int]]:
        """Return (rank, part of the vector, width of the rank's shard), from the own one on."""
        return [
            (rank % self._size, slice(shard.start + c.start, shard.start + c.stop), width)
            for rank in range(self._rank, self._rank + self._size)
            for shard in [self._shards[rank % self._size]]
            for width in [shard.stop - shard.start]
            for c in chunks(width, self._dtype.itemsize)
        ]

    def _where(self, rank: int, row: int, piece: slice, width: int) -> tuple[int, int]:
        start = row * width + piece.start - self._shards[rank].start
        return start, piece.stop - piece.start

    def _count(self, rows: int) -> None:
        own = self._shards[self._rank]
        others = self._dim - (own.stop - own.start)
        self.traffic.count(rows * others * self._dtype.itemsize, rows * (self._size - 1))
