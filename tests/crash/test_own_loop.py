"""A loop of one's own in which a rank goes wrong: the job ends and says why; nothing hangs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.launch import launch, start

JOB = str(Path(__file__).parents[1] / "jobs" / "own_loop.py")


@pytest.mark.parametrize("how", ["program", "algorithm"])
@pytest.mark.parametrize("driver", ["thread", "inline"])
def test_an_exception_ends_the_job_with_its_traceback(
    tmp_path: Path, how: str, driver: str
) -> None:
    failed_at = tmp_path / "failed_at"
    env = {"MPIMOMENTUM_DRIVER": driver, "FAILED_AT": str(failed_at)}
    job = start(3, JOB, how, "ad-psgd", tmp_path=tmp_path, fresh=driver == "thread", **env)
    done = job.ends_soon_after(failed_at)
    assert done.returncode != 0
    assert f"rank 1 | ArithmeticError: the {how} of this rank is broken" in done.output
    assert "rank 0 | Traceback" not in done.output


def test_a_swallowed_interrupt_ends_the_job(tmp_path: Path) -> None:
    """The others would wait for that rank, and the algorithm there cannot be ended any more."""
    failed_at = tmp_path / "failed_at"
    env = {"FAILED_AT": str(failed_at)}
    job = start(2, JOB, "interrupted", "d-psgd", tmp_path=tmp_path, fresh=True, **env)
    done = job.ends_soon_after(failed_at)
    assert done.returncode != 0
    assert "rank 1 | the program ends after a failed run: ending the job" in done.output


@pytest.mark.parametrize("algorithm", ["ad-psgd", "allreduce-sgd"])
def test_a_program_that_closes_nothing_ends_well(tmp_path: Path, algorithm: str) -> None:
    done = launch(3, JOB, "forgotten", algorithm, tmp_path=tmp_path, fresh=True)
    assert done.returncode == 0, done.output
    assert all(f"rank {rank} at its end" in done.output for rank in range(3))


def test_an_asynchronous_rank_may_make_fewer_steps(tmp_path: Path) -> None:
    done = launch(3, JOB, "early", "ad-psgd", tmp_path=tmp_path)
    assert done.returncode == 0, done.output


@pytest.mark.parametrize("algorithm", ["d-psgd", "allreduce-sgd"])
def test_a_synchronous_rank_that_makes_fewer_steps_is_named(tmp_path: Path, algorithm: str) -> None:
    done = launch(3, JOB, "early", algorithm, tmp_path=tmp_path, MPIMOMENTUM_TIMEOUT_S="3")
    assert done.returncode != 0
    assert "nothing has moved for 3 s" in done.output
    assert re.search(
        r"rank 1 has waited \d+ s for .*all ranks to come to the end of the training", done.output
    ), done.output


def test_a_call_that_only_one_rank_makes_is_named(tmp_path: Path) -> None:
    done = launch(3, JOB, "apart", "ad-psgd", tmp_path=tmp_path)
    assert done.returncode != 0
    assert "rank 0 is at state_dict(), rank 1 is at the end of the training" in done.output
