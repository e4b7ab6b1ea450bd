"""With on_failure=continue the others go on without a rank that dies, wherever that happens."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.trials import (
    DRIFT,
    HUNG_S,
    JOB,
    Trial,
    attempt,
    begun,
    drift,
    family,
    keeping,
    limit,
)
from tests.crash.trials import result as result_of
from tests.launch import RunningJob, launch, start

PLACES = ("halfway", "exchanged", "published", "applying")


@pytest.fixture(scope="module", autouse=True)
def stalled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningJob]]:
    """Two jobs in which a rank stalls for 20 s; they go on beside all tests of this module."""
    jobs = {}
    # a gradient of 20 s, much longer than the time-out: a rank that computes moves
    for name, args in (
        ("slow", ("ad-psgd", "40", "continue", "4", "stalled")),
        ("stopped", ("d-psgd", "100", "continue", "60")),
    ):
        folder = tmp_path_factory.mktemp(name)
        jobs[name] = start(2, JOB, *args, tmp_path=folder, options=keeping(family()), fresh=True)
    pid = begun(jobs["stopped"], 2)[1]
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(20, os.kill, (pid, signal.SIGCONT))
    timer.start()
    yield jobs
    timer.join()
    for job in jobs.values():
        job.kill()


@pytest.mark.parametrize("algorithm", ["ad-psgd", "d-psgd", "elastic-averaging"])
def test_the_others_come_to_their_end_after_a_random_death(tmp_path: Path, algorithm: str) -> None:
    outcome = attempt(Trial(algorithm, 3, seed=0), tmp_path)
    assert outcome.survivors == 2, outcome.output
    assert outcome.drift <= outcome.limit, outcome.output


@pytest.mark.parametrize("place", PLACES)
def test_an_exchange_of_the_dead_is_whole_or_did_not_take_place(tmp_path: Path, place: str) -> None:
    steps = 200
    done = launch(
        3,
        *(JOB, "ad-psgd", str(steps), "continue", "60", place),
        tmp_path=tmp_path,
        options=keeping(family()),
        fresh=True,
    )
    assert done.returncode == 0, done.output
    values = result_of(done.output)
    (failure,) = values["failures"]
    assert (failure["rank"], failure["cause"], values["living"]) == (1, "ended", 2)
    assert drift("ad-psgd", values, 1, 3) <= DRIFT["ad-psgd"]
    # the others' inboxes are free again: ranks 0 and 2 go on to average, who sink apart by 2 a step
    # and would end about `steps` from their mean; on a busy machine the last steps may be one's own
    assert values["consensus"] < steps / 4


def test_of_an_exchange_between_two_that_die_nothing_is_lost_or_counted_twice(
    tmp_path: Path,
) -> None:
    done = launch(
        3,
        # ten exchanges between the two come in far fewer steps, unless the machine is very busy
        *(JOB, "ad-psgd", "400", "continue", "60", "both"),
        tmp_path=tmp_path,
        options=keeping(family()),
        fresh=True,
    )
    assert done.returncode == 0, done.output
    values = result_of(done.output)
    lost = {f["rank"]: f for f in values["failures"]}
    assert set(lost) == {1, 2}
    assert drift("ad-psgd", values, 1, 3) <= limit("ad-psgd", values)
    assert "AGAIN on_failure=continue: ranks [1, 2] have died" in done.output


def test_the_next_rank_writes_the_summary_if_the_first_dies_at_that(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = ["train", "--model", "mlp", "--on-failure", "continue", "--out", str(out)]
    done = launch(
        2,
        *(str(Path(JOB).with_name("dying_writer.py")), *run, "--steps", "5"),
        tmp_path=tmp_path,
        options=keeping(family()),
        fresh=True,
    )
    assert done.returncode == 0, done.output
    summary = json.loads((out / "summary.json").read_text())
    assert [failure["rank"] for failure in summary["failures"]] == [0]
    assert summary["updates_per_rank"] == [5, 5]  # it died after the run
    assert summary["records_lost"] == 0


def test_who_is_condemned_ends_though_who_condemned_it_died_before_ending_it(
    tmp_path: Path,
) -> None:
    done = launch(
        3,
        *(JOB, "d-psgd", "20", "continue", str(HUNG_S), "condemning"),
        tmp_path=tmp_path,
        options=keeping(family()),
        fresh=True,
    )
    assert done.returncode == 0, done.output
    causes = {f["rank"]: f["cause"] for f in result_of(done.output)["failures"]}
    assert causes == {0: "ended", 1: "hung"}


def test_who_finds_itself_condemned_ends_without_the_others(tmp_path: Path) -> None:
    done = launch(
        3,
        *(JOB, "d-psgd", "20", "continue", "60", "condemned"),
        tmp_path=tmp_path,
        options=keeping(family()),
        fresh=True,
    )
    assert "rank 1 | this rank was declared dead" in done.output
    assert done.returncode == 0, done.output
    causes = {f["rank"]: f["cause"] for f in result_of(done.output)["failures"]}
    assert causes == {1: "hung"}


@pytest.mark.parametrize("place", ["leaving", "closed"])
def test_nobody_waits_at_the_end_for_a_rank_that_died_after_the_run(
    tmp_path: Path, place: str
) -> None:
    done = launch(
        3,
        *(JOB, "d-psgd", "20", "continue", "60", place),
        tmp_path=tmp_path,
        options=keeping(family()),
        fresh=True,
    )
    assert done.returncode == 0, done.output
    assert result_of(done.output)["failures"] == []


def test_a_graph_that_falls_apart_is_joined_again(tmp_path: Path) -> None:
    job = start(
        4,
        *(JOB, "d-psgd", "400", "continue", "60"),
        tmp_path=tmp_path,
        options=keeping(family()),
        fresh=True,
    )
    pids = begun(job, 4)
    for rank in (0, 2):  # of a ring of four: the others have no common edge then
        os.kill(pids[rank], signal.SIGKILL)
    done = job.wait()
    values = result_of(done.output)
    assert sorted(f["rank"] for f in values["failures"]) == [0, 2]
    assert [[1, 3]] in [f["edges_added"] for f in values["failures"]]
    assert abs(values["mean"] - 2) <= 1e-6  # of ranks 1 and 3
    # at the fixed point of ranks with (W - I)x = lr (x - b): apart, each would be at its own b
    assert values["consensus"] < 0.5


def test_the_center_of_elastic_averaging_is_not_outlived(tmp_path: Path) -> None:
    job = start(
        3,
        *(JOB, "elastic-averaging", "5000", "continue", "60"),
        tmp_path=tmp_path,
        options=keeping(family()),
        fresh=True,
    )
    pid = begun(job, 3)[0]
    os.kill(pid, signal.SIGKILL)
    done = job.wait(30)
    assert done.returncode != 0
    assert "rank 0 died, and the run cannot go on without it: the center was there" in done.output


def test_by_default_a_stopped_rank_ends_the_job_after_the_watchdogs_time(tmp_path: Path) -> None:
    args = (JOB, "d-psgd", "5000", "abort", "60")
    job = start(3, *args, tmp_path=tmp_path, fresh=True, MPIMOMENTUM_TIMEOUT_S="3")
    os.kill(begun(job, 3)[1], signal.SIGSTOP)
    done = job.wait()
    assert done.returncode != 0
    assert "nothing has moved for 3 s" in done.output
    assert re.search(r"rank [02] has waited \d+ s for models of step", done.output), done.output


@pytest.mark.parametrize(("name", "steps"), [("slow", 40), ("stopped", 100)])
def test_a_rank_that_is_slow_or_stopped_for_20_s_is_not_dead(
    stalled: dict[str, RunningJob], name: str, steps: int
) -> None:
    done = stalled[name].wait()
    assert done.returncode == 0, done.output
    values = result_of(done.output)
    assert values["failures"] == []
    assert values["updates"] == [steps, steps]
    assert values["time_s"] > 15
