"""The alternative to the inbox protocol: element-wise atomic sums by everyone.

Every change, the owner's included, is an ``MPI_Accumulate`` SUM, every read a ``Get_accumulate``
NO_OP: MPI makes each element atomic, and only among these. No owner need run, so a sum lands even
while its target computes; but the two ends of an average do not exclude others, so it conserves
sums without making pairs meet exactly. An oracle in tests, and the ground of mode "sums".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from mpimomentum.measures import Traffic
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.memory import chunks
from mpimomentum.transport.mpi import MPI, own_memory
from mpimomentum.worker import Handle, Vector

_VERSION, _MIXES = 0, 1


class AccumulateWindow:
    """A worker.Window of atomic sums. Collective to make and to :meth:`close`.

    Never write its memory in any other way, not even the own part: plain stores beside
    accumulates lose updates.

    Parameters
    ----------
    env : Environment
    name : str
    x0 : Vector, shape (dim,)
        Copied; the same ``dim`` on all ranks.
    """

    def __init__(self, env: Environment, name: str, x0: Vector) -> None:
        if x0.device.type != "cpu":
            raise ValueError(
                f"rank {env.rank}: accumulate window {name!r} is in host memory, got {x0.device}"
            )
        self.name = name
        self.rank = env.rank
        self.dim = x0.numel()
        self.dtype = x0.dtype
        self.attempts = self.busy = 0
        self.traffic = Traffic()
        itemsize = x0.element_size()
        make = MPI.Win.Allocate_shared if env.nodes == 1 else MPI.Win.Allocate
        self._sums = make(max(self.dim, 1) * itemsize, itemsize, comm=env.comm)
        self._counts = make(16, 8, comm=env.comm)
        self._chunks = list(chunks(self.dim, itemsize))
        for window in (self._sums, self._counts):
            window.Lock_all(MPI.MODE_NOCHECK)
        own = own_memory(self._sums, x0.numpy().dtype)[: self.dim]
        own[:] = x0.numpy()
        own_memory(self._counts, np.int64)[:2] = 0
        self._sums.Sync()
        env.comm.Barrier()

    @property
    def version(self) -> int:
        """Adds applied to the own vector."""
        return self._count(_VERSION, self.rank, 0)

    @property
    def mixes(self) -> int:
        """Averages applied to the own vector."""
        return self._count(_MIXES, self.rank, 0)

    def read(self, out: Vector | None = None) -> Vector:
        """Copy the own vector, element by element atomic."""
        out = torch.empty(self.dim, dtype=self.dtype) if out is None else out
        return self._fetch(self.rank, out)

    def get(self, rank: int) -> Handle[tuple[Vector, int]]:
        """Read `rank`'s vector; it may mix updates, unlike the inbox window's."""
        version = self._count(_VERSION, rank, 0)
        x = self._fetch(rank, torch.empty(self.dim, dtype=self.dtype))
        return Handle.completed((x, version))

    def add(self, rank: int, v: Vector) -> Handle[None]:
        """Do x_rank += v."""
        self._sum(rank, v)
        self._count(_VERSION, rank, 1)
        return Handle.completed(None)

    def writing(self) -> Iterator[tuple[Vector, slice]]:
        """Change a copy of the own vector, then add what has changed: others may add meanwhile."""
        before = self.read()
        x = before.clone()
        yield x, slice(0, self.dim)
        self.add(self.rank, x.sub_(before))

    def average(self, rank: int) -> Handle[bool]:
        """Add d to the own vector and −d to `rank`'s, d = (x_rank − x_own)/2; never busy."""
        self.attempts += 1
        d = self._fetch(rank, torch.empty(self.dim, dtype=self.dtype)).sub_(self.read()).mul_(0.5)
        self._sum(self.rank, d)
        self._sum(rank, d.neg_())
        self._count(_MIXES, rank, 1)
        self._count(_MIXES, self.rank, 1)
        return Handle.completed(True)

    def drain(self) -> bool:
        """Nothing to do: sums land by themselves."""
        return False

    async def rest(self) -> None:
        """Nothing is ever under way."""

    def restore(self, x: Vector, version: int, mixes: int) -> None:
        """Set the own vector and its counts; only while nothing is in flight."""
        own_memory(self._sums, x.numpy().dtype)[: self.dim] = x.numpy()
        own_memory(self._counts, np.int64)[:2] = version, mixes
        self._sums.Sync()
        self._counts.Sync()

    def close(self) -> None:
        """Free the memory; collective."""
        for window in (self._sums, self._counts):
            window.Unlock_all()
            window.Free()

    def _fetch(self, rank: int, out: Vector) -> Vector:
        target = out.numpy()
        unused = np.empty(0, dtype=target.dtype)
        for piece in self._chunks:
            where = (piece.start, piece.stop - piece.start)
            self._sums.Get_accumulate(unused, target[piece], rank, where, MPI.NO_OP)
            self._sums.Flush(rank)
        if rank != self.rank:
            self.traffic.count(target.nbytes)
        return out

    def _sum(self, rank: int, v: Vector) -> None:
        source = v.numpy()
        for piece in self._chunks:
            where = (piece.start, piece.stop - piece.start)
            self._sums.Accumulate(source[piece], rank, where, MPI.SUM)
        self._sums.Flush(rank)  # `source` is MPI's until here
        if rank != self.rank:
            self.traffic.count(source.nbytes)

    def _count(self, which: int, rank: int, k: int) -> int:
        added, old = np.array([k]), np.empty(1, dtype=np.int64)  # MPI's until the flush
        self._counts.Fetch_and_op(added, old, rank, which, MPI.SUM)
        self._counts.Flush(rank)
        return int(old[0])
