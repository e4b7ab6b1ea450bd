"""Texts from every rank to every rank while a run goes on, in an order of their own."""

from __future__ import annotations

import numpy as np

from mpimomentum.transport.environment import Environment
from mpimomentum.transport.requests import Requests
from mpimomentum.worker import Handle


class SideChannel:
    """A communicator apart from the run's. Collective to make and to :meth:`close`.

    Ranks come to the exchanges here in the same order as each other, but at any time: what the
    algorithm has under way does not matter.
    """

    def __init__(self, env: Environment) -> None:
        self._comm = env.comm.Dup()
        self._size = env.size

    def exchange(self, text: str, size_bytes: int) -> Handle[list[str]]:
        """Return the text of every rank, each cut to `size_bytes`, alike on all."""
        mine = np.frombuffer(text.encode()[:size_bytes].ljust(size_bytes, b"\0"), dtype=np.uint8)
        rows = np.empty((self._size, size_bytes), dtype=np.uint8)

        def texts() -> list[str]:
            return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]

        request = self._comm.Iallgather(mine, rows)
        return Requests([request], texts, "all ranks to answer", hold=(mine, rows))

    def close(self) -> None:
        """Free the communicator; nothing may be under way."""
        self._comm.Free()
