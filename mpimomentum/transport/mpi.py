"""The one import of mpi4py: nothing is initialised until the communication thread says so."""

from __future__ import annotations

from typing import Any

import mpi4py
import numpy as np

mpi4py.rc.initialize = False  # the communication thread initialises, with its own thread level
from mpi4py import MPI  # noqa: E402  # must follow the line above

__all__ = ["MPI", "as_bytes", "own_memory"]


def own_memory(window: MPI.Win, dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    """Return this rank's part of `window`; gone before the window is freed."""
    return own_memory(window, dtype)
