"""MPI requests as handles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mpimomentum.transport.mpi import MPI
from mpimomentum.worker import Handle

T = TypeVar("T")


class Requests(Handle[T]):
    """Done when all of `requests` are; then `finish()` makes the value.

    Parameters
    ----------
    requests : sequence of MPI.Request
    finish : callable
        Called once; usually returns the buffer that was received into.
    what : str
    hold : any
        Buffers that MPI reads or writes until done: mpi4py does not keep them all alive.
    """

    __slots__ = ("_finish_with", "_hold", "_requests")

    def __init__(
        self, requests: Sequence[MPI.Request], finish: Callable[[], T], what: str, hold: Any = None
    ) -> None:
        super().__init__(what)
        self._requests = list(requests)
        self._finish_with = finish
        self._hold = hold

    def test(self) -> bool:
        """Poll MPI."""
        if not self._done and MPI.Request.Testall(self._requests):
            self._hold = None
            self.resolve(self._finish_with())
        return self._done
