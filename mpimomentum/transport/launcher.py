"""What has started this process, and whether that ends the whole job when one rank dies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

Launcher = Literal["hydra", "mpirun", "srun", "unknown"]

_OPEN_MPI = ("mpirun", "mpiexec", "prterun", "prun", "orterun")
_DAEMONS = ("prted", "orted")  # of Open MPI's mpirun, where that is elsewhere
_ON_MPIRUN = "start it with mpirun --with-ft ulfm, or mpirun --enable-recovery"
_ON_SRUN = (
    "srun ends the step with the first of its processes; start it in the allocation by Open MPI's "
    "mpirun --enable-recovery, or with MPICH by srun --mpi=pmi2 (slurm/train.sbatch: OUTLIVE=yes, "
    "and neither LAUNCHER nor PMI)"
)

_WITHOUT_KEEPER = {"srun": _ON_SRUN, "hydra": "start it with mpiexec, without -pmi-port"}


def launcher(environ: Mapping[str, str] = os.environ) -> tuple[Launcher, list[str]]:
    """Return what has started this process, and its command line where that shows.

    By the processes above this one. Where they are hidden, as another user's may be and those
    outside a container, by the variables that launchers set.
    """
    for name, command in _above():
        if name.startswith("hydra"):
            return "hydra", command
        if name.startswith("slurmstepd"):
            return "srun", command
        if name in _OPEN_MPI:
            return "mpirun", command
        if name in _DAEMONS:
            return "mpirun", []
    if environ.get("PMIX_NAMESPACE", "").startswith("prte"):
        return "mpirun", []
    return ("srun" if "SLURM_STEP_ID" in environ else "unknown"), []


def would_end_the_job(kept: bool, environ: Mapping[str, str] = os.environ) -> str:
    """Return the remedy if the launcher is known to end a job of which a rank dies, else nothing.

    Parameters
    ----------
    kept : bool
        Whether this rank has a keeper, which the launcher takes for it.
    environ : mapping
    """
    if kept:
        return ""
    by, command = launcher(environ)
    if by in _WITHOUT_KEEPER:
        return _WITHOUT_KEEPER[by]
    keeps = environ.get("OMPI_MCA_mpi_ft_enable", "0") in ("1", "true")
    keeps |= bool({"--enable-recovery", "-enable-recovery"} & set(command))
    return _ON_MPIRUN if by == "mpirun" and command and not keeps else ""


def _above() -> Iterator[tuple[str, list[str]]]:
    """Yield name and command line of this process's parent, its parent, and so on."""
    pid = os.getppid()
    try:
        while pid > 1:
            process = Path("/proc") / str(pid)
            command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            yield (process / "comm").read_text().strip(), command
            pid = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return
