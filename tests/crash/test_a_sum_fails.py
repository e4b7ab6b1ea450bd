"""A rank that fails in the middle of a sum over all ranks: the job ends and says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.launch import launch, start

JOB = str(Path(__file__).parents[1] / "jobs" / "failing_sums.py")


@pytest.mark.parametrize("driver", ["thread", "inline"])
def test_a_failing_backward_ends_the_job_though_parts_are_under_way(
    tmp_path: Path, driver: str
) -> None:
    failed_at = tmp_path / "failed_at"
    env = {"MPIMOMENTUM_DRIVER": driver, "FAILED_AT": str(failed_at)}
    job = start(3, JOB, "backward", tmp_path=tmp_path, fresh=driver == "thread", **env)
    done = job.ends_soon_after(failed_at)
    assert done.returncode != 0
    assert "rank 1 | ArithmeticError: the backward of this rank is broken" in done.output
    assert "rank 0 | Traceback" not in done.output


def test_vectors_of_different_lengths_are_refused_with_both_lengths(tmp_path: Path) -> None:
    done = launch(3, JOB, "lengths", tmp_path=tmp_path)
    assert done.returncode != 0
    assert re.search(
        r"rank \d \| RuntimeError: rank \d: the mean gradient of (40|50) float64 here, of "
        r"(40|50) float64 on rank \d: all ranks must sum vectors of one length",
        done.output,
    ), done.output


def test_a_rank_that_does_not_come_to_a_sum_is_named(tmp_path: Path) -> None:
    done = launch(3, JOB, "late", tmp_path=tmp_path, MPIMOMENTUM_TIMEOUT_S="2")
    assert done.returncode != 0
    for rank in (0, 2):
        line = rf"rank {rank} has waited \d+ s for rank 1 to bring its part of the mean gradient"
        assert re.search(line, done.output), done.output
    assert re.search(r"rank 1 has waited \d+ s for a message in mailbox", done.output)
