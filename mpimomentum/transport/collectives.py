"""Collectives as handles: allreduce, allgather, alltoall, neighbor_allgather.

Every rank must call them in the same order. Half precision is reduced in float32, since one MPI
library returns garbage for bfloat16 and the other refuses it.

Ranks of one node add float32 and float64 themselves, in ascending order of rank
(:mod:`mpimomentum.transport.shared_allreduce`); anything else, and ranks of several nodes, go
through MPI's allreduce, which adds in an order of its own (docs/adr).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from mpimomentum.measures import Traffic
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.mpi import MPI
from mpimomentum.transport.progress import Engine
from mpimomentum.transport.requests import Requests
from mpimomentum.transport.shared_allreduce import DTYPES, SharedAllreduce
from mpimomentum.worker import Handle, Mixing, Vector

_REDUCIBLE = (torch.float32, torch.float64, torch.int64, torch.int32)
HALF = (torch.float16, torch.bfloat16)
TAGS = 32767  # every MPI allows tags up to this
_GATHER = TAGS


def _make(count: int, dtype: torch.dtype) -> Vector:
    return torch.empty(count, dtype=dtype)


def as_buffer(v: Vector) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes of `v` without a copy.

    Raises
    ------
    ValueError
        If `v` is not a contiguous, flat CPU tensor.
    """
    if v.device.type != "cpu" or v.dim() != 1 or not v.is_contiguous():
        raise ValueError(
            f"a flat, contiguous CPU tensor is needed, got shape {tuple(v.shape)}, strides "
            f"{v.stride()}, on {v.device}"
        )
    return v.detach().view(torch.uint8).numpy()


class Collectives:
    """The collectives of one rank. Collective to make and to :meth:`close`.

    Parameters
    ----------
    env : Environment
    engine : Engine
        Carries on what is under way.
    max_count : int
        Largest count of elements given to MPI at once; its counts are 32-bit in Open MPI.
    make : callable
        (count, dtype) -> Vector: memory for results.

    Attributes
    ----------
    traffic : Traffic
        What this rank had to send: 2(n−1)/n a byte for an allreduce (what the best algorithms
        send), n−1 times its part for an allgather, (n−1)/n of the rows for an alltoall.
    comm, neighbor_comm, gradients_comm : MPI.Intracomm
        Of what all ranks call in the same order; of messages; of parts of gradients.
    """

    def __init__(
        self,
        env: Environment,
        engine: Engine,
        max_count: int = 1 << 30,
        make: Callable[[int, torch.dtype], Vector] = _make,
    ) -> None:
        self.rank = env.rank
        self.size = env.size
        self.traffic = Traffic()
        self._engine = engine
        self.max_count = max_count
        self._make = make
        self.comm = env.comm.Dup()
        self.neighbor_comm = env.comm.Dup()
        self._sums = _Sums(env, engine, self.comm, "the allreduce")
        # of their own: when a part of a gradient comes depends on how long it took to compute
        self.gradients_comm = env.comm.Dup()
        self._gradients = _Sums(env, engine, self.gradients_comm, "the mean gradient")

    @property
    def allreduce_path(self) -> str:
        """How float32 and float64 vectors are summed, in words."""
        return self._sums.path

    def allreduce(self, v: Vector, *, counted: bool = True) -> Handle[Vector]:
        """Sum over all ranks; not `counted` in :attr:`traffic` if it is no part of the run."""
        as_buffer(v)
        if v.dtype in HALF:
            wide = v.float()
            return Then(self.allreduce(wide, counted=counted), lambda total: total.to(v.dtype))
        self.check_reducible(v)
        return self._reduce(self._sums, v, torch.empty_like(v), divisor=1, counted=counted)

    def mean_of_gradients(self, v: Vector, out: Vector) -> Handle[Vector]:
        """Set `out`, which may be `v`, to the mean over all ranks; in an order of its own calls.

        Parameters
        ----------
        v, out : Vector
            float32 or float64; neither is to be touched until done.
        """
        as_buffer(v)
        self.check_averaged(v)
        return self._reduce(self._gradients, v, out, divisor=self.size)

    def _reduce(
        self, sums: _Sums, v: Vector, out: Vector, divisor: int, counted: bool = True
    ) -> Handle[Vector]:
        if counted:
            self.count_sum(v)
        return sums.start(v.detach(), out, divisor, self.slices(v.numel()))

    def sum_piece(self, piece: Vector, gradients: bool) -> Handle[Vector]:
        """Sum a piece of a vector in place, uncounted; the mean if it is of `gradients`."""
        if gradients:
            return self._reduce(self._gradients, piece, piece, self.size, counted=False)
        return self._reduce(self._sums, piece, piece, divisor=1, counted=False)

    def count_sum(self, v: Vector) -> None:
        """Count the sum of `v` over all ranks."""
        others = 2 * (self.size - 1)
        self.traffic.count(others * v.numel() * v.element_size() // self.size, others)

    def check_reducible(self, v: Vector) -> None:
        """Refuse what cannot be summed."""
        if v.dtype not in _REDUCIBLE:
            raise ValueError(f"rank {self.rank}: cannot sum {v.dtype} over ranks")

    def check_averaged(self, v: Vector) -> None:
        """Refuse what no gradient is made of."""
        if v.dtype not in DTYPES:
            raise ValueError(f"rank {self.rank}: cannot average {v.dtype} over ranks")

    def allgather(self, v: Vector) -> Handle[Vector]:
        """Gather equal parts, shape (size, len(v))."""
        source = as_buffer(v)
        out = self._make(self.size * v.numel(), v.dtype).view(self.size, v.numel())
        rows = _byte_rows(out, self.size)
        parts: list[tuple[slice, Any]] = []
        requests = []
        for s in self.slices(len(source), self.size):
            whole = s.stop - s.start == len(source)
            part = rows if whole else np.empty((self.size, s.stop - s.start), dtype=np.uint8)
            requests.append(self.comm.Iallgather(source[s], part))
            if not whole:
                parts.append((s, part))
        self.traffic.count((self.size - 1) * len(source), self.size - 1)
        return Requests(
            requests, lambda: _assembled(out, rows, parts), self._what("allgather"), hold=(v, parts)
        )

    def broadcast(self, v: Vector, root: int) -> Handle[Vector]:
        """Overwrite `v`, of any type, with that of `root`; `v` is not to be touched before done."""
        data = as_buffer(v)
        requests = [self.comm.Ibcast(data[s], root) for s in self.slices(len(data))]
        if self.rank == root:
            self.traffic.count(len(data))
        return Requests(requests, lambda: v, self._what(f"broadcast from rank {root}"), hold=v)

    def alltoall(self, rows: Vector) -> Handle[Vector]:
        """Send row j to rank j; row i came from rank i."""
        self.check_rows(rows)
        out = self._make(rows.numel(), rows.dtype).view(rows.shape)
        source, target = _byte_rows(rows, self.size), _byte_rows(out, self.size)
        parts: list[tuple[slice, Any]] = []
        requests = []
        hold = []
        for s in self.slices(source.shape[1], self.size):
            whole = s.stop - s.start == source.shape[1]
            given = source if whole else np.ascontiguousarray(source[:, s])
            part = target if whole else np.empty_like(given)
            requests.append(self.comm.Ialltoall(given, part))
            hold.append(given)
            if not whole:
                parts.append((s, part))
        self.traffic.count(source.nbytes * (self.size - 1) // self.size, self.size - 1)
        return Requests(
            requests,
            lambda: _assembled(out, target, parts),
            self._what("alltoall"),
            hold=(rows, hold, parts),
        )

    def check_rows(self, rows: Vector) -> None:
        """Refuse what :meth:`alltoall` cannot send."""
        if rows.dim() != 2 or rows.shape[0] != self.size or not rows.is_contiguous():
            raise ValueError(
                f"rank {self.rank}: alltoall needs ({self.size}, m) contiguous, one row a rank, "
                f"got {tuple(rows.shape)}"
            )

    def neighbor_allgather(self, v: Vector, mixing: Mixing, t: int) -> Handle[dict[int, Vector]]:
        """Send `v` along the out-edges of `mixing`, collect from its in-edges, in rank order."""
        data = as_buffer(v)
        sources = sorted(j for j in mixing.in_weights if j != self.rank)
        targets = sorted(j for j in mixing.out_weights if j != self.rank)
        received = {
            j: v if j == self.rank else self._make(v.numel(), v.dtype)
            for j in sorted({*sources, self.rank})
        }
        tag = t % TAGS  # ranks of a time-varying graph may be a step apart
        requests: list[MPI.Request] = []
        for s in self.slices(len(data)):
            requests += [
                self.neighbor_comm.Irecv(as_buffer(received[j])[s], j, tag) for j in sources
            ]
            requests += [self.neighbor_comm.Isend(data[s], j, tag) for j in targets]
        self.traffic.count(len(targets) * len(data), len(targets))
        what = f"models of step {t} from ranks {sources}"
        return Requests(requests, lambda: received, what, hold=v)

    async def gather(self, v: Vector) -> list[Vector] | None:
        """Collect vectors of one dtype and any length at rank 0, in rank order; None elsewhere."""
        lengths = (await self.allgather(torch.tensor([v.numel()])))[:, 0].tolist()
        return await self.collect(v, lengths)

    async def collect(self, v: Vector, lengths: Sequence[int]) -> list[Vector] | None:
        """Do what :meth:`gather` does, once all know all lengths."""
        if self.rank:
            data = as_buffer(v)
            requests = [
                self.neighbor_comm.Isend(data[s], 0, _GATHER) for s in self.slices(len(data))
            ]
            await Requests(requests, lambda: None, "rank 0 to collect", hold=v)
            self.traffic.count(len(data))
            return None
        out = [v, *(torch.empty(n, dtype=v.dtype) for n in lengths[1:])]
        requests = [
            self.neighbor_comm.Irecv(as_buffer(part)[s], source, _GATHER)
            for source, part in enumerate(out)
            if source
            for s in self.slices(part.numel() * part.element_size())
        ]
        await Requests(requests, lambda: None, "all ranks to send what rank 0 collects", hold=out)
        return out

    def barrier(self) -> Handle[None]:
        """Wait until every rank has come here."""
        return Requests([self.comm.Ibarrier()], lambda: None, self._what("barrier"))

    def close(self) -> None:
        """Free the communicators and the memory."""
        self._sums.close()
        self._gradients.close()
        self.gradients_comm.Free()
        self.comm.Free()
        self.neighbor_comm.Free()

    def slices(self, count: int, copies: int = 1) -> Iterable[slice]:
        """Cut `count` elements, of which there are `copies`, into what MPI's counts hold."""
        step = max(self.max_count // copies, 1)
        return [slice(a, min(a + step, count)) for a in range(0, max(count, 1), step)]

    def _what(self, name: str) -> str:
        return f"all ranks to come to the {name}"


class _Sums:
    """Sums over all ranks, begun in the same order everywhere: our way or MPI's."""

    def __init__(self, env: Environment, engine: Engine, comm: MPI.Intracomm, name: str) -> None:
        self._engine = engine
        self._comm = comm
        self._name = name
        self._shared: SharedAllreduce | None = None
        if env.nodes == 1 and env.size > 1:
            self._shared = SharedAllreduce(env, name)
            engine.pollers.append(self._shared.poll)

    @property
    def path(self) -> str:
        if self._shared is None:
            return "MPI's allreduce"
        return "through the node's shared memory, in ascending order of rank"

    def start(
        self, v: Vector, out: Vector, divisor: int, slices: Iterable[slice]
    ) -> Handle[Vector]:
        if self._shared is not None and v.dtype in DTYPES:
            return self._shared.start(v, out, divisor)
        target = out.numpy()
        source = None if v.data_ptr() == out.data_ptr() else v.numpy()
        requests = [
            self._comm.Iallreduce(MPI.IN_PLACE if source is None else source[s], target[s])
            for s in slices
        ]

        def finish() -> Vector:
            return out if divisor == 1 else out.div_(divisor)

        return Requests(requests, finish, f"all ranks to come to {self._name}", hold=(v, out))

    def close(self) -> None:
        if self._shared is not None:
            self._engine.pollers.remove(self._shared.poll)
            self._shared.close()


class Then(Handle[Vector]):
    """Apply `function` to the result of another handle."""

    __slots__ = ("_first", "_function")

    def __init__(self, first: Handle[Vector], function: Any) -> None:
        super().__init__(first.what)
        self._first = first
        self._function = function

    def test(self) -> bool:
        """Poll the other."""
        if not self._done and self._first.test():
            self.resolve(self._function(self._first.result()))
        return self._done


def _byte_rows(v: Vector, rows: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return v.detach().reshape(-1).view(torch.uint8).numpy().reshape(rows, -1)


def _assembled(out: Vector, rows: Any, parts: list[tuple[slice, Any]]) -> Vector:
    for s, part in parts:
        rows[:, s] = part
    return out
