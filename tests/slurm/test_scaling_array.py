"""A scaling study: an array of jobs of 1, 2 and 4 ranks, and the job after it that draws."""

from __future__ import annotations

import csv

import pytest

from tests.slurm.cluster import SCRIPTS, TWO_EACH, Cluster

pytestmark = pytest.mark.timeout(400)


def test_an_array_measures_and_a_job_after_it_draws(cluster: Cluster) -> None:
    flags = ("--algorithms", "no-communication,ad-psgd", "--seconds", "0.5", "--repeats", "2")
    options = (*TWO_EACH, "--array=0-2", f"--output={cluster.work}/%A-%a.log")
    array = cluster.submit(SCRIPTS / "scaling.sbatch", *flags, options=options)
    folder = cluster.work / "runs" / f"scaling-{array}"
    after = f"--dependency=afterok:{array}"
    collect = cluster.submit(SCRIPTS / "collect.sbatch", str(folder), options=(after,))
    assert cluster.wait(collect, 300) == "COMPLETED", cluster.log(collect)
    for i, ranks in enumerate((1, 2, 4)):
        with (folder / f"ranks-{ranks:06d}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(r["ranks"], r["nodes"]) for r in rows] == [(str(ranks), str(max(1, i)))] * 4
    assert "| ad-psgd | 4 | 2 |" in cluster.log(collect)
    assert (folder / "figure.png").exists()
    assert (folder / "figure.svg").exists()


def test_a_task_for_which_there_is_no_room_says_so(cluster: Cluster) -> None:
    options = (*TWO_EACH, "--array=5", f"--output={cluster.work}/%A-%a.log")
    array = cluster.submit(SCRIPTS / "scaling.sbatch", options=options)
    assert cluster.wait(array) == "FAILED"
    assert (
        "is to have 32 ranks, and there is room for 4"
        in (cluster.work / f"{array}-5.log").read_text()
    )
