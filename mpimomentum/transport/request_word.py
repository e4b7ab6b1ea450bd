"""The request word: one rank asks something of all, each sees it at its next step boundary."""

from __future__ import annotations

import numpy as np

from mpimomentum.transport.environment import Environment
from mpimomentum.transport.mpi import MPI, own_memory


class RequestWord:
    """A 64-bit word per rank whose bits say what is asked. Collective to make and to :meth:`close`.

    Reading it is local, so it can be looked at after every step; only asking costs messages. All
    access is by compare-and-swap (docs/protocol.md): Open MPI's fetch-and-op takes a bitwise or
    between nodes, and does nothing.
    """

    def __init__(self, env: Environment) -> None:
        self._rank, self._size = env.rank, env.size
        self._window = MPI.Win.Allocate(8, 8, comm=env.comm)
        self._new = np.zeros(1, dtype=np.int64)
        self._expected = np.zeros(1, dtype=np.int64)
        self._old = np.zeros(1, dtype=np.int64)
        own_memory(self._window, np.int64)[0] = 0
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        env.comm.Barrier()

    def ask(self, what: int) -> None:
        """Set the bits `what` in every rank's word; they are there on return."""
        for rank in range(self._size):
            before, found = -1, 0
            while before != found and found & what != what:  # else it is done, or was so
                before, found = found, self._compare_and_swap(rank, found, found | what)

    def asked(self) -> int:
        """Return this rank's word, 0 if nothing is asked."""
        return self._compare_and_swap(self._rank, 0, 0)

    def clear(self) -> None:
        """Set this rank's word to 0; only while no rank may ask."""
        found = self.asked()
        while found and (now := self._compare_and_swap(self._rank, found, 0)) != found:
            found = now

    def close(self) -> None:
        """Free the memory."""
        self._window.Unlock_all()
        self._window.Free()

    def _compare_and_swap(self, rank: int, expected: int, new: int) -> int:
        """Put `new` in place of `expected`; return what was there."""
        self._expected[0], self._new[0] = expected, new
        self._window.Compare_and_swap(self._new, self._expected, self._old, rank, 0)
        self._window.Flush(rank)
        return int(self._old[0])
