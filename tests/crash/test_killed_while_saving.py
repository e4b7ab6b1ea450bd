"""A job that is killed while it writes a checkpoint leaves the one before, and goes on from it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpimomentum.runtime import checkpoint_files as files
from tests.launch import ROOT, launch, start

SAVING = str(Path(__file__).parents[1] / "jobs" / "saving.py")


@pytest.mark.parametrize(
    ("algorithm", "place", "valid"),
    [
        ("d-psgd", "half a file", [5]),
        ("d-psgd", "before the manifest's name", [5]),
        ("d-psgd", "before pruning", [10, 5]),
        ("ad-psgd", "half a file", None),
    ],
)
def test_killed_while_saving(
    tmp_path: Path, algorithm: str, place: str, valid: list[int] | None
) -> None:
    out = tmp_path / "run"
    job = start(2, SAVING, str(out), algorithm, "17", place, tmp_path=tmp_path, fresh=True)
    output = job.wait_for(f"stopped at {place}")
    for pid in re.findall(r"pid \d (\d+)", output):
        os.kill(int(pid), signal.SIGKILL)
    job.wait()

    found = files.committed(out / "checkpoints")
    for path in found:  # whole
        for file in files.read_manifest(path).files:
            files.read_part(path, file)
    numbers = [files.number_of(path) for path in found]
    assert numbers == valid if valid is not None else len(numbers) == 1

    done = launch(2, SAVING, str(out), algorithm, "23", tmp_path=tmp_path)
    assert done.returncode == 0, done.output
    assert f"went on from {numbers[0]}\n" in done.output
    assert "finished [23, 23]" in done.output
    names = [p.name for p in (out / "checkpoints").iterdir()]
    assert names == ["step-000023"]  # what was half written has gone, too
    left = {p.name for p in (out / "checkpoints" / names[0]).iterdir()}
    assert left == {"manifest.json", "rank-0000.safetensors", "rank-0001.safetensors"}


@pytest.mark.parametrize("algorithm", ["d-psgd", "ad-psgd"])
def test_a_full_disk_ends_the_run_on_all_ranks_and_the_one_before_stays(
    tmp_path: Path, algorithm: str
) -> None:
    out = tmp_path / "run"
    failed = launch(2, SAVING, str(out), algorithm, "1000000", "a full disk", tmp_path=tmp_path)
    assert failed.returncode not in (0, 85)
    assert "RunFailed: rank 1 cannot write the checkpoint" in failed.output
    assert re.search(r"too large|os error 27", failed.output)
    (path,) = files.committed(out / "checkpoints")
    assert f"{path} is the last valid one" in failed.output
    assert [p.name for p in (out / "checkpoints").iterdir()] == [path.name]
    for file in files.read_manifest(path).files:
        files.read_part(path, file)


def test_kills_at_random_moments_lose_nothing() -> None:
    """A few of the trials that are made with ``--kills 50``."""
    trials = [sys.executable, "scripts/checkpoint_trials.py", "--kills", "3", "--ranks", "2"]
    done = subprocess.run(
        trials, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills, nothing lost" in done.stdout
