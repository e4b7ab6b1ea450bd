"""Pacing: how long a gradient takes, and that nothing else changes."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from mpimomentum import Clock, Quadratic
from mpimomentum.runtime import pace
from mpimomentum.runtime.pace import Paced, paced, slowness
from mpimomentum.simulator.clock import ComputeTimes


class Naps:
    """A stand-in for the clock: sleeping moves it, and so does computing."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


class Working(Quadratic):
    """A quadratic whose gradient takes `work_s` on the stand-in clock."""

    naps: Naps
    work_s = 0.0

    def gradient(self, x, batch):
        self.naps.now_s += self.work_s
        return x

    def full_gradient(self, x):
        self.naps.now_s += self.work_s
        return x


@pytest.fixture
def naps(monkeypatch):
    naps = Naps()
    monkeypatch.setattr(pace, "time", naps)
    return naps


def working(naps: Naps, work_s: float) -> Working:
    objective = Working(b=torch.tensor([1.0, 2.0]))
    objective.naps, objective.work_s = naps, work_s
    return objective


def duration_s(naps: Naps, objective) -> float:
    began_s = naps.now_s
    objective.gradient(torch.zeros(2), objective.sample(np.random.default_rng(0)))
    return naps.now_s - began_s


def test_no_pacing_asked_returns_the_objective_itself():
    objective = Quadratic(b=torch.ones(2))
    assert paced(objective, 0) is objective
    assert paced(objective, 1, slow={0: 10.0}) is objective
    assert paced(objective, 0, slow={0: 10.0}) is not objective


@pytest.mark.parametrize("work_s", [0.0, 0.02])
def test_compute_s_is_the_whole_time_of_a_gradient(naps, work_s):
    objective = paced(working(naps, work_s), 0, compute_s=0.03)
    assert duration_s(naps, objective) == pytest.approx(0.03)


def test_a_slow_rank_takes_its_multiple_and_only_that_rank(naps):
    slow = {0: 10.0}
    first, second = (
        paced(working(naps, 0.001), rank, compute_s=0.03, slow=slow) for rank in (0, 1)
    )
    assert duration_s(naps, first) == pytest.approx(0.3)
    assert duration_s(naps, second) == pytest.approx(0.03)


def test_without_compute_s_the_measured_time_is_multiplied(naps):
    objective = paced(working(naps, 0.02), 0, slow={0: 3.0})
    assert duration_s(naps, objective) == pytest.approx(0.06)


class OnADevice(Working):
    """Returns at once; who looks at a number of what it returns waits for the device."""

    def gradient(self, x, batch):
        class Vector:
            def __getitem__(vector, index):  # noqa: N805
                self.naps.now_s += self.work_s
                return 0.0

        return Vector()


def test_the_time_of_a_device_is_measured_to_its_end(naps):
    objective = OnADevice(b=torch.tensor([1.0, 2.0]))
    objective.naps, objective.work_s = naps, 0.02
    assert duration_s(naps, paced(objective, 0, slow={0: 3.0})) == pytest.approx(0.06)
    assert duration_s(naps, paced(objective, 0, compute_s=0.01)) == pytest.approx(0.01)  # no look


def test_a_gradient_that_takes_longer_than_asked_is_not_delayed(naps):
    objective = paced(working(naps, 0.05), 0, compute_s=0.03)
    assert duration_s(naps, objective) == pytest.approx(0.05)


def test_a_full_gradient_is_paced_as_well(naps):
    objective = paced(working(naps, 0.001), 0, compute_s=0.03)
    objective.full_gradient(torch.zeros(2))
    assert naps.now_s == pytest.approx(0.03)


def test_jitter_has_the_mean_and_the_spread_asked_for(naps):
    objective = paced(working(naps, 0.0), 0, compute_s=2.0, jitter=0.5)
    times = np.array([duration_s(naps, objective) for _ in range(4000)])
    assert times.mean() == pytest.approx(2.0, rel=0.05)
    assert times.std() / times.mean() == pytest.approx(0.5, rel=0.1)


def test_durations_are_those_of_the_virtual_clock(naps):
    objective = paced(working(naps, 0.0), 3, compute_s=0.5, jitter=0.3, slow={3: 2.0}, seed=7)
    times = ComputeTimes(Clock(compute_s=0.5, jitter=0.3, slow={3: 2.0}, seed=7), 3)
    for _ in range(5):
        assert duration_s(naps, objective) == pytest.approx(times.draw_s())


def test_a_real_sleep_takes_real_time():
    objective = paced(Quadratic(b=torch.ones(2)), 0, compute_s=0.05)
    began_s = time.perf_counter()
    objective.gradient(torch.zeros(2), objective.sample(np.random.default_rng(0)))
    assert time.perf_counter() - began_s >= 0.049


def test_everything_but_the_time_stays_as_it_is():
    objective = Quadratic(b=torch.tensor([1.0, 2.0]))
    slowed = paced(objective, 0, compute_s=1e-4)
    assert isinstance(slowed, Paced)
    x = torch.tensor([3.0, 5.0])
    assert slowed.dim == objective.dim
    assert slowed.loss(x) == objective.loss(x)
    assert torch.equal(slowed.initial(), objective.initial())
    rng = np.random.default_rng(0)
    batch = objective.sample(rng)
    assert torch.equal(slowed.gradient(x, batch), objective.gradient(x, batch))
    objective.anything = 5
    assert slowed.anything == 5
    with pytest.raises(AttributeError):
        _ = slowed.nothing


@pytest.mark.parametrize("bad", [{"jitter": -1.0}, {"compute_s": -0.1}, {"slow": {0: 0.0}}])
def test_impossible_pacing_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        paced(Quadratic(b=torch.ones(2)), 0, **bad)


def test_slowness_reads_ranks_and_factors():
    assert slowness("0:10,3:2.5") == {0: 10.0, 3: 2.5}
    assert slowness("0:10, 3:2,") == {0: 10.0, 3: 2.0}
    assert slowness("") == {}


@pytest.mark.parametrize("text", ["0", "0:", ":2", "a:2", "0:x", "-1:2", "0:0", "0:inf", "0:nan"])
def test_slowness_refuses_what_is_not_rank_and_factor(text):
    with pytest.raises(ValueError, match="RANK:FACTOR"):
        slowness(text)


def test_slowness_refuses_a_rank_named_twice():
    with pytest.raises(ValueError, match="rank 1 twice"):
        slowness("1:2,1:3")
