"""Learning-rate schedules: torch's values, and that they reach the update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

import mpimomentum as mm
from mpimomentum import models
from mpimomentum.runtime.config import TrainConfig
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.loop import Stop
from mpimomentum.runtime.schedule import linear_scale
from mpimomentum.runtime.schedule_config import Schedule

STEPS, WARMUP = 40, 8
MILESTONES = (12, 13, 30)


def warmed_up(optimizer: Any, then: LRScheduler) -> SequentialLR:
    rising = LinearLR(optimizer, start_factor=1 / WARMUP, total_iters=WARMUP - 1)
    return SequentialLR(optimizer, [rising, then], milestones=[WARMUP])


# name -> (ours, torch's)
PAIRS: dict[str, tuple[mm.LRSchedule, Any]] = {
    "step": (
        mm.LRSchedule("step", milestones=MILESTONES, decay=0.3),
        lambda o: MultiStepLR(o, list(MILESTONES), gamma=0.3),
    ),
    "cosine": (
        mm.LRSchedule("cosine", total_steps=STEPS),
        lambda o: CosineAnnealingLR(o, T_max=STEPS),
    ),
    "warm-up, cosine": (
        mm.LRSchedule("cosine", warmup_steps=WARMUP, total_steps=STEPS),
        lambda o: warmed_up(o, CosineAnnealingLR(o, T_max=STEPS - WARMUP)),
    ),
    "warm-up, step": (
        mm.LRSchedule("step", warmup_steps=WARMUP, milestones=MILESTONES, decay=0.3),
        lambda o: warmed_up(o, MultiStepLR(o, [m - WARMUP for m in MILESTONES], gamma=0.3)),
    ),
}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[mm.LRSchedule, Any]:
    return request.param


def test_factors_are_torchs(pair: Any) -> None:
    ours, make = pair
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = make(optimizer)
    for step in range(STEPS):
        assert ours.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), step
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_training_is_torchs_sgd_step_by_step(pair: Any, mu: float) -> None:
    """Same model, batches, schedule and weight decay: the same weights after every step."""
    ours, make = pair
    x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.randint(10, (40,), generator=torch.Generator().manual_seed(2))

    def objective(rank: int, size: int) -> mm.TorchObjective:
        return mm.TorchObjective(
            models.build("mlp", (1, 8, 8), 10), cross_entropy, x, y, 40, weight_decay=0.05
        )

    iterates: list[torch.Tensor] = []
    mm.simulate(
        mm.AllReduceSGD(lr=0.2, mu=mu),
        objective,
        1,
        steps=STEPS,
        schedule=ours,
        observe=lambda w, s: iterates.append(s.x.clone()),
    )
    model = models.build("mlp", (1, 8, 8), 10)
    optimizer = SGD(model.parameters(), lr=0.2, momentum=mu, weight_decay=0.05)
    theirs = make(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        theirs.step()
        expected = nn.utils.parameters_to_vector(model.parameters()).detach()
        torch.testing.assert_close(iterates[step], expected, rtol=1e-4, atol=1e-5)
    assert (iterates[-1] - iterates[0]).abs().max() > 0.1  # it went somewhere


ALGORITHMS = [
    mm.AllReduceSGD(lr=0.1, mu=0.5),
    mm.DPSGD(lr=0.1),
    mm.DPSGD(lr=0.1, variant="atc"),
    mm.ADPSGD(lr=0.1, mu=0.5),
    mm.ADPSGD(lr=0.1, mu=0.5, variant="paired"),
    mm.AsyncServer(lr=0.1),
]
by_class = pytest.mark.parametrize(
    "algorithm", ALGORITHMS, ids=lambda a: f"{a.name} {getattr(a, 'variant', '')}".strip()
)


def quadratic(rank: int, size: int) -> mm.Quadratic:
    return mm.Quadratic(b=torch.tensor([1.0, -2.0]), h=0.5)


@by_class
def test_nothing_moves_once_the_factor_is_zero(algorithm: Any) -> None:
    """All start at the same model, so that averaging moves nothing either."""
    frozen = mm.LRSchedule("step", milestones=(7,), decay=0.0)
    seven = mm.simulate(algorithm, quadratic, 4, steps=7)
    long = mm.simulate(algorithm, quadratic, 4, steps=20, schedule=frozen)
    torch.testing.assert_close(long.mean, seven.mean, rtol=0, atol=1e-14)
    assert (mm.simulate(algorithm, quadratic, 4, steps=20).mean - seven.mean).abs().max() > 0.01


@by_class
def test_a_schedules_factor_is_the_step_size_of_that_step(algorithm: Any) -> None:
    """One worker on a quadratic: x follows the recursion with lr·factor(k), nothing lags a step."""
    schedule = mm.LRSchedule("cosine", warmup_steps=3, total_steps=12, scale=2.0)
    run = mm.simulate(algorithm, quadratic, 1, steps=12, schedule=schedule)
    f = quadratic(0, 1)
    x, m = f.initial(), torch.zeros(2, dtype=torch.float64)
    for k in range(12):
        m = getattr(algorithm, "mu", 0.0) * m + f.full_gradient(x)
        x = x - algorithm.lr * schedule.factor(k) * m
    torch.testing.assert_close(run.mean, x, rtol=1e-12, atol=1e-12)


def test_each_worker_goes_by_its_own_step() -> None:
    schedule = mm.LRSchedule("step", milestones=(3, 5), decay=0.5)
    seen: dict[int, list[float]] = {0: [], 1: []}
    mm.simulate(
        mm.ADPSGD(lr=1.0),
        quadratic,
        2,
        steps=8,
        clock=mm.Clock(slow={1: 3}),
        schedule=schedule,
        observe=lambda w, s: seen[w.rank].append(w.lr),
    )
    assert seen == {r: [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25] for r in (0, 1)}


def test_without_a_schedule_the_step_size_is_left_alone() -> None:
    """So that whoever sets it, the user's own scheduler say, is not overruled."""

    class Setting(mm.AllReduceSGD):
        async def step(self, w: Any, s: Any) -> None:
            w.lr = 0.0
            await super().step(w, s)
            assert w.lr == 0.0

    run = mm.simulate(Setting(lr=1.0), quadratic, 2, steps=3)
    assert not run.mean.any()


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_weight_decay_is_part_of_gradients_and_not_of_losses(mu: float) -> None:
    x, y = torch.randn(12, 4), torch.randint(3, (12,))

    def objective(weight_decay: float) -> mm.TorchObjective:
        torch.manual_seed(0)
        return mm.TorchObjective(nn.Linear(4, 3), cross_entropy, x, y, 5, weight_decay=weight_decay)

    plain, decayed = objective(0.0), objective(0.25)
    v = plain.initial() + 1
    batch = torch.arange(5)
    torch.testing.assert_close(
        decayed.gradient(v, batch), plain.gradient(v, batch) + 0.25 * v, rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(
        decayed.full_gradient(v), plain.full_gradient(v) + 0.25 * v, rtol=1e-6, atol=1e-7
    )
    assert decayed.loss(v) == plain.loss(v)
    with pytest.raises(ValueError, match=r"weight_decay=-0\.1"):
        objective(-0.1)


def test_linear_scaling_is_goyals() -> None:
    assert linear_scale(8, 32, 256) == 1.0
    assert linear_scale(32, 256, 256) == 32.0
    assert mm.LRSchedule(scale=4.0, warmup_steps=2).factor(0) == 2.0
    assert mm.LRSchedule(scale=4.0, warmup_steps=2).factor(5) == 4.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"kind": "step"}, "needs milestones"),
        ({"milestones": (3,)}, "no other has them"),
        ({"kind": "step", "milestones": (3, 3)}, "must ascend"),
        ({"kind": "step", "milestones": (3,), "decay": float("nan")}, "decay=nan"),
        ({"kind": "cosine"}, "needs total_steps"),
        ({"kind": "cosine", "total_steps": 5, "warmup_steps": 6}, "longer than the run"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mm.LRSchedule(**values)


def test_epochs_become_steps_of_a_worker() -> None:
    config = Schedule(
        lr_schedule="step",
        warmup_epochs=0.5,
        milestones="2,3.5",
        lr_decay=0.2,
        lr_scaling="linear",
        reference_batch=100,
    )
    built = config.build(Stop(steps=400), workers=4, batch_size=50, samples=1000)
    assert built == mm.LRSchedule(
        "step", warmup_steps=10, milestones=(40, 70), decay=0.2, total_steps=400, scale=2.0
    )
    cosine = Schedule(lr_schedule="cosine").build(Stop(steps=7), 1, 10, 70)
    assert cosine == mm.LRSchedule("cosine", total_steps=7)
    assert Schedule().build(Stop(duration_s=2.0), 1, 10, 70) == mm.LRSchedule()


def test_a_run_of_a_given_duration_has_no_cosine_but_may_have_milestones() -> None:
    with pytest.raises(BadInput, match=r"duration_s=2\.0: .*give epochs or steps"):
        Schedule(lr_schedule="cosine").build(Stop(duration_s=2.0), 1, 10, 70)
    step = Schedule(lr_schedule="step", milestones="1").build(Stop(duration_s=2.0), 1, 10, 70)
    assert [step.factor(k) for k in (6, 7)] == [1.0, pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_epochs": -1.0}, r"warmup_epochs=-1\.0"),
        ({"lr_decay": float("inf")}, "lr_decay=inf"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1"),
        ({"reference_batch": 0}, "reference_batch=0"),
        ({"lr_schedule": "step"}, "needs milestones"),
        ({"milestones": "3"}, "only a step schedule"),
        ({"lr_schedule": "step", "milestones": "3;4"}, "milestones='3;4': give epochs"),
        ({"lr_schedule": "step", "milestones": "4,3"}, "milestones='4,3': give epochs"),
        ({"lr_schedule": "step", "milestones": "-1"}, "milestones='-1': give epochs"),
    ],
)
def test_flags_that_make_no_sense_are_refused(values: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Schedule(**values)


def test_what_does_not_fit_the_run_is_refused_before_it_starts() -> None:
    with pytest.raises(BadInput, match=r"warmup_epochs=3\.0 are 30 steps, but the run has 20"):
        Schedule(warmup_epochs=3.0).build(Stop(steps=20), 1, 10, 100)
    with pytest.raises(BadInput, match="fall on the same step"):
        Schedule(lr_schedule="step", milestones="1,1.01").build(Stop(steps=20), 1, 10, 100)


def test_a_schedule_is_part_of_what_repeats_the_run() -> None:
    values = TrainConfig(schedule=Schedule(lr_schedule="step", milestones="15,25")).flat()
    assert values["lr_schedule"] == "step"
    assert values["milestones"] == "15,25"
