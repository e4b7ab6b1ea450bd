"""Training as a batch job, and what may come between: preemption, a requeue, time, its owner."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import SCRIPTS, TWO_EACH, Cluster

pytestmark = pytest.mark.timeout(420)  # a job that went back into the queue is held for a while

WITHOUT_END = ("--model", "mlp", "--compute-s", "0.01", "--steps", "100000", "--progress", "lines")


def train(cluster: Cluster, out: Path, *flags: str, options: tuple[str, ...] = ()) -> str:
    """Start a run and wait until it is under way."""
    script = SCRIPTS / "train.sbatch"
    job = cluster.submit(script, *flags, options=(*TWO_EACH, *options), OUT=str(out))
    cluster.wait_for(job, "samples/s")
    return job


def updates(out: Path) -> list[int]:
    found: list[int] = json.loads((out / "summary.json").read_text())["updates_per_rank"]
    return found


def test_smoke(cluster: Cluster) -> None:
    job = cluster.submit(SCRIPTS / "smoke.sbatch", options=TWO_EACH)
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    log = cluster.log(job)
    assert "4 ranks on node[1-2]" in log
    assert "fail" not in [line.split(" ")[0] for line in log.splitlines()]


def test_a_run_that_is_preempted_goes_on_to_its_end(cluster: Cluster) -> None:
    out = cluster.work / "preempted"
    flags = ("--algorithm", "d-psgd", "--model", "mlp", "--compute-s", "0.01", "--steps", "900")
    job = train(cluster, out, *flags, "--progress", "lines")
    script = cluster.work / "urgent.sbatch"
    script.write_text("#!/bin/sh\n")
    urgent = cluster.submit(script, options=(*TWO_EACH, "--partition=urgent"))
    assert cluster.wait(urgent) == "COMPLETED"
    log = cluster.wait_for(job, f"job {job}, start 2")
    assert f"job {job}: back into the queue" in log
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert f"going on from {out}/checkpoints/step-" in cluster.log(job)
    assert updates(out) == [900] * 4


def test_a_run_that_is_requeued_by_hand_goes_on(cluster: Cluster) -> None:
    out = cluster.work / "requeued"
    flags = ("--model", "mlp", "--compute-s", "0.01", "--steps", "600", "--progress", "lines")
    job = train(cluster, out, *flags)
    cluster.run("scontrol", "requeue", job)
    log = cluster.wait_for(job, f"job {job}, start 2")
    assert f"job {job}: saved" in log  # it was given the time
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert f"going on from {out}/checkpoints/step-" in cluster.log(job)
    assert updates(out) == [600] * 4


def test_a_run_whose_time_is_over_is_saved_and_goes_on(cluster: Cluster) -> None:
    out, file = cluster.work / "late", cluster.work / "late.toml"
    text = 'algorithm = "d-psgd"\nmodel = "mlp"\ncompute_s = 0.01\nprogress = "lines"\n'
    file.write_text(f"{text}steps = 100000\n")
    # Slurm looks every half minute: the signal comes 10 to 40 s after the start, the end 80 s later
    limits = ("--time=2", "--signal=B:USR1@110")
    script = SCRIPTS / "train.sbatch"
    job = cluster.submit(script, str(file), options=(*TWO_EACH, *limits), OUT=str(out))
    log = cluster.wait_for(job, f"job {job}: back into the queue")
    assert f"job {job}: asked to stop, USR1" in log
    steps = int(re.findall(r"saved in \S+/step-(\d+)", log)[-1]) + 20
    file.write_text(f"{text}steps = {steps}\n")  # or it would take its minute again
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")  # no second end of its time
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert f"job {job}, start 2" in cluster.log(job)
    assert updates(out) == [steps] * 4


def test_a_run_is_not_started_again_for_ever(cluster: Cluster) -> None:
    out = cluster.work / "often"
    job = cluster.submit(
        SCRIPTS / "train.sbatch", *WITHOUT_END, options=TWO_EACH, OUT=str(out), MAX_STARTS="1"
    )
    cluster.wait_for(job, "samples/s")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_for(job, "not started again, after 1 starts")
    assert cluster.wait(job) == "FAILED"


def test_a_job_that_its_owner_cancels_stays_so(cluster: Cluster) -> None:
    job = train(cluster, cluster.work / "cancelled", *WITHOUT_END)
    cluster.run("scancel", job)
    cluster.wait_for(job, f"job {job}: saved")
    assert cluster.wait(job) == "CANCELLED"
    assert "start 2" not in cluster.log(job)


def test_a_job_outlives_a_rank_that_is_killed(cluster: Cluster) -> None:
    out = cluster.work / "outlived"
    flags = ("--algorithm", "d-psgd", "--model", "mlp", "--compute-s", "0.02", "--steps", "800")
    how = ("--nodes", "1", "--ranks-per-node", "2", "--on-failure", "continue", "--out", str(out))
    submit = (
        sys.executable,
        "-m",
        "mpimomentum",
        "submit",
        f"--sbatch=--output={cluster.work}/%j.log",
    )
    said = cluster.run(*submit, *flags, *how, "--progress", "lines")
    job = said.split()[1].rstrip(":")
    cluster.wait_for(job, "samples/s")
    os.kill(cluster.rank_of(job, 1), signal.SIGKILL)
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert "the run goes on with 1 of 2 ranks" in cluster.log(job)
    summary = json.loads((out / "summary.json").read_text())
    assert [(f["rank"], f["cause"]) for f in summary["failures"]] == [(1, "ended")]
    assert updates(out)[0] == 800
