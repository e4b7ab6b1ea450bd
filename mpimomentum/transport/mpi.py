"""The one import of mpi4py: nothing is initialised until the communication thread says so."""

from __future__ import annotations

from typing import Any

import mpi4py
import numpy as np

mpi4py.rc.initialize = False  # the communication thread initialises, with its own thread level
from mpi4py import MPI  # noqa: E402  # must follow the line above

__all__ = ["MPI", "as_bytes", "own_memory"]


def as_bytes(memory: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an array over `memory`, which it does not keep alive once its window is freed."""
    return np.frombuffer(memory, dtype=np.uint8)


def own_memory(window: MPI.Win, dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    """Return an array over this rank's part of `window`; not to be used once that is freed."""
    return as_bytes(window.tomemory()).view(dtype)
