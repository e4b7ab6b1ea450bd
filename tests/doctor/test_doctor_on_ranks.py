"""The doctor among ranks: what differs is named, and nobody's failure makes the others hang."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launch import Job, launch

AILING = str(Path(__file__).parents[1] / "jobs" / "ailing.py")


def report(job: Job) -> dict[str, Any]:
    """Return the one JSON object that was printed."""
    objects = [line for line in job.output.splitlines() if line.startswith('{"status"')]
    assert len(objects) == 1, job.output
    return json.loads(objects[0])


def failed(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f["name"]: f for f in told["findings"] if f["status"] == "fail"}


def examine(size: int, how: str, tmp_path: Path, *flags: str, **env: str) -> Job:
    return launch(size, AILING, how, "--json", *flags, tmp_path=tmp_path, **env)


@pytest.mark.parametrize(("size", "driver", "nodes"), [(2, "inline", 2), (3, "thread", 1)])
def test_healthy_ranks_end_in_order(tmp_path, size, driver, nodes):
    job = examine(
        size,
        "well",
        tmp_path,
        *("--limit-s", "60"),
        MPIMOMENTUM_DRIVER=driver,
        MPIMOMENTUM_FAKE_NODES=str(nodes),
    )
    assert job.returncode == 0, job.output
    told = report(job)
    assert told["size"] == size
    assert failed(told) == {}
    everyone = list(range(size))
    tests = [f for f in told["findings"] if f["name"].startswith("self-test")]
    assert len(tests) == 7
    assert all(f["ranks"] == everyone and f["status"] == "ok" for f in tests)
    (windows,) = [f for f in told["findings"] if f["name"] == "windows"]
    assert ("Win.Allocate over 2 nodes" in windows["found"]) == (nodes == 2)


@pytest.mark.parametrize(
    ("size", "how", "limit_s", "says"),
    [
        (2, "wrong", 60, ["rank 1: this rank is wrong, though"]),
        (
            3,
            "raises",
            1,
            [
                "rank 0: TimeoutError: waited 1 s for all ranks to come to the barrier",
                "rank 1: ArithmeticError: this rank is broken",
                "rank 2: TimeoutError",
            ],
        ),
    ],
)
def test_a_self_test_that_fails_on_one_rank_is_told_by_rank_0(tmp_path, size, how, limit_s, says):
    job = examine(size, how, tmp_path, "--limit-s", str(limit_s))
    assert job.returncode not in (0, 2), job.output
    told = report(job)
    assert list(failed(told)) == ["self-test: fetch-and-op"]
    for text in says:
        assert text in failed(told)["self-test: fetch-and-op"]["found"]
    (last,) = [f for f in told["findings"] if f["name"] == "self-test: allreduce"]
    # a test that came to its end leaves the others possible
    assert last["found"].startswith("not tried") == (how != "wrong")


@pytest.mark.parametrize(
    ("how", "where"), [("stuck", "self-test: fetch-and-op"), ("missing", "the ranks' first words")]
)
def test_a_rank_that_does_not_return_from_a_call_is_given_up(tmp_path, how, where):
    job = examine(2, how, tmp_path, "--limit-s", "1")
    assert job.returncode not in (0, 2), job.output
    assert "not over after" in failed(report(job))[where]["found"]


def test_what_differs_is_named_by_rank(tmp_path):
    job = examine(3, "differs", tmp_path, "--limit-s", "60")
    assert job.returncode not in (0, 2)
    told = report(job)
    versions = [f for f in told["findings"] if f["name"] == "versions"]
    assert [f["ranks"] for f in versions] == [[0, 2], [1]]
    assert {f["status"] for f in versions} == {"warn"}
    assert "torch 0.0" in versions[1]["found"]
    assert failed(told)["variables"]["ranks"] == [1]
    assert "MPIMOMENTUM_TOPOLOGY" in failed(told)["variables"]["remedy"]
    threads = [f for f in told["findings"] if f["name"] == "threads and cores"]
    assert [f["ranks"] for f in threads] == [[0, 2], [1]]
    assert "3 ranks with 66 threads in all, 64 in this one" in threads[1]["found"]
    assert any(f["name"] == "self-test: allreduce" for f in told["findings"])


def test_a_slow_link_is_named_and_drawn(tmp_path):
    picture = tmp_path / "links.png"
    job = examine(4, "slow", tmp_path, "--limit-s", "60", "--links", str(picture))
    assert job.returncode == 0, job.output
    told = report(job)
    links = told["links"]
    assert links["slow"][0]["ranks"] == [1, 2]  # others may be slow on a machine at work
    (found,) = [f for f in told["findings"] if f["name"] == "links"]
    assert re.search(r"slow: .*(ranks 1-2|rank [12] with most)", found["found"])
    assert found["status"] in ("warn", "note")  # note: where ranks outnumber the cores
    for name in ("latency_us", "bandwidth_MBps"):
        rows = links[name]
        assert all(rows[i][i] is None for i in range(4))
        assert all(rows[i][j] == rows[j][i] > 0 for i in range(4) for j in range(4) if i != j)
    assert links["latency_us"][1][2] > 50_000
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"},
        {"MPI4PY_LIBMPI": "/nonexistent/libmpi.so"},
    ],
    ids=lambda e: next(iter(e)),
)
def test_mpi_that_does_not_start_is_reported_with_a_remedy(environ, tmp_path, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-m", "mpimomentum", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "fail"
    (fault,) = failed(told).values()
    assert fault["name"] in ("start of MPI", "MPI library")
    assert fault["remedy"]
    assert "Traceback" not in done.stderr
