"""The launch that silently becomes n jobs of one rank is refused, with the remedy."""

from __future__ import annotations

import pytest

from mpimomentum.transport.environment import check_launch


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, r"srun started 4 tasks.*--mpi=pmix.*--mpi=pmi2"),
        ({"SLURM_STEP_NUM_TASKS": "2", "PMI_RANK": "0"}, "srun started 2 tasks"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, "mpirun of Open MPI started 3 processes"),
        ({"MPI_LOCALNRANKS": "2", "PMI_RANK": "0"}, "mpirun of MPICH started 2 processes"),
    ],
)
def test_several_tasks_but_a_world_of_one_is_refused(environ, message) -> None:
    with pytest.raises(RuntimeError, match=message):
        check_launch(1, environ)
    check_launch(2, environ)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "4"},  # a batch script's own process, outside srun
        {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "4"},  # mpirun -n 1 in a batch job
        {"MPI_LOCALNRANKS": "1", "SLURM_STEP_NUM_TASKS": "4"},
    ],
)
def test_one_rank_on_purpose_is_fine(environ) -> None:
    check_launch(1, environ)
