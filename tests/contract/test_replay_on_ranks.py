"""Runs of 4 real ranks, recorded, come out again in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpimomentum.runtime.config import SimulateConfig
from mpimomentum.runtime.replay_command import replayed
from mpimomentum.runtime.replay_config import Replaying
from tests.jobs.recorded import ALGORITHMS, LONG_STEPS
from tests.launch import launch

JOB = str(Path(__file__).parents[1] / "jobs" / "recorded.py")
ASYNCHRONOUS = [name for name, a in ALGORITHMS.items() if not a.synchronous]


# between nodes there are MPI's Get and Put, and sums in MPI's order
@pytest.mark.parametrize(("nodes", "rounding"), [(1, 0.0), (2, 1e-6)])
def test_recorded_ranks_come_out_again(tmp_path, nodes, rounding):
    env = {"MPIMOMENTUM_FAKE_NODES": str(nodes)}
    done = launch(4, JOB, str(tmp_path), tmp_path=tmp_path, timeout_s=240, **env)
    assert done.returncode == 0, done.output
    said = json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))
    assert said["nodes"] == nodes
    print(json.dumps(said, indent=1))
    for name in ALGORITHMS:
        found = said["found"][name]
        assert found["apart"] <= rounding, name
        assert found["records"], name
        assert found["records of all"] >= 2 * LONG_STEPS, name  # of 2 workers and 2 servers, say
    # so that equality above means something: another schedule gives other iterates
    assert sum(said["found"][name].get("otherwise", 0) > 1e-4 for name in ASYNCHRONOUS) > 5


@pytest.mark.parametrize("flags", ["ad-psgd", "async-server --servers 2 --weighting inverse"])
def test_a_training_run_is_replayed_from_its_directory(tmp_path, flags):
    out = tmp_path / "run"
    command = f"-m mpimomentum train --record --out {out} --model mlp --steps 40 --log-every 4"
    command += (
        f" --slow 1:3 --compute-s 0.003 --progress off --checkpoint-every 15 --algorithm {flags}"
    )
    done = launch(4, *command.split(), tmp_path=tmp_path, timeout_s=120)
    assert done.returncode == 0, done.output
    lines: list[str] = []
    replayed(SimulateConfig(replaying=Replaying(out)), lines.append)
    *_, records, model = lines
    assert records.endswith("to the last bit")
    assert float(model.split()[-1]) < 1e-6


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_a_training_run_that_failed_is_replayed_up_to_there(tmp_path, how):
    out = tmp_path / "run"
    job = str(Path(__file__).parents[1] / "jobs" / "failing_recorded.py")
    flags = f"--record --out {out} --model mlp --steps 4000 --compute-s 0.003 --progress off"
    done = launch(4, job, how, *flags.split(), tmp_path=tmp_path, timeout_s=120)
    assert done.returncode != 0
    lines: list[str] = []
    replayed(SimulateConfig(replaying=Replaying(out)), lines.append)
    assert "the run did not come to its end" in lines[1]
    assert "rank 2 ends in step 11, as far as it was recorded" in lines
    assert lines[-1].endswith("records come out again, to the last bit")
    if how == "raise":  # else they were not written yet
        assert int(lines[-1].split()[0]) >= 11
