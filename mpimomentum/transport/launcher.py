"""Whether the launcher of this process ends the whole job when one rank dies, where that shows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_SLURM_PMIX = (
    "srun --mpi=pmix ends the step with the first of its processes; start it in the allocation "
    "with mpirun --enable-recovery (by slurm/train.sbatch: OUTLIVE=yes)"
)
_LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "prterun", "prun")


def would_end_the_job(environ: Mapping[str, str] = os.environ) -> str:
    """Return the remedy if the launcher is known to end a job of which a rank dies, else nothing.

    Looks at the variables that launchers set, and at the command lines of the processes above this
    one: a launcher on another node does not show.
    """
    if "PMI_FD" in environ:  # of Hydra, or of Slurm: see keeper
        return ""
    if environ.get("PMIX_NAMESPACE", "").startswith("slurm."):
        return _SLURM_PMIX
    if "SLURM_STEP_ID" in environ and environ.get("SLURM_KILL_BAD_EXIT", "0") not in ("", "0"):
        return "start it with srun --kill-on-bad-exit=0"
    if environ.get("OMPI_MCA_mpi_ft_enable", "0") in ("1", "true"):
        return ""
    for command in _commands_above():
        if Path(command[0]).name not in _LAUNCHERS:
            continue
        kept = {"--enable-recovery", "-enable-recovery"} & set(command)
        return "" if kept else "start it with mpirun --with-ft ulfm, or mpirun --enable-recovery"
    return ""


def _commands_above() -> Iterator[list[str]]:
    pid = os.getppid()
    try:
        while pid > 1:
            process = Path("/proc") / str(pid)
            yield (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            pid = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return
