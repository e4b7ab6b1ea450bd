"""What a user starts with mpirun: the main job, bad input, and every example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launch import ROOT, launch

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_the_main_job_learns_and_leaves_a_whole_run_directory(tmp_path: Path) -> None:
    out = tmp_path / "run"
    args = ("-m", "mpimomentum", "train", "--out", str(out))
    done = launch(4, *args, tmp_path=tmp_path, fresh=True)
    assert done.returncode == 0, done.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_accuracy"] >= 0.96
    assert summary["ranks"] == 4
    assert summary["updates_per_rank"] == [summary["steps"]] * 4
    assert set(summary["staleness"]) == {"mean", "p50", "p99", "max", "histogram"}
    assert 1 < summary["staleness"]["mean"] <= 3  # n - 1 while all work, less while some wait
    assert sum(summary["staleness"]["histogram"].values()) == 4 * summary["steps"]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {r["rank"] for r in records} == set(range(4))
    assert sum("tau" in r for r in records) == 4 * summary["steps"]
    assert "test accuracy" in done.output
    assert str(out) in done.output


@pytest.mark.parametrize("algorithm", ["allreduce-sgd", "d-psgd", "async-server"])
def test_a_run_is_repeated_from_its_own_config(tmp_path: Path, algorithm: str) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    flags = ["--algorithm", algorithm, "--steps", "12", "--model", "mlp", "--lr", "0.05"]
    for out, arguments in ((first, flags), (second, [str(first / "config.toml")])):
        command = ["-m", "mpimomentum", "train", *arguments, "--out", str(out)]
        done = launch(2, *command, tmp_path=tmp_path, MPIMOMENTUM_PRETEND_GPUS="1")
        assert done.returncode == 0, done.output
        assert done.output.count("up to 2 ranks share a GPU") == 1
    a, b = (json.loads((out / "summary.json").read_text()) for out in (first, second))
    assert a["algorithm"] == b["algorithm"] == algorithm
    assert a["steps"] == b["steps"] == 12
    assert a["device"] == b["device"]
    assert a["device"]["ranks"] == ["cuda:0", "cuda:0"]
    if algorithm == "d-psgd":  # fixed order of every sum
        assert a["train_loss"] == b["train_loss"]


def test_a_calibration_that_fails_on_all_ranks_is_told_once(tmp_path: Path) -> None:
    out = tmp_path / "calibration.toml"
    job = str(ROOT / "tests" / "jobs" / "noisy_calibration.py")
    done = launch(2, job, str(out), tmp_path=tmp_path)
    assert done.returncode == 1, done.output
    assert done.output.count("mpimomentum: ") == 1, done.output
    assert "average of 4000000 bytes took 0.001 s" in done.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algorithm", "ad-psdg"], "did you mean 'ad-psgd'"),
        (["--topology", "hypercube"], "power of two"),
        (["--variant", "paired", "--topology", "complete"], "bipartite"),
        (["--data-dir", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "run"
    done = launch(3, "-m", "mpimomentum", "train", "--out", str(out), *arguments, tmp_path=tmp_path)
    assert done.returncode == 2, done.output
    said = [line for line in done.output.splitlines() if line.startswith("mpimomentum: ")]
    assert len(said) == 1
    assert message in said[0]
    assert "Traceback" not in done.output
    assert not (out / "config.toml").exists()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs_on_ranks(tmp_path: Path, example: Path) -> None:
    done = launch(4, str(example), tmp_path=tmp_path)
    assert done.returncode == 0, done.output
