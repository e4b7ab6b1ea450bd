"""A shared counter: MPI fetch-and-add on one rank's memory."""

from __future__ import annotations

import numpy as np

from mpimomentum.measures import Traffic
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.mpi import MPI, own_memory
from mpimomentum.worker import Handle


class FetchAddCounter:
    """A worker.Counter kept at rank `home`. Collective to make and to :meth:`close`."""

    def __init__(self, env: Environment, home: int) -> None:
        if not 0 <= home < env.size:
            raise ValueError(f"rank {env.rank}: counter home {home} is not in 0…{env.size - 1}")
        self._home = home
        self.at_home = env.rank == home
        self.traffic = Traffic()
        self._window = MPI.Win.Allocate(8 if env.rank == home else 0, 8, comm=env.comm)
        self._k = np.zeros(1, dtype=np.int64)
        self._old = np.zeros(1, dtype=np.int64)
        if env.rank == home:
            own_memory(self._window, np.int64)[0] = 0
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        env.comm.Barrier()

    def fetch_add(self, k: int = 1) -> Handle[int]:
        """Add `k`; returns the value before."""
        self._k[0] = k
        if not self.at_home:
            self.traffic.count(0)
        self._window.Fetch_and_op(self._k, self._old, self._home, 0, MPI.SUM)
        self._window.Flush(self._home)
        return Handle.completed(int(self._old[0]))

    def close(self) -> None:
        """Free the memory."""
        self._window.Unlock_all()
        self._window.Free()
