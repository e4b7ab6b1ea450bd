"""``mm.init``: this process's MPI worker."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from mpimomentum import topology as topologies
from mpimomentum.runtime import cuda_trial
from mpimomentum.runtime.fault_config import (
    ABORT,
    CONTINUE,
    FAILURE_TIMEOUT_S,
    Faults,
    OnFailure,
)
from mpimomentum.runtime.placement import CPU, DEVICE, Placing
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
    device: str | None = None,
    staging: str | None = None,
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
    device : str, optional
        Where the algorithm's vectors live: "cpu"; "cuda": on this rank's GPU, each rank its own as
        far as they go; "cuda:K"; "auto": on GPUs where there are some. Put the model on
        ``worker.device``. Unless given, what ``MPIMOMENTUM_DEVICE`` says, else the CPU.
    staging : str, optional
        How vectors get from a GPU to other ranks: "pinned", "ipc", "direct", or "auto", the best
        that is found to work. Unless given, what ``MPIMOMENTUM_STAGING`` says, else "auto".

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
        If `topology` does not fit the number of ranks, a ``MPIMOMENTUM_*`` variable is wrong, the
        device or staging asked for is not possible on every rank, or deaths cannot be survived
        here.

    Notes
    -----
    ``MPIMOMENTUM_DRIVER`` (thread | inline), ``MPIMOMENTUM_TIMEOUT_S`` (300),
    ``MPIMOMENTUM_BACKOFF_S`` (0.0002) and, for tests, ``MPIMOMENTUM_FAKE_NODES`` are read here.
    """
    faults = Faults(on_failure, failure_timeout_s if on_failure == CONTINUE else None)
    asked = os.environ.get(DEVICE, CPU) if device is None else device
    way = os.environ.get("MPIMOMENTUM_STAGING", "auto") if staging is None else staging
    return start(runtime(), topology, seed, faults, asked, way)


def start(
    how: Runtime,
    topology: TopologyLike = "ring",
    seed: int = 0,
    faults: Faults = Faults(),  # noqa: B008  # frozen
    device: str | None = CPU,
    staging: str | None = "auto",
) -> MPIWorker:
    """Start MPI in the way given, whatever the variables say. Collective; see :func:`init`."""
    from mpimomentum.transport import MPIWorker, SurvivingWorker  # the simulator needs no MPI

    def graph(size: int) -> Topology:
        return topologies.build(topology, size)

    faults.check(how)
    make: Callable[..., MPIWorker] = MPIWorker
    if faults.on_failure == CONTINUE:
        make = functools.partial(SurvivingWorker, failure_timeout_s=faults.timeout_s)
    placing = Placing(device)
    worker = make(
        graph,
        seed,
        driver=how.driver,
        timeout_s=how.timeout_s,
        backoff_s=how.backoff_s,
        device=placing,
        staging=staging,
        probe=lambda kinds: cuda_trial.outcomes(os.environ, kinds)[0],
    )
    worker.about_device = placing.summary()
    if worker.device.type == "cuda":  # the communication thread has set its own
        torch.cuda.set_device(worker.device)
    return worker
