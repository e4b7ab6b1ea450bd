"""The batch scripts of slurm/ on a real Slurm of two nodes, with the MPI of this environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing, running

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "slurm"
TWO_EACH = ("--nodes=2", "--ntasks-per-node=2")

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(300),  # a job that went back into the queue is held for a while
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    prefix = "slurm-"  # and no longer: it is in the names of sockets
    with tempfile.TemporaryDirectory(prefix=prefix) as made, running(Path(made)) as started:
        started.env["PATH"] = f"{Path(sys.executable).parent}:{started.env['PATH']}"
        started.env |= {"PYTHONPATH": str(ROOT), "SLURM_SCRIPTS": str(SCRIPTS)}
        yield started


def test_the_scripts_are_sound() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("not installed: shellcheck")
    scripts = [str(p) for p in (*SCRIPTS.glob("*.s*"), *SCRIPTS.glob("env/*.sh"))]
    subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, check=True)


def test_smoke(cluster: Cluster) -> None:
    job = cluster.submit(SCRIPTS / "smoke.sbatch", options=TWO_EACH)
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    log = cluster.log(job)
    assert "4 ranks on node[1-2]" in log
    assert "fail" not in [line.split(" ")[0] for line in log.splitlines()]


def test_a_run_that_is_preempted_goes_on_to_its_end(cluster: Cluster) -> None:
    out = cluster.work / "run"
    flags = ("--algorithm", "d-psgd", "--model", "mlp", "--compute-s", "0.01", "--steps", "900")
    job = cluster.submit(
        SCRIPTS / "train.sbatch", *flags, "--progress", "lines", options=TWO_EACH, OUT=str(out)
    )
    cluster.wait_for(job, "samples/s")  # under way
    urgent = cluster.submit(SCRIPTS / "smoke.sbatch", options=(*TWO_EACH, "--partition=urgent"))
    assert cluster.wait(urgent) == "COMPLETED"
    log = cluster.wait_for(job, f"job {job}, start 2")
    assert f"job {job}: back into the queue" in log
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert f"going on from {out}/checkpoints/step-" in cluster.log(job)
    assert json.loads((out / "summary.json").read_text())["updates_per_rank"] == [900] * 4


def test_a_job_that_its_owner_cancels_stays_so(cluster: Cluster) -> None:
    job = cluster.submit(
        SCRIPTS / "train.sbatch", "--model", "mlp", "--compute-s", "0.01", "--steps", "100000",
        "--progress", "lines", options=TWO_EACH, OUT=str(cluster.work / "cancelled"),
    )  # fmt: skip
    cluster.wait_for(job, "samples/s")
    cluster.run("scancel", job)
    cluster.wait_for(job, "not queued again")
    assert cluster.wait(job) == "CANCELLED"
    assert "start 2" not in cluster.log(job)
