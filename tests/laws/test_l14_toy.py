"""L14: f(x) = x² with a fresh gradient and one of age k, the toy of Wang, Ma and Jin.

x_{t+1} = x_t − α f'(x_t) − γ f'(x_{t−k}) has the modes z^{k+1} − q z^k + 2γ = 0, q = 1 − 2α. At
γ* = ½ q^{k+1} k^k/(k+1)^{k+1} the slowest is q k/(k+1), below plain gradient descent's q; above
q^{k+1} sin(π/(2(2k+1))) it is slower than that. (The document's own γ is γ* of k = 1.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.algorithms.stability import largest_a


@dataclass
class State:
    x: torch.Tensor
    gradients: list = field(default_factory=list)


@dataclass(frozen=True)
class Aged:
    """A fresh gradient and an old one, which is 0 before the start."""

    lr: float  # α
    gamma: float
    age: int

    name: ClassVar[str] = "aged"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[str] = "none"

    def init(self, w, x0):
        return State(x=x0.clone())

    async def step(self, w, s):
        s.gradients.append((await w.gradient(s.x, w.sample())).clone())
        s.x.sub_(w.lr * s.gradients[-1])
        if w.step >= self.age:
            s.x.sub_(self.gamma * s.gradients[-1 - self.age])


def iterates(alpha, gamma, age, steps):
    seen = [8.0]
    mm.simulate(
        Aged(alpha, gamma, age),
        lambda rank, size: mm.Quadratic(b=[0.0], h=2.0, x0=[8.0]),
        1,
        steps=steps,
        observe=lambda w, s: seen.append(float(s.x[0])),
    )
    return seen


def rate(alpha, gamma, age):
    """Spectral radius."""
    c = np.zeros(age + 2)
    c[:2] = 1, -(1 - 2 * alpha)
    c[-1] += 2 * gamma
    return np.abs(np.roots(c)).max()


def best_gamma(alpha, age):
    return (1 - 2 * alpha) ** (age + 1) * age**age / (age + 1) ** (age + 1) / 2


def loses_from(alpha, age):
    """The γ above which age k is slower than plain gradient descent: L12's edge, scaled by q."""
    return (1 - 2 * alpha) ** (age + 1) * math.sin(math.pi / (2 * (2 * age + 1)))


def test_the_documents_toy_exactly():
    x = iterates(1 / 4, 1 / 32, 1, 40)
    assert x[:3] == [8, 4, 1.5]
    assert x == [(2 * t + 2) * 4.0 ** (1 - t) for t in range(41)]  # powers of two: no rounding


@pytest.mark.parametrize(("alpha", "age"), [(1 / 4, 1), (1 / 4, 3), (0.1, 2), (0.4, 5), (0.05, 9)])
def test_the_best_old_gradient_and_its_rate(alpha, age):
    gamma, rho = best_gamma(alpha, age), (1 - 2 * alpha) * age / (age + 1)
    # a double root: γ right to 1e-16 leaves it right to 1e-8
    assert rate(alpha, gamma, age) == pytest.approx(rho, abs=1e-6)
    assert min(rate(alpha, f * gamma, age) for f in (0.9, 0.99, 1.01, 1.1)) > rho + 1e-4
    x = iterates(alpha, gamma, age, 400)
    # c t ρ^t: two times apart, the factor t cancels
    assert (x[400] / 400 / (x[200] / 200)) ** (1 / 200) == pytest.approx(rho, rel=2e-3)


def test_the_documents_step_is_the_best_of_age_one():
    assert best_gamma(1 / 4, 1) == 1 / 32
    for alpha in (0.1, 0.3):
        assert best_gamma(alpha, 1) == pytest.approx((1 - 2 * alpha) ** 2 / 8)


@pytest.mark.parametrize("alpha", [1 / 4, 0.1, 0.4])
@pytest.mark.parametrize("age", [1, 2, 3, 6])
def test_where_an_old_gradient_begins_to_hurt(alpha, age):
    q, edge = 1 - 2 * alpha, loses_from(alpha, age)
    assert rate(alpha, 0.99 * edge, age) < q < rate(alpha, 1.01 * edge, age)
    assert largest_a(0.0, age) == pytest.approx(2 * edge / q ** (age + 1), rel=1e-12)


WEIGHTS = {
    "fixed": (lambda k: 1.0, 3),
    "polynomial": (lambda k: 1 / k, 4),
    "exponential": (lambda k: math.exp(-(k - 1)), None),
}


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_which_weights_lose_to_plain_gradient_descent(weighting):
    weight, first = WEIGHTS[weighting]
    for age in range(1, 13):
        gamma = weight(age) / 32
        loses = first is not None and age >= first
        assert (rate(1 / 4, gamma, age) > 1 / 2) == loses, age
        assert (gamma > loses_from(1 / 4, age)) == loses, age
    for age in range(13, 400):
        assert (weight(age) / 32 > loses_from(1 / 4, age)) == (first is not None), age


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_they_lose_in_the_simulator_too(weighting):
    weight, first = WEIGHTS[weighting]
    steps = 400
    plain = 8 * 0.5**steps
    for age in (1, 2, 3, 4, 5):
        x = iterates(1 / 4, weight(age) / 32, age, steps)
        slower = max(map(abs, x[-2 * (age + 1) :])) > plain
        assert slower == (first is not None and age >= first), age
