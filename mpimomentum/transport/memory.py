"""One segment of memory per rank, readable and writable by all ranks, in one MPI window.

On one node the segments are shared memory (``Win.Allocate_shared``) and peers load and store
directly. Across nodes they come from ``Win.Allocate`` and peers use Get and Put
(docs/adr/0003-memory-across-nodes.md).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from mpimomentum.transport.environment import Environment
from mpimomentum.transport.mpi import MPI, as_bytes, own_memory
from mpimomentum.transport.requests import Requests
from mpimomentum.transport.room import require_room
from mpimomentum.worker import Handle, Vector

_log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 18
"""Payloads are worked on in pieces of this size, three of which fit into an L2 cache."""

_MAX_RMA_BYTES = 1 << 30  # MPI counts are 32-bit in Open MPI

_PAGE = 4096

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Words = np.ndarray[Any, np.dtype[np.int64]]


class Memory:
    """Segments of `nbytes` bytes (may differ by rank). Collective to make and to close.

    Parameters
    ----------
    env : Environment
    nbytes : int
        Size of this rank's segment.
    cleared : int, optional
        Bytes at its begin that are set to zero, by default all; the rest holds anything, and is
        not backed by memory before somebody writes to it.

    Attributes
    ----------
    shared : bool
        Whether all segments are directly addressable.

    Raises
    ------
    MemoryError
        On all ranks, if a node's shared memory has no room.
    """

    def __init__(self, env: Environment, nbytes: int, cleared: int | None = None) -> None:
        self.rank = env.rank
        self.shared = env.nodes == 1
        nbytes = -(-max(nbytes, 1) // _PAGE) * _PAGE
        require_room(env, nbytes)
        if self.shared:
            info = MPI.Info.Create({"alloc_shared_noncontig": "true"})  # near its owner's core
            self._window = MPI.Win.Allocate_shared(nbytes, 1, info=info, comm=env.comm)
            info.Free()
            self._segments: dict[int, _Bytes] = {
                r: as_bytes(self._window.Shared_query(r)[0]) for r in range(env.size)
            }
        else:
            self._window = MPI.Win.Allocate(nbytes, 1, comm=env.comm)
            self._segments = {env.rank: own_memory(self._window)}
        self._segments[env.rank][:cleared] = 0
        require_unified(env, self._window)
        _log.log(
            logging.DEBUG if env.rank else logging.INFO,
            "a window of %d bytes a rank: %s",
            nbytes,
            "shared memory of one node" if self.shared else "Win.Allocate, Get and Put (nodes)",
        )
        self._compare = np.empty(1, dtype=np.int64)
        self._new = np.empty(1, dtype=np.int64)
        self._old = np.empty(1, dtype=np.int64)
        self._window.Lock_all(MPI.MODE_NOCHECK)
        env.comm.Barrier()

    def direct(self, rank: int, offset: int, count: int, dtype: torch.dtype) -> Vector:
        """Return `count` elements of an addressable segment as a tensor."""
        nbytes = count * dtype.itemsize
        return torch.from_numpy(self._segments[rank][offset : offset + nbytes]).view(dtype)

    def words(self, rank: int, offset: int, count: int) -> Words:
        """Return `count` int64 of an addressable segment, for plain loads and stores."""
        words: Words = self._segments[rank][offset : offset + 8 * count].view(np.int64)
        return words

    # -- the claim word at offset 0 of every segment: MPI atomics only, the owner's too -----------

    def word(self, rank: int) -> int:
        """Read `rank`'s word atomically."""
        self._window.Fetch_and_op(self._new, self._old, rank, 0, MPI.NO_OP)
        self._window.Flush(rank)
        return int(self._old[0])

    def compare_and_swap(self, rank: int, compare: int, new: int) -> int:
        """Set `rank`'s word to `new` if it is `compare`; return what it was."""
        self._compare[0] = compare
        self._new[0] = new
        self._window.Compare_and_swap(self._new, self._compare, self._old, rank, 0)
        self._window.Flush(rank)
        return int(self._old[0])

    # -- transfers ---------------------------------------------------------------------------------

    def get(self, rank: int, offset: int, out: Vector) -> Handle[None]:
        """Copy from `rank`'s segment into `out` (contiguous; not to be read before done)."""
        requests = [
            self._window.Rget(piece, rank, (start, len(piece), MPI.BYTE))
            for start, piece in _pieces(out, offset)
        ]
        what = f"reading {out.numel()} elements of rank {rank}"
        return Requests(requests, lambda: None, what, hold=out)

    def put(self, rank: int, offset: int, v: Vector) -> None:
        """Copy `v` (contiguous) into `rank`'s segment; complete there on return.

        The flush bounds the life of the buffer: `v` may be changed on return.
        """
        for start, piece in _pieces(v, offset):
            self._window.Put(piece, rank, (start, len(piece), MPI.BYTE))
        self._window.Flush(rank)

    def fence(self) -> None:
        """Order this thread's loads and stores of segments before those that follow."""
        self._window.Sync()

    def close(self) -> None:
        """Free the segments; every tensor made by :meth:`direct` must be gone."""
        self._window.Unlock_all()
        self._segments.clear()
        self._window.Free()


def require_unified(env: Environment, window: MPI.Win) -> None:
    """Check the memory model of a window.

    Raises
    ------
    RuntimeError
        If it is not the unified one.
    """
    model = window.Get_attr(MPI.WIN_MODEL)
    if model != MPI.WIN_UNIFIED:
        raise RuntimeError(
            f"rank {env.rank}: this MPI offers windows of memory model {model} only; plain "
            "loads and stores beside MPI's need the unified one (docs/protocol.md)"
        )


def chunks(count: int, itemsize: int) -> Iterator[slice]:
    """Cut `count` elements into slices of ``CHUNK_BYTES``."""
    step = CHUNK_BYTES // itemsize
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _pieces(v: Vector, offset: int) -> Iterator[tuple[int, Any]]:
    data = v.view(torch.uint8).numpy()
    for start in range(0, len(data), _MAX_RMA_BYTES):
        yield offset + start, data[start : start + _MAX_RMA_BYTES]
