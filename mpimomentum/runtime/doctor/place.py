"""Where this process stands, as its environment tells: known before MPI starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

PARAMETERS = 25_600_000  # ResNet-50

OPEN_MPI, HYDRA, SRUN, NONE = "mpirun of Open MPI", "mpirun of MPICH", "srun", "none"

_SIGNS = {  # launcher -> variables with rank, size, local rank, local size
    OPEN_MPI: (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    HYDRA: ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    SRUN: ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
}


@dataclass(frozen=True)
class Place:
    """What a check may know beside what it measures.

    Attributes
    ----------
    environ : mapping
        The process environment.
    launcher : str
        What started this process.
    rank, size, local_rank, local_size : int
        As the launcher says, and once MPI has started, as MPI says.
    parameters : int
        Of the model that is to fit.
    """

    environ: Mapping[str, str]
    launcher: str = NONE
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    parameters: int = PARAMETERS

    @classmethod
    def of(cls, environ: Mapping[str, str] | None = None, parameters: int = PARAMETERS) -> Place:
        """Read the launcher's variables; mpirun inside a Slurm job counts as mpirun."""
        environ = os.environ if environ is None else environ
        for launcher, names in _SIGNS.items():
            if names[2] not in environ or names[1] not in environ:
                continue
            rank, size, local_rank, local_size = (environ.get(name, "") for name in names)
            return cls(
                environ=environ,
                launcher=launcher,
                rank=_number(rank, 0),
                size=_number(size, 1),
                local_rank=_number(local_rank, 0),
                local_size=_number(local_size, 1),
                parameters=parameters,
            )
        return cls(environ=environ, parameters=parameters)


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isdigit() else otherwise
