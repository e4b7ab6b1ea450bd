"""Collectives of vectors on a device: the host's, with the ways there and back.

Same calls as :class:`~mpimomentum.transport.collectives.Collectives`; vectors of the host still go
straight to it, in their turn. What is summed comes through pinned memory in pieces and, on one
node, has the bits that it has on the CPU: the order in which ranks are added does not depend on how
a vector is cut. Between nodes MPI adds pieces in an order of its own, as it does whole vectors. The
bytes of everything else, packed signs among them, are moved as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from mpimomentum.non_finite import Guard
from mpimomentum.transport.collectives import HALF, Collectives, Then
from mpimomentum.transport.direct import Direct
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.lane import Lane
from mpimomentum.transport.line import Line, Look
from mpimomentum.transport.progress import Engine
from mpimomentum.transport.staging import Staging
from mpimomentum.worker import Handle, Mixing, Vector

R = TypeVar("R")
T = TypeVar("T")


class StagedCollectives:
    """The collectives of one rank whose vectors live on a device. Collective to make and to close.

    Parameters
    ----------
    env : Environment
    engine : Engine
    lane : Lane
    staging : Staging
        What goes to MPI directly, and what through pinned memory.
    guard : callable
        () -> Guard or None: looks at what leaves, where that is cheap: on the host.
    """

    def __init__(
        self,
        env: Environment,
        engine: Engine,
        lane: Lane,
        staging: Staging,
        guard: Callable[[], Guard | None],
    ) -> None:
        self.rank, self.size = env.rank, env.size
        self._lane, self._staging, self._guard = lane, staging, guard
        self._host = Collectives(env, engine, make=lane.staging)
        self._direct = Direct(self._host, lane)
        self.traffic = self._host.traffic
        # as many as there are communicators: within one of them calls begin in order
        self._line, self._gradients, self._neighbors = (Line(lane, engine) for _ in range(3))

    @property
    def allreduce_path(self) -> str:
        """How float32 and float64 vectors are summed, in words."""
        if self._staging.sums == "direct":
            return "MPI's allreduce, of device memory"
        return f"from pinned memory, {self._host.allreduce_path}"

    def allreduce(self, v: Vector, *, counted: bool = True) -> Handle[Vector]:
        """Sum over all ranks; not `counted` in :attr:`traffic` if it is no part of the run."""
        host = self._host
        if not self._lane.holds(v):
            begin = lambda: host.allreduce(v, counted=counted)  # noqa: E731
            return self._line.on_host(begin, _comes("allreduce"))
        if v.dtype in HALF:
            self._lane.settle()
            wide = self.allreduce(v.float(), counted=counted)
            return Then(wide, lambda total: total.to(v.dtype))
        _check_flat(v)
        host.check_reducible(v)
        if counted:
            host.count_sum(v)
        look = self._look("an allreduce") if counted else None
        out = torch.empty_like(v)
        return self._sum(self._line, v, out, False, _comes("allreduce"), look)

    def mean_of_gradients(self, v: Vector, out: Vector) -> Handle[Vector]:
        """Set `out`, which may be `v`, to the mean over all ranks; in an order of its own calls."""
        host, what = self._host, _comes("mean gradient")
        if not self._lane.holds(v):
            return self._gradients.on_host(lambda: host.mean_of_gradients(v, out), what)
        _check_flat(v)
        host.check_averaged(v)
        host.count_sum(v)
        return self._sum(self._gradients, v, out, True, what, None)

    def _sum(
        self, line: Line, v: Vector, out: Vector, gradients: bool, what: str, look: Look | None
    ) -> Handle[Vector]:
        if self._staging.sums == "direct":
            return line.direct(v, lambda v: self._direct.sum(v, out, gradients), _same, what, look)
        return line.in_pieces(v, out, lambda p: self._host.sum_piece(p, gradients), what, look)

    def allgather(self, v: Vector) -> Handle[Vector]:
        """Gather equal parts, shape (size, len(v))."""
        host, what = self._host, _comes("allgather")
        if not self._lane.holds(v):
            return self._line.on_host(lambda: host.allgather(v), what)
        _check_flat(v)
        look = self._look("an allgather")
        if self._direct_fits(self._staging.collectives, self.size * v.nbytes):
            out = self._empty(self.size, v.numel(), dtype=v.dtype)
            return self._line.direct(v, lambda v: self._direct.allgather(v, out), _same, what, look)
        return self._line.whole(v, host.allgather, self._line.up, what, look)

    def alltoall(self, rows: Vector) -> Handle[Vector]:
        """Send row j to rank j; row i came from rank i."""
        host, what = self._host, _comes("alltoall")
        host.check_rows(rows)
        if not self._lane.holds(rows):
            return self._line.on_host(lambda: host.alltoall(rows), what)
        look = self._look("an alltoall")
        if self._direct_fits(self._staging.collectives, rows.nbytes):
            out = self._empty(*rows.shape, dtype=rows.dtype)
            return self._line.direct(
                rows, lambda rows: self._direct.alltoall(rows, out), _same, what, look
            )
        return self._line.whole(rows, host.alltoall, self._line.up, what, look)

    def broadcast(self, v: Vector, root: int) -> Handle[Vector]:
        """Overwrite `v`, of any type, with that of `root`; `v` is not to be touched before done."""
        host, what = self._host, _comes(f"broadcast from rank {root}")
        if not self._lane.holds(v):
            return self._line.on_host(lambda: host.broadcast(v, root), what)
        _check_flat(v)
        return self._line.whole(
            v, lambda h: host.broadcast(h, root), lambda h: self._line.up(h, v), what
        )

    def neighbor_allgather(self, v: Vector, mixing: Mixing, t: int) -> Handle[dict[int, Vector]]:
        """Send `v` along the out-edges of `mixing`, collect from its in-edges, in rank order."""
        line, host, what = self._neighbors, self._host, f"the models of step {t}"
        if not self._lane.holds(v):
            return line.on_host(lambda: host.neighbor_allgather(v, mixing, t), what)
        _check_flat(v)
        look = self._look("its neighbours", "sends to")
        if self._staging.messages == "direct":
            others = sorted(mixing.in_weights.keys() - {self.rank})
            outs = {j: self._empty(v.numel(), dtype=v.dtype) for j in others}
            return line.direct(
                v,
                lambda v: self._direct.neighbor_allgather(v, outs, mixing, t),
                _same,
                what,
                look,
            )

        def finish(received: dict[int, Vector]) -> dict[int, Vector]:
            return {j: v if j == self.rank else line.up(u) for j, u in received.items()}

        return line.whole(v, lambda h: host.neighbor_allgather(h, mixing, t), finish, what, look)

    async def gather(self, v: Vector) -> list[Vector] | None:
        """Collect vectors of any length at rank 0, in rank order, on the host: None elsewhere.

        On the host, since rank 0's device may have no room for all of them.
        """
        lengths = (await self.allgather(torch.tensor([v.numel()])))[:, 0].tolist()
        if self._lane.holds(v):
            v = await self._neighbors.whole(v, Handle.completed, _same, "a vector to come down")
        return await self._host.collect(v, lengths)

    def barrier(self) -> Handle[None]:
        """Wait until every rank has come here."""
        return self._line.on_host(self._host.barrier, _comes("barrier"))

    def close(self) -> None:
        """Free the communicators and the memory."""
        for line in (self._line, self._gradients, self._neighbors):
            line.close()
        self._host.close()

    # ----------------------------------------------------------------------------------------------

    def _empty(self, *shape: int, dtype: torch.dtype) -> Vector:
        return torch.empty(shape, dtype=dtype, device=self._lane.device)

    def _direct_fits(self, way: str, nbytes: int) -> bool:
        """Whether MPI gets it at once; what its counts do not hold goes through pinned memory."""
        return way == "direct" and nbytes <= self._host.max_count

    def _look(self, whither: str, does: str = "brings to") -> Look | None:
        guard = self._guard()
        if guard is None:
            return None
        return lambda v: guard.leaving(v, f"what this rank {does} {whither}")


AnyCollectives = Collectives | StagedCollectives


def _same(value: T) -> T:
    return value


def _comes(name: str) -> str:
    return f"the device to come to the {name}"


def _check_flat(v: Vector) -> None:
    if v.dim() != 1 or not v.is_contiguous():
        raise ValueError(
            f"a flat, contiguous tensor is needed, got shape {tuple(v.shape)}, strides "
            f"{v.stride()}, on {v.device}"
        )
