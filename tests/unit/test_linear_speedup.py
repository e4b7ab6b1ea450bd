"""The study `linear-speedup`: its speed-up is the workers', not momentum's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpimomentum.studies import registry
from mpimomentum.studies.linear_speedup import MU, TARGET, step_size
from mpimomentum.studies.study import Plan, Results

STUDY = registry.load("linear-speedup")


def steps_by_law(lr: float, variance: float) -> int:
    """Steps of one worker to the target, by the exact second moments of x and u."""
    along = np.array([[1 - lr, -lr * MU], [1.0, MU]])
    noise = variance * np.outer([-lr, 1.0], [-lr, 1.0])
    moments, steps = np.diag([1.0, 0.0]), 0
    while moments[0, 0] > TARGET:
        moments, steps = along @ moments @ along.T + noise, steps + 1
    return steps


@pytest.mark.parametrize("quick", [False, True])
def test_what_momentum_adds_to_the_speed_up_is_little(quick):
    """One worker with an n-th of the variance has no more of the workers' part than that."""
    n = max(case["workers"] for case in STUDY.cases(Plan(quick=quick)))
    faster = steps_by_law(step_size(1), 1.0) / steps_by_law(step_size(n), 1 / n)
    assert 1 < faster / n < 1.1
    assert step_size(n) < (1 - math.sqrt(MU)) ** 2 / 2  # critical damping is far


@pytest.mark.parametrize(
    ("times", "passed"), [(0.7, False), (0.8, True), (1.1, True), (1.3, False)]
)
def test_a_speed_up_that_is_not_the_workers_does_not_pass(times, passed):
    plan = Plan(seeds=1)
    found = [
        (case, {"steps": 10_000 / (1 if case["workers"] == 1 else times * case["workers"]),
                "floor": TARGET / 2 * (1 if case["every"] == 1 else 3)})
        for case in STUDY.cases(plan)
    ]  # fmt: skip
    criteria = STUDY.conclude(Results(found), plan).criteria
    assert all(c.passed for c in criteria if c.what.startswith("speed-up")) is passed
