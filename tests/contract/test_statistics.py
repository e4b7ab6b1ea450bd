"""BatchNorm's running statistics: the averaged model is evaluated with the ranks' mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import mpimomentum as mm
from mpimomentum.models import registry
from mpimomentum.runtime import trainer
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.config import (
    Length,
    Method,
    Output,
    SimulateConfig,
    Task,
    TrainConfig,
)

STEPS, MOMENTUM = 5, 0.1  # torch's momentum of running statistics: the weight of the new value


@pytest.fixture
def driver() -> str:
    return "thread"


@pytest.fixture(params=["simulator", pytest.param("mpi", marks=pytest.mark.mpi)])
def worker(request: pytest.FixtureRequest) -> Any:
    """This rank's worker, or None for the simulator."""
    return None if request.param == "simulator" else request.getfixturevalue("make_worker")()


def run(worker: Any, algorithm: Any, objective: Any, **options: Any) -> mm.Run:
    if worker is None:
        return mm.simulate(algorithm, objective, 4, **options)
    return mm.run(algorithm, objective, worker=worker, **options)


def samples_of(rank: int) -> torch.Tensor:
    return (rank + 1) * torch.randn(8, 3, generator=torch.Generator().manual_seed(rank)) + rank


def normalising(rank: int, size: int) -> mm.TorchObjective:
    """A BatchNorm that sees all of this rank's samples, of its own mean and scale, each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=MOMENTUM), nn.Linear(3, 2))
    return mm.TorchObjective(model, cross_entropy, samples_of(rank), torch.arange(8) % 2, 8)


@pytest.mark.parametrize(
    ("algorithm", "workers"),
    [
        (mm.AllReduceSGD(lr=0.1), 4),
        (mm.ADPSGD(lr=0.1), 4),
        (mm.AsyncServer(lr=0.1), 4),
        (mm.AsyncServer(lr=0.1, dedicated=True), 3),  # the server's, never used, do not count
    ],
    ids=["allreduce-sgd", "ad-psgd", "async-server", "dedicated server"],
)
def test_statistics_are_the_mean_over_the_ranks_that_compute(
    worker: Any, algorithm: Any, workers: int
) -> None:
    if worker is not None and worker.size != 4:
        pytest.skip("for 4 ranks")
    result = run(worker, algorithm, normalising, steps=STEPS)
    new = 1 - (1 - MOMENTUM) ** STEPS  # the inputs are always the same, whatever the weights do
    parts = [samples_of(i) for i in range(workers)]
    mean = new * torch.stack([x.mean(dim=0) for x in parts]).mean(dim=0)
    var = (1 - new) + new * torch.stack([x.var(dim=0) for x in parts]).mean(dim=0)
    expected = torch.cat([mean, var]).double()
    torch.testing.assert_close(result.statistics, expected, rtol=1e-5, atol=1e-5)


def test_a_model_that_nobody_trained_keeps_its_statistics(worker: Any) -> None:
    result = run(worker, mm.AllReduceSGD(lr=0.1), normalising, steps=0)
    assert result.statistics.tolist() == [0, 0, 0, 1, 1, 1]


def test_an_objective_without_statistics_has_none(worker: Any) -> None:
    quadratic = mm.Quadratic(b=torch.ones(2))
    result = run(worker, mm.AllReduceSGD(lr=0.1), lambda rank, size: quadratic, steps=1)
    assert result.statistics.shape == (0,)


class Unscaled(nn.Module):
    """Takes the standardisation of the images back: BatchNorm has to do it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 40 + 20 * x.flatten(1)


def bn_mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(
        Unscaled(), nn.BatchNorm1d(64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes)
    )


def accuracy(worker: Any, out: Path) -> float:
    """Test accuracy of the averaged model, as the command line trains and evaluates it."""
    if worker is not None:
        out = Path(told(worker, str(out))[0])  # each rank's tmp_path is its own
    common: dict[str, Any] = {
        "method": Method("d-psgd", lr=0.2),
        "task": Task(model="bn-mlp", batch_size=16),
        "length": Length(epochs=8),
        "output": Output(out=out, progress="off"),
    }
    if worker is None:
        results, _ = trainer.simulate(SimulateConfig(workers=4, **common))
    else:
        done = trainer.train(TrainConfig(**common), worker)
        if done is None:  # not rank 0
            return 1.0
        results, _ = done
    return float(results["test_accuracy"])


def test_the_averaged_model_is_evaluated_with_them(
    worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._BUILDERS, "bn-mlp", (bn_mlp, "for this test"))
    assert accuracy(worker, tmp_path / "run") > 0.93


def test_with_the_initial_statistics_the_same_run_would_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above is worth."""
    monkeypatch.setitem(registry._BUILDERS, "bn-mlp", (bn_mlp, "for this test"))
    monkeypatch.setattr(mm.TorchObjective, "load_statistics", lambda self, v: None)
    assert accuracy(None, tmp_path / "run") < 0.8
