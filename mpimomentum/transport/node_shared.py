"""Tensors that the ranks of a node hold once, in MPI shared memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor

from mpimomentum.transport.environment import Environment
from mpimomentum.transport.mpi import MPI, as_bytes
from mpimomentum.transport.room import SHARED_MEMORY, room_bytes
from mpimomentum.transport.staged_collectives import AnyCollectives

_LINE = 64  # tensors begin on cache lines


async def require_room(
    env: Environment, collectives: AnyCollectives, tensors: Sequence[Tensor] | None
) -> None:
    """Check that every node has room for what it is to share, before any shares. Collective.

    Raises
    ------
    OSError
        On all ranks, if a node has none.
    ValueError
        If `tensors` are given on another rank than the first of its node, or not given there.
    """
    if (tensors is None) == (env.local_rank == 0):
        raise ValueError(f"rank {env.rank}: the first rank of a node, and it alone, shares")
    need = sum(_padded(t) for t in tensors or ()) if env.local_size > 1 else 0
    answers = await collectives.allgather(torch.tensor([need, room_bytes()]))
    for rank, (need, room) in enumerate(answers.tolist()):
        if need > room:
            raise OSError(
                f"rank {rank}: the data need {need / 1e6:.1f} MB of shared memory, but its node "
                f"has {room / 1e6:.1f} MB left in {SHARED_MEMORY}: enlarge it (for a container: "
                f"--shm-size=2g), or start one rank on a node"
            )


class NodeShared:
    """One copy of some tensors for all ranks of a node. Collective to make, on the node to close.

    Blocks until all of them have come.

    Parameters
    ----------
    env : Environment
    tensors : sequence of Tensor, optional
        On the node's first rank, on the CPU: copied, unless there is no other. Not looked at
        elsewhere.

    Attributes
    ----------
    tensors : list of Tensor
        Over the shared memory, on every rank; gone once this is closed.
    """

    def __init__(self, env: Environment, tensors: Sequence[Tensor] | None) -> None:
        self._window: MPI.Win | None = None
        self.tensors = list(tensors or ())
        first = env.local_rank == 0
        # by all ranks, those alone on their node too: the split is collective
        self._comm = cast(MPI.Intracomm, env.comm.Split(env.node, env.rank))
        if env.local_size == 1:
            self._comm.Free()
            return
        kinds = self._comm.bcast([(tuple(t.shape), t.dtype, _padded(t)) for t in tensors or ()])
        starts = list(accumulate((nbytes for *_, nbytes in kinds), initial=0))
        self._window = MPI.Win.Allocate_shared(starts[-1] if first else 0, 1, comm=self._comm)
        memory = torch.from_numpy(as_bytes(self._window.Shared_query(0)[0]))
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self.tensors = [
            memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for start, (shape, dtype, _) in zip(starts, kinds, strict=False)
        ]
        if first:
            for shared, given in zip(self.tensors, tensors or (), strict=True):
                shared.copy_(given)
        self._window.Sync()  # what was written is there for whoever comes past the barrier
        self._comm.Barrier()
        self._window.Sync()

    def close(self) -> None:
        """Free the memory: whoever still reads a tensor of it ends with a segmentation fault."""
        self.tensors = []
        if self._window is not None:
            self._window.Unlock_all()
            self._window.Free()
            self._comm.Free()


def _padded(t: Tensor) -> int:
    return -(-t.numel() * t.element_size() // _LINE) * _LINE
