"""A signal to one rank stops all of them, with a checkpoint from which the run goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpimomentum.reports.history import History
from mpimomentum.reports.run_directory import RunDirectory
from mpimomentum.reports.traces import events
from mpimomentum.runtime import checkpoint_files as files
from tests.launch import launch, start

STOPPING = str(Path(__file__).parents[1] / "jobs" / "stopping.py")


@pytest.mark.parametrize(("algorithm", "name"), [("d-psgd", "SIGTERM"), ("ad-psgd", "SIGUSR1")])
def test_a_signal_to_one_rank_stops_all(tmp_path: Path, algorithm: str, name: str) -> None:
    out = tmp_path / "run"
    run = [
        "train",
        "--algorithm",
        algorithm,
        "--model",
        "mlp",
        "--out",
        str(out),
        "--resume",
        "auto",
        "--trace",
    ]
    endless = (*run, "--steps", "1000000", "--progress", "lines")
    job = start(2, STOPPING, *endless, tmp_path=tmp_path, fresh=True)
    output = job.wait_for("samples/s")  # it is under way
    there = tmp_path / "second"
    there.mkdir()
    second = launch(2, STOPPING, *endless, tmp_path=there)  # into the same directory
    assert second.returncode == 2, second.output
    assert second.output.count("another run is writing there") == 1
    os.kill(int(re.search(r"pid 1 (\d+)", output).group(1)), getattr(signal, name))
    stopped = job.wait()
    assert stopped.returncode == 85, stopped.output
    assert stopped.output.count(f"mpimomentum: stopped: {name} came to rank 1. The run is") == 1
    assert "Traceback" not in stopped.output
    assert not (out / "summary.json").exists()

    (path,) = files.committed(out / "checkpoints")
    left = History.of(RunDirectory.open(out))  # what a report can be made of
    assert set(left.ranks) == {0, 1}
    assert left.run.beginning["ranks"] == 2
    assert left.loss_by_step.points > 0
    assert all(rank.parts["compute"] > 0 for rank in left.ranks.values())
    said = {r: {e["name"] for e in events(out / f"trace-{r}.json")} for r in range(2)}
    assert f"request to stop: {name}" in said[1] - said[0]
    assert all("checkpoint" in names for names in said.values())
    steps = files.read_manifest(path).steps
    assert min(steps) > 0
    if algorithm == "d-psgd":  # neither was a step ahead
        assert steps[0] == steps[1]
    done = launch(2, STOPPING, *run, "--steps", str(max(steps) + 3), tmp_path=tmp_path)
    assert done.returncode == 0, done.output
    assert f"going on from {path}" in done.output
    assert (out / "summary.json").exists()
    assert (out / "trace-1.1.json").exists()  # of the first part


def test_signals_are_caught_before_anything_that_takes_long() -> None:
    program = """
import signal, sys
from mpimomentum import __main__
from mpimomentum.runtime import stop_signal

stop_signal.catch()
assert "torch" not in sys.modules and "mpi4py" not in sys.modules
assert stop_signal.received() == ""
signal.raise_signal(signal.SIGUSR1)
signal.raise_signal(signal.SIGTERM)
print(stop_signal.received())
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "SIGUSR1\n"


def test_a_second_signal_does_not_spoil_the_exit_code() -> None:
    program = """
import atexit, signal, sys
from mpimomentum import __main__

atexit.register(signal.raise_signal, signal.SIGTERM)
__main__.run = lambda: sys.exit(85)
sys.argv = ["mpimomentum", "train"]
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == 85


def test_other_commands_die_of_a_signal_as_ever() -> None:
    program = """
import signal, sys
from mpimomentum import __main__, cli

cli.main = lambda: signal.raise_signal(signal.SIGTERM)
sys.argv = ["mpimomentum", "simulate"]
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == -signal.SIGTERM
