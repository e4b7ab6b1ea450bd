"""One rank's failure ends the whole job within seconds and says who failed; nothing hangs."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.launch import SOON_S, launch, start

FAILING = str(Path(__file__).parents[1] / "jobs" / "failing.py")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("objective", "ArithmeticError: the objective of this rank is broken"),
        ("coroutine", "ArithmeticError: the algorithm of this rank is broken"),
        ("poller", "ArithmeticError: the communication thread of this rank is broken"),
        ("exit", "ArithmeticError: the program of this rank is broken"),
        ("start", "ArithmeticError: the start of this rank is broken"),
        ("closed", "ArithmeticError: the rest of this rank is broken"),
    ],
)
@pytest.mark.parametrize("driver", ["thread", "inline"])
def test_an_exception_ends_the_job_with_its_traceback(
    tmp_path: Path, how: str, message: str, driver: str
) -> None:
    failed_at = tmp_path / "failed_at"
    env = {"MPIMOMENTUM_DRIVER": driver, "FAILED_AT": str(failed_at)}
    job = start(4, FAILING, how, tmp_path=tmp_path, fresh=driver == "thread", **env)
    done = job.ends_soon_after(failed_at)
    assert done.returncode != 0
    assert f"rank 1 | {message}" in done.output
    assert "rank 1 | Traceback" in done.output
    assert "rank 0 | Traceback" not in done.output


def test_a_failed_run_that_the_program_swallows_ends_the_job_with_the_program(
    tmp_path: Path,
) -> None:
    failed_at = tmp_path / "failed_at"
    env = {"FAILED_AT": str(failed_at)}
    job = start(4, FAILING, "swallowed", tmp_path=tmp_path, fresh=True, **env)
    done = job.ends_soon_after(failed_at)
    assert "rank 1 | the program ends after a failed run: ending the job" in done.output


def test_a_failure_that_all_ranks_caught_and_got_over_is_forgotten(tmp_path: Path) -> None:
    done = launch(3, FAILING, "recovered", tmp_path=tmp_path)
    assert done.returncode == 0, done.output
    assert "finished 1" in done.output


@pytest.mark.parametrize("driver", ["thread", "inline"])
def test_a_slow_rank_is_waited_for_beyond_the_time_out(tmp_path: Path, driver: str) -> None:
    done = launch(
        3,
        FAILING,
        "straggler",
        tmp_path=tmp_path,
        MPIMOMENTUM_TIMEOUT_S="2",
        MPIMOMENTUM_DRIVER=driver,
    )
    assert done.returncode == 0, done.output
    assert all(f"finished {rank}" in done.output for rank in range(3))


def test_a_killed_rank_ends_the_job(tmp_path: Path) -> None:
    job = start(4, FAILING, "kill", tmp_path=tmp_path, fresh=True)
    output = job.wait_for("training 2")
    pid = int(re.search(r"pid 2 (\d+)", output).group(1))
    os.kill(pid, signal.SIGKILL)
    done = job.wait(SOON_S)
    assert done.returncode != 0
    # the launcher speaks for the dead
    assert re.search(r"signal 9|KILLED BY SIGNAL: 9|Killed", done.output), done.output


def test_a_wait_without_end_is_reported_by_name_and_ended(tmp_path: Path) -> None:
    done = launch(4, FAILING, "stuck", tmp_path=tmp_path, MPIMOMENTUM_TIMEOUT_S="3")
    assert done.returncode != 0
    assert "nothing has moved for 3 s" in done.output
    assert re.search(r"rank 1 has waited \d+ s for a message in mailbox 'replies'", done.output)
    assert re.search(r"rank 0 has waited \d+ s for all ranks to come to the barrier", done.output)
