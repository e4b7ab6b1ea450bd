"""What Slurm gave this job, and the traps of starting ranks with srun."""

from __future__ import annotations

import os
import shutil

from mpimomentum.runtime.doctor.finding import Finding, Status
from mpimomentum.runtime.doctor.place import SRUN, Place

_NAME = "Slurm"
FITTING = {"Open MPI": "pmix", "MPICH": "pmi2"}
"""MPI library -> what ``srun --mpi=`` has to be; other builds follow their site's manual."""


def slurm(place: Place, family: str = "") -> Finding:
    """Look at the job and step of this process.

    Parameters
    ----------
    place : Place
    family : str
        MPI library that mpi4py uses; empty if none could be loaded.
    """
    get = place.environ.get
    protocol = FITTING.get(family, "pmix or pmi2")
    if "SLURM_JOB_ID" not in place.environ:
        if shutil.which("srun") is None:
            return Finding(_NAME, Status.OK, "no Slurm here", "start ranks with mpirun")
        return Finding(
            _NAME,
            Status.OK,
            "srun is here; this is not a job",
            f"in a job, start ranks with srun --mpi={protocol} (srun --mpi=list shows the choice)",
        )
    nodes = get("SLURM_STEP_NUM_NODES") or get("SLURM_JOB_NUM_NODES") or get("SLURM_NNODES", "?")
    tasks = get("SLURM_STEP_NUM_TASKS") or get("SLURM_NTASKS", "?")
    per_task = get("SLURM_CPUS_PER_TASK")
    found = (
        f"job {get('SLURM_JOB_ID')}, step {get('SLURM_STEP_ID', 'none')}: {tasks} tasks on "
        f"{nodes} nodes, {per_task or 'default'} CPUs a task"
    )
    if per_task and place.launcher != SRUN and get("SRUN_CPUS_PER_TASK") != per_task:
        return Finding(
            _NAME,
            Status.WARN,
            f"{found}; SRUN_CPUS_PER_TASK={get('SRUN_CPUS_PER_TASK', '(not set)')}",
            "srun of Slurm 22.05 and later ignores sbatch's --cpus-per-task: every rank would get "
            "one core",
            f"export SRUN_CPUS_PER_TASK={per_task}, then srun --mpi={protocol}",
        )
    cores = len(os.sched_getaffinity(0))
    if per_task and place.launcher == SRUN and cores < int(per_task):
        return Finding(
            _NAME,
            Status.WARN,
            f"{found}, but this task may use {cores}",
            "srun of Slurm 22.05 and later ignores sbatch's --cpus-per-task",
            f"export SRUN_CPUS_PER_TASK={per_task} before srun",
        )
    if place.launcher != SRUN:
        return Finding(
            _NAME,
            Status.NOTE,
            found,
            "this process was not started by srun: it does not speak for the ranks",
            f"srun --mpi={protocol} mpimomentum doctor",
        )
    return Finding(_NAME, Status.OK, found, f"started by srun; --mpi={protocol} fits this MPI")
