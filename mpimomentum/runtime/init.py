"""``mm.init``: this process's MPI worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpimomentum import topology as topologies
from mpimomentum.runtime.run import TopologyLike
from mpimomentum.runtime.variables import Runtime, runtime

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
    return start(runtime(), topology, seed)


def start(how: Runtime, topology: TopologyLike = "ring", seed: int = 0) -> MPIWorker:
    """Start MPI in the way given, whatever the variables say. Collective; see :func:`init`."""
    from mpimomentum.transport import MPIWorker  # the simulator needs no MPI library

    return MPIWorker(
        lambda size: topologies.build(topology, size),
        seed,
        driver=how.driver,
        timeout_s=how.timeout_s,
        backoff_s=how.backoff_s,
    )
