"""Replays of runs that ended early, or seem to."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpimomentum.runtime import trainer
from mpimomentum.runtime.config import Length, Output, SimulateConfig, Task
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.replay_command import replayed
from mpimomentum.runtime.replay_config import Replaying


def simulated(out: Path, steps: int = 4) -> None:
    trainer.simulate(
        SimulateConfig(
            task=Task(model="mlp"),
            length=Length(steps=steps),
            output=Output(out=out, progress="off", record=True),
        )
    )


def replaying(directory: Path) -> list[str]:
    lines: list[str] = []
    replayed(SimulateConfig(replaying=Replaying(directory)), lines.append)
    return lines


def test_a_chronicle_that_was_cut_is_not_taken_for_a_run_that_failed(tmp_path):
    out = tmp_path / "run"
    simulated(out)
    path = out / "chronicle" / "rank-0001.rows"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    words = (
        "rank 1's chronicle ends early, though the run came to its end: .*rank-0001.rows was cut"
    )
    with pytest.raises(BadInput, match=words):
        replaying(out)
    (out / "summary.json").unlink()  # as of a run that was killed
    assert "the run did not come to its end" in replaying(out)[1]
