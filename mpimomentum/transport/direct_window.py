"""Placement "direct": as "ipc" between ranks of a node; those of other nodes get and put.

x and inbox are in the device's memory. What is opened within the node is also a window of MPI, to
which it gives device pointers: the claimant gets its peer's x into a buffer on its own device, the
same kernel makes the difference there, and that is put into the peer's inbox before the word says
so. Words and counts are in host memory and, as always across nodes, reached through MPI alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import cast

import torch

from mpimomentum.transport.device_memory import DeviceMemory
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.exposed import Exposed
from mpimomentum.transport.ipc_window import IpcSegment, IpcWindow, inbox_at
from mpimomentum.transport.lane import Lane
from mpimomentum.transport.memory import Memory
from mpimomentum.transport.mpi import MPI
from mpimomentum.worker import Vector


class DirectSegment(IpcSegment):
    """See :class:`~mpimomentum.transport.ipc_window.IpcSegment`. Collective to make.

    Parameters
    ----------
    env : Environment
    x0 : Vector, shape (dim,)
    lane : Lane

    Raises
    ------
    MemoryError
        On all ranks, if a device has no room, or is not reached from another of its node.

    Attributes
    ----------
    buffers : tuple of Vector, optional
        What stands for x and inbox of a rank of another node, where there is one.
    """

    def __init__(self, env: Environment, x0: Vector, lane: Lane) -> None:
        super().__init__(env, x0, lane)
        self.buffers = self._reserved(env)
        own = self._vectors.direct(env.local_rank, 0, self._nbytes, torch.uint8)
        self._exposed = Exposed(env, own)

    async def fetch_x(self, rank: int, out: Vector) -> None:
        """Copy or get the vector of `rank`, as it is; it may mix updates."""
        view = self.peer(rank)
        if view is not None:
            self.memory.fence()
            self._lane.begin(lambda: out.copy_(view[0], non_blocking=True))
            await self._lane.done(f"a vector of rank {rank}", (out, view[0]))
            self.memory.fence()
            return
        await self._lane.done("what used this memory before", out)
        await self._exposed.get(rank, 0, out)

    async def put(self, rank: int, v: Vector) -> None:
        """Put `v`, which is done, into the inbox of a rank of another node, which is claimed."""
        await self._exposed.put(rank, inbox_at(self.dims[rank], self.dtype), v)

    async def read_whole(
        self, rank: int, out: Vector, gone: Callable[[], bool] = lambda: False
    ) -> tuple[Vector, list[int]]:
        """Copy the vector of another rank between two of its writes."""
        return await self.read_whole_by_get(rank, out)

    def serve(self) -> None:
        """Let those of other nodes come on."""
        self._exposed.serve()

    def acquire(self) -> None:
        """Have what is begun now read what others wrote before the word that was seen."""
        super().acquire()
        self._exposed.fence()

    def close(self) -> None:
        """Free the memory; collective."""
        self._exposed.close()
        self._close_opened()

    def _close_opened(self) -> None:
        self.buffers = None
        super().close()
        self._comm.Free()

    def _addressable(self, env: Environment) -> Iterable[int]:
        return self._near

    def _opened(self, env: Environment) -> Memory | DeviceMemory:
        """Open the memory of the ranks of this node; raise on all nodes what fails on one."""
        nodes = env.comm.allgather(env.node)
        self._near = [rank for rank, node in enumerate(nodes) if node == env.node]
        self._comm = cast(MPI.Intracomm, env.comm.Split(env.node, env.rank))
        on_node = dataclasses.replace(
            env, comm=self._comm, rank=env.local_rank, size=env.local_size, node=0, nodes=1
        )
        vectors, problem = None, ""
        try:
            vectors = self._lane.opened(on_node, self._nbytes)
        except MemoryError as error:  # on all ranks of the node
            problem = f"on node {env.node}, its ranks counted from 0: {error}"
        problems = [found for found in env.comm.allgather(problem) if found]
        if vectors is not None and not problems:
            return vectors
        if vectors is not None:
            vectors.close()
        self._comm.Free()
        raise MemoryError(problems[0])

    def _reserved(self, env: Environment) -> tuple[Vector, Vector] | None:
        """Make the buffers now: for want of them an average would end the job."""
        made, problem = None, ""
        if len(self._near) < env.size:
            try:
                made = torch.empty_like(self.x), torch.empty_like(self.x)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                problem = f"rank {env.rank}: no room for a direct window's buffers: {error}"
        problems = [found for found in env.comm.allgather(problem) if found]
        if problems:
            self._close_opened()
            raise MemoryError(problems[0])
        return made

    def _number(self, rank: int) -> int:
        return self._near.index(rank)


class DirectWindow(IpcWindow):
    """See :class:`~mpimomentum.transport.ipc_window.IpcWindow`. Collective to make.

    An average with a rank of another node takes two buffers as long as the vector, which are made
    with the window where there are such ranks.
    """

    where = DirectSegment
    _segment: DirectSegment

    def drain(self) -> bool:
        """Do one's part in what others get and put, and as any window."""
        self._segment.serve()
        return super().drain()

    def _views(self, rank: int) -> tuple[Vector, Vector]:
        """Return x and inbox of `rank`, or what stands for them on the own device.

        Whoever asks has claimed the own word, so nobody else uses the buffers.
        """
        near = self._segment.peer(rank)
        if near is not None:
            return near
        assert self._segment.buffers is not None
        return self._segment.buffers

    async def _fetch(self, peer: int, theirs: Vector) -> None:
        if self._segment.peer(peer) is None:
            await self._segment.fetch_x(peer, theirs)

    async def _deliver(self, peer: int, inbox: Vector) -> None:
        if self._segment.peer(peer) is None:
            await self._segment.put(peer, inbox)

    async def _fill_inbox(self, rank: int, v: Vector) -> None:
        if self._segment.peer(rank) is not None:
            await super()._fill_inbox(rank, v)
            return
        if self._guard is not None:
            await self._let_pass(v, rank)
        v = v.contiguous()
        await self._lane.done(f"an add on its way to rank {rank}", v)
        await self._segment.put(rank, v)
