"""Placement "pinned": x and inbox are in the node's shared memory, vectors on a device.

The lane copies between x, which is registered with CUDA, and the device; sums are the host's, as
are exchanges between ranks. So that a copy in the lane finds x as it was when it was begun, the
host writes x only while the lane has nothing to do with it, which is polled.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mpimomentum.non_finite import Guard
from mpimomentum.transport import outward
from mpimomentum.transport.device_window import DeviceWindow, PassesSegment
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.lane import Lane
from mpimomentum.transport.pin_limits import pin_failure, require_pinnable
from mpimomentum.transport.progress import Engine, Poll
from mpimomentum.transport.segment import VERSION
from mpimomentum.transport.window import InboxWindow, Told
from mpimomentum.worker import Handle, Vector


class PinnedWindow(DeviceWindow):
    """See :class:`~mpimomentum.transport.device_window.DeviceWindow`. Collective to make.

    Parameters
    ----------
    env : Environment
    engine : Engine
    lane : Lane
    name : str
    x0 : Vector, shape (dim,)
    guard : Guard, optional

    Raises
    ------
    MemoryError
        On all ranks, if one of them cannot have its vector registered.
    """

    def __init__(
        self,
        env: Environment,
        engine: Engine,
        lane: Lane,
        name: str,
        x0: Vector,
        guard: Guard | None = None,
    ) -> None:
        super().__init__(env, engine, lane, name, x0, guard, PassesSegment)
        problem, nbytes = "", self.dim * self.dtype.itemsize
        try:
            require_pinnable(env.rank, nbytes, env.local_size)
            lane.pin(self._segment.x)
        except MemoryError as error:
            problem = str(error)
        except RuntimeError as error:  # CUDA's
            problem = str(pin_failure(env.rank, nbytes, str(error)))
        problems = [found for found in env.comm.allgather(problem) if found]
        if problems:
            if not problem:
                lane.unpin(self._segment.x)
            super().close()
            raise MemoryError(problems[0])

    def writing(self) -> Iterator[tuple[Vector, slice]]:
        """Change the own vector on the device, piece by piece, each in the lane; one add."""
        self.drain()
        self._segment.begin()
        step = max(outward.PIECE_BYTES // self.dtype.itemsize, 1)
        scratch = torch.empty(min(step, self.dim), dtype=self.dtype, device=self.device)
        for start in range(0, self.dim, step):
            piece = slice(start, min(start + step, self.dim))
            x, host = scratch[: piece.stop - start], self._segment.x[piece]
            self._copy_in_lane(x, host)
            self._lane.settle()
            yield x, piece
            self._copy_in_lane(host, x)
        self._segment.counters[VERSION] += 1
        self._begun()

    def close(self) -> None:
        """Free the memory; collective."""
        self._lane.unpin(self._segment.x)
        super().close()

    def _take(self) -> bool:
        return self._copied.query() and InboxWindow.drain(self)

    async def _get_remote(self, rank: int, told: Told = None) -> tuple[Vector, int]:
        dim = self._segment.dims[rank]
        host = self._lane.staging(dim, self.dtype)
        _, counters = await self._segment.read_whole(rank, host)
        v = torch.empty(dim, dtype=self.dtype, device=self.device)
        self._lane.begin(lambda: v.copy_(host, non_blocking=True))
        await self._lane.done("a vector to come to the device", (v, host))
        return v, counters[VERSION]

    def _add_own(self, v: Vector) -> Handle[None]:
        what = f"an add to window {self.name!r} of rank {self.rank} itself"
        return self._engine.spawn(self._sum_own(v), what)

    async def _sum_own(self, v: Vector) -> None:
        """Bring `v` down, then sum in one go: own reads find none of it, or all."""
        host = self._lane.staging(self.dim, self.dtype)
        self._lane.begin(lambda: host.copy_(v, non_blocking=True))
        await self._lane.done("an add to come from the device", (v, host))
        if self._held_for_others:
            InboxWindow._look_at(self, host, self.rank)
        await Poll(lambda: self._copied.query() or None, "the lane to have read x")
        self._segment.apply(host, VERSION)

    async def _fill_inbox(self, rank: int, v: Vector) -> None:
        async for piece, host in outward.to_host(self._lane, v):
            InboxWindow._look_at(self, host, rank)
            self._segment.put_inbox(rank, host, piece.start)
