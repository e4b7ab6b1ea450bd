"""Weight decay is taken once: from the gradient, or by the algorithm that decays by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpimomentum as mm
from mpimomentum.runtime import trainer
from mpimomentum.runtime.config import Length, Method, Output, SimulateConfig, Task
from mpimomentum.runtime.decay import chosen, own_decay
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.schedule_config import Schedule


def still(weight_decay: float = 0.0) -> Any:
    """A linear model whose loss is 0 everywhere: only decay moves it."""

    def f(rank: int, size: int) -> mm.TorchObjective:
        torch.manual_seed(0)
        x = torch.zeros(4, 3)
        return mm.TorchObjective(
            nn.Linear(3, 2), lambda out, y: 0 * out.sum(), x, x, 2, weight_decay=weight_decay
        )

    return f


def test_an_algorithm_of_its_own_decay_shrinks_by_lr_times_it() -> None:
    x0 = still()(0, 1).initial()
    run = mm.simulate(mm.Signum(0.1, beta=0.0, weight_decay=0.5), still(), 3, steps=1)
    # the sign of 0 counts as +
    assert torch.equal(run.x[0], x0 - (torch.tensor(0.1) + torch.tensor(0.1 * 0.5) * x0))


@pytest.mark.parametrize("feedback", [False, True])
def test_a_schedule_scales_the_decay_too(feedback: bool) -> None:
    algorithm = mm.Signum(0.1, beta=0.0, weight_decay=0.5, error_feedback=feedback)
    x0 = still()(0, 1).initial()
    schedule = mm.LRSchedule("step", milestones=(1,), decay=0.5)
    run = mm.simulate(algorithm, still(), 2, steps=2, schedule=schedule)
    expected = x0.double()
    for lr in (0.1, 0.05):  # with feedback the scale of a zero vector is 0
        expected = expected - lr * ((0.0 if feedback else 1.0) + 0.5 * expected)
    torch.testing.assert_close(run.x[0].double(), expected, rtol=1e-6, atol=1e-6)


def test_both_at_once_are_refused_before_a_step() -> None:
    for own, other in ((0.0, 0.1), (0.1, 0.0)):
        mm.simulate(mm.Signum(0.1, weight_decay=own), still(other), 2, steps=1)
    with pytest.raises(BadInput, match=r"weight_decay=0\.1, and the objective's weight_decay=0\.2"):
        mm.simulate(mm.Signum(0.1, weight_decay=0.1), still(0.2), 1, steps=1)


def test_an_optimizers_default_is_the_algorithms() -> None:
    assert chosen(mm.Signum(0.1, weight_decay=0.2), None) == 0.2
    assert chosen(mm.Signum(0.1), 0.3) == 0.3
    assert chosen(mm.DPSGD(0.1), None) == own_decay(mm.DPSGD(0.1)) == 0.0
    with pytest.raises(BadInput, match="give it in one place"):
        chosen(mm.Signum(0.1, weight_decay=0.2), 0.0)


@pytest.mark.parametrize("algorithm", ["signum", "d-psgd"])
def test_the_flag_reaches_who_decays(algorithm: str, tmp_path: Path, monkeypatch: Any) -> None:
    seen: set[tuple[float, float]] = set()
    real = trainer.runs.simulate

    def spying(made: Any, objective: Any, size: int, *rest: Any, **options: Any) -> mm.Run:
        seen.add((own_decay(made), objective(0, size).weight_decay))
        return real(made, objective, size, *rest, **options)

    monkeypatch.setattr(trainer.runs, "simulate", spying)
    config = SimulateConfig(
        method=Method(algorithm),
        schedule=Schedule(weight_decay=0.125),
        task=Task(model="mlp"),
        length=Length(steps=2),
        output=Output(out=tmp_path / "o", progress="off"),
    )
    _, out = trainer.simulate(config)
    assert seen == {(0.125, 0.0) if algorithm == "signum" else (0.0, 0.125)}
    parameters = json.loads((out / "summary.json").read_text())["parameters"]
    assert parameters.get("weight_decay") == (0.125 if algorithm == "signum" else None)
