"""Replays of runs that ended early, or seem to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.chronicle import Chronicle, Kind
from mpimomentum.runtime import chronicles, trainer
from mpimomentum.runtime.config import Length, Output, SimulateConfig, Task
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.records import RecordFile
from mpimomentum.runtime.replay_command import replayed
from mpimomentum.runtime.replay_config import Replaying
from mpimomentum.runtime.replaying import replay
from mpimomentum.simulator.recorded import Recorded


def simulated(out: Path, steps: int = 4) -> None:
    trainer.simulate(
        SimulateConfig(
            task=Task(model="mlp"),
            length=Length(steps=steps),
            output=Output(out=out, progress="off", record=True),
        )
    )


def replaying(directory: Path, until: int | None = None) -> list[str]:
    lines: list[str] = []
    replayed(SimulateConfig(replaying=Replaying(directory, until=until)), lines.append)
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


def quadratic(rank: int, size: int) -> Any:
    return mm.Quadratic(b=torch.ones(3) * rank)


def tables(algorithm: Any, steps: int, size: int = 2) -> list[np.ndarray[Any, Any]]:
    kept = [Chronicle() for _ in range(size)]
    mm.simulate(algorithm, quadratic, size, steps=steps, record=kept)
    return [chronicle.table() for chronicle in kept]


class BadData(mm.Quadratic):
    """Raises where the fourth batch is drawn."""

    left = 3

    def sample(self, *arguments: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ArithmeticError("bad data")
        return super().sample(*arguments)


@pytest.mark.parametrize("algorithm", [mm.AllReduceSGD(lr=0.1), mm.DPSGD(lr=0.1)], ids=str)
@pytest.mark.parametrize(("until", "steps"), [(None, 3), (2, 2), (3, 3), (5, 3)])
def test_what_every_rank_raises_outside_a_gradient_is_told(algorithm, until, steps):
    def bad(rank: int, size: int) -> Any:
        return BadData(b=torch.ones(3) * rank)

    parts = [table[:-1].copy() for table in tables(algorithm, 3)]  # without the end marks
    for part in parts:
        part[-1, -1] += 1  # the fourth step began
    ends: list[str] = []
    run = replay(algorithm, bad, [Recorded.of(p) for p in parts], until=until, ends=ends)
    assert run.updates.tolist() == [steps, steps]
    told = [f"rank {rank} ends in step 3: ArithmeticError: bad data" for rank in range(2)]
    assert ends == (told if until in (None, 5) else [])


def test_who_waits_says_for_what_it_still_waits():
    """Not for the first of several changes of its window, once that has come."""
    algorithm = mm.ADPSGD(lr=0.1)
    parts = tables(algorithm, 4)
    first = int(np.flatnonzero(parts[0][:, 0] == Kind.EXCHANGED)[0])
    never = [Kind.ADDED, 0, parts[0][first, 2], 1, 0]  # rank 1 averages, and adds nothing
    parts[0] = np.insert(parts[0], first + 1, never, axis=0)
    ends: list[str] = []
    replay(algorithm, quadratic, [Recorded.of(p[:-1]) for p in parts], ends=ends)
    assert ends[0] == "rank 0 ends in step 0, waiting for what rank 1 handed over"


def test_a_run_of_no_steps_is_replayed(tmp_path):
    parts = tables(mm.ADPSGD(lr=0.1), 0)
    for until in (None, 3):
        run = replay(mm.ADPSGD(lr=0.1), quadratic, [Recorded.of(p) for p in parts], until=until)
        assert run.updates.tolist() == [0, 0]
        assert torch.equal(run.x, torch.zeros(2, 3))
    simulated(tmp_path / "run", steps=0)
    assert " 0 steps" in replaying(tmp_path / "run")[0]
    with pytest.raises(BadInput, match="until=3: the run made no steps"):
        replaying(tmp_path / "run", until=3)


@pytest.mark.parametrize("until", [0, -1])
def test_a_replay_that_makes_no_steps_is_refused(until):
    parts = tables(mm.ADPSGD(lr=0.1), 3)
    with pytest.raises(ValueError, match=f"until={until} must be at least 1"):
        replay(mm.ADPSGD(lr=0.1), quadratic, [Recorded.of(p) for p in parts], until=until)


@pytest.mark.parametrize(("where", "name"), [(chronicles, "save"), (RecordFile, "close")])
def test_a_full_disk_at_the_end_does_not_hide_why_a_run_failed(
    tmp_path, monkeypatch, caplog, where, name
):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def fails(*_: Any, **__: Any) -> None:
        raise ArithmeticError("bad data")

    monkeypatch.setattr(where, name, full)
    with pytest.raises(OSError, match="No space"):  # of a run that came to its end it is told
        simulated(tmp_path / "whole", steps=1)
    monkeypatch.setattr(trainer.runs, "simulate", fails)
    with pytest.raises(ArithmeticError, match="bad data"):
        simulated(tmp_path / "failed")
    assert [text.count("No space left") for text in caplog.messages] == [1]
