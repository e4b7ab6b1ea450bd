"""``mm.init``: this process's MPI worker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mpimomentum import topology as topologies
from mpimomentum.runtime.run import TopologyLike

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker


def init(topology: TopologyLike = "ring", seed: int = 0) -> MPIWorker:
    """Start MPI, unless it runs already, and return this process's worker. Collective.

    Parameters
    ----------
    topology : str, Topology or ndarray of shape (n, n)
        A name that ``mpimomentum list`` shows, a file ending in .npy or .csv, or W itself.
    seed : int
        Of all random streams; the same on all ranks.

    Returns
    -------
    MPIWorker
        Of size 1 without mpirun or srun. Close it with ``worker.close()`` or ``with``; at the
        normal end of the program it is closed by itself.

    Raises
    ------
    RuntimeError
        If a launcher started several tasks that MPI takes for jobs of one rank each.
    ValueError
        If `topology` does not fit the number of ranks, or a ``MPIMOMENTUM_*`` variable is wrong.

    Notes
    -----
    ``MPIMOMENTUM_DRIVER`` (thread | inline), ``MPIMOMENTUM_TIMEOUT_S`` (300),
    ``MPIMOMENTUM_BACKOFF_S`` (0.0002) and, for tests, ``MPIMOMENTUM_FAKE_NODES`` are read here.
    """
    from mpimomentum.transport import MPIWorker  # the simulator needs no MPI library

    return MPIWorker(
        lambda size: topologies.build(topology, size),
        seed,
        driver=os.environ.get("MPIMOMENTUM_DRIVER", "thread"),
        timeout_s=_seconds("MPIMOMENTUM_TIMEOUT_S", 300.0),
        backoff_s=_seconds("MPIMOMENTUM_BACKOFF_S", 200e-6),
    )


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{variable}={text!r}: a number of seconds above 0 is needed")
    return value
