"""Device memory of every rank, which the others get and put by device pointers, given to MPI."""

from __future__ import annotations

from collections.abc import Iterator

from mpimomentum.transport.direct import address_of
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.memory import require_unified
from mpimomentum.transport.mpi import MPI
from mpimomentum.transport.requests import Requests
from mpimomentum.worker import Handle, Vector

_MAX_BYTES = 1 << 30  # MPI counts are 32-bit in Open MPI


class Exposed:
    """What :class:`~mpimomentum.transport.memory.Memory` does across nodes, for memory at hand.

    Collective to make and to close. MPI knows of no streams: whoever calls :meth:`get` or
    :meth:`put` has waited for all that was begun with their vectors.

    Parameters
    ----------
    env : Environment
    memory : Vector, shape (nbytes,), uint8
        Of this rank; to be freed after :meth:`close`.

    Raises
    ------
    RuntimeError
        If what MPI puts there is not seen by plain loads: its model is not the unified one.
    """

    def __init__(self, env: Environment, memory: Vector) -> None:
        # not Win.Allocate, which knows host memory only (docs/adr/0024)
        self._window = MPI.Win.Create(address_of(memory), 1, comm=env.comm)
        require_unified(env, self._window)
        self._comm = env.comm
        self._window.Lock_all(MPI.MODE_NOCHECK)
        env.comm.Barrier()

    def get(self, rank: int, offset: int, out: Vector) -> Handle[None]:
        """Copy from `rank`'s memory into `out` (contiguous; not to be read before done)."""
        requests = [
            self._window.Rget(piece, rank, (at, len(piece), MPI.BYTE))
            for at, piece in _pieces(out, offset)
        ]
        what = f"reading {out.numel()} elements on the device of rank {rank}"
        return Requests(requests, lambda: None, what, hold=out)

    async def put(self, rank: int, offset: int, v: Vector) -> None:
        """Copy `v` (contiguous) into `rank`'s memory; complete there on return."""
        requests = [
            self._window.Rput(piece, rank, (at, len(piece), MPI.BYTE))
            for at, piece in _pieces(v, offset)
        ]
        await Requests(requests, lambda: None, f"writing on the device of rank {rank}", hold=v)
        self._window.Flush(rank)

    def serve(self) -> None:
        """Let MPI serve others: what is given to it may need this rank's part, as no word does."""
        self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)

    def fence(self) -> None:
        """Order what is begun from here on after what others have put before."""
        self._window.Sync()

    def close(self) -> None:
        """Take the memory back."""
        self._window.Unlock_all()
        self._window.Free()


def _pieces(v: Vector, offset: int) -> Iterator[tuple[int, MPI.buffer]]:
    whole = address_of(v)
    for at in range(0, v.nbytes, _MAX_BYTES):
        yield offset + at, whole[at : at + _MAX_BYTES]
