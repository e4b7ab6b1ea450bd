"""``mm.init``: this process's MPI worker."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpimomentum import topology as topologies
from mpimomentum.runtime.fault_config import (
    ABORT,
    CONTINUE,
    FAILURE_TIMEOUT_S,
    Faults,
    OnFailure,
)
from mpimomentum.runtime.run import TopologyLike
from mpimomentum.runtime.variables import Runtime, runtime
from mpimomentum.topology import Topology

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker


def init(
    topology: TopologyLike = "ring",
    seed: int = 0,
    on_failure: OnFailure = ABORT,
    failure_timeout_s: float = FAILURE_TIMEOUT_S,
) -> MPIWorker:
    """Start MPI, unless it runs already, and return this process's worker. Collective.

    Parameters
    ----------
    topology : str, Topology or ndarray of shape (n, n)
        A name that ``mpimomentum list`` shows, a file ending in .npy or .csv, or W itself.
    seed : int
        Of all random streams; the same on all ranks.
    on_failure : {"abort", "continue"}
        What the death of a rank does to the others in :func:`mpimomentum.run`: ends the job, or
        leaves them to go on without it, which some algorithms can (docs/faults.md).
    failure_timeout_s : float
        With "continue": how long a rank may not move, seconds, before it is declared dead.

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
        If `topology` does not fit the number of ranks, a ``MPIMOMENTUM_*`` variable is wrong, or
        deaths cannot be survived here.

    Notes
    -----
    ``MPIMOMENTUM_DRIVER`` (thread | inline), ``MPIMOMENTUM_TIMEOUT_S`` (300),
    ``MPIMOMENTUM_BACKOFF_S`` (0.0002) and, for tests, ``MPIMOMENTUM_FAKE_NODES`` are read here.
    """
    faults = Faults(on_failure, failure_timeout_s if on_failure == CONTINUE else None)
    return start(runtime(), topology, seed, faults)


def start(
    how: Runtime,
    topology: TopologyLike = "ring",
    seed: int = 0,
    faults: Faults = Faults(),  # noqa: B008  # frozen
) -> MPIWorker:
    """Start MPI in the way given, whatever the variables say. Collective; see :func:`init`."""
    from mpimomentum.transport import MPIWorker, SurvivingWorker  # the simulator needs no MPI

    def graph(size: int) -> Topology:
        return topologies.build(topology, size)

    faults.check(how)
    make: Callable[..., MPIWorker] = MPIWorker
    if faults.on_failure == CONTINUE:
        make = functools.partial(SurvivingWorker, failure_timeout_s=faults.timeout_s)
    return make(graph, seed, driver=how.driver, timeout_s=how.timeout_s, backoff_s=how.backoff_s)
