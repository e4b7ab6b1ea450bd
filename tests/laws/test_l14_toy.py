"""L14: f(x) = x² with a fresh gradient and one of age k, the toy of Wang, Ma and Jin.

Its modes and their edges are those of ``mpimomentum/studies/aged_gradients.py``, which the study
shows; here they are checked against each other and against what the simulator computes.
"""

from __future__ import annotations

import pytest

from mpimomentum.algorithms.stability import largest_a
from mpimomentum.studies.aged_gradients import (
    WEIGHTS,
    best_gamma,
    closed_form,
    iterates,
    largest_at,
    loses_from,
    measured_rate,
    rate,
)


def test_the_documents_toy_exactly():
    x = iterates(1 / 4, 1 / 32, 1, 40)
    assert x[:3] == [8, 4, 1.5]
    assert x == closed_form(40)


@pytest.mark.parametrize(("alpha", "age"), [(1 / 4, 1), (1 / 4, 3), (0.1, 2), (0.4, 5), (0.05, 9)])
def test_the_best_old_gradient_and_its_rate(alpha, age):
    gamma, rho = best_gamma(alpha, age), (1 - 2 * alpha) * age / (age + 1)
    # a double root: γ right to 1e-16 leaves it right to 1e-8
    assert rate(alpha, gamma, age) == pytest.approx(rho, abs=1e-6)
    assert min(rate(alpha, f * gamma, age) for f in (0.9, 0.99, 1.01, 1.1)) > rho + 1e-4
    x = iterates(alpha, gamma, age, 400)
    # c t ρ^t: two times apart, the factor t cancels
    assert (x[400] / 400 / (x[200] / 200)) ** (1 / 200) == pytest.approx(rho, rel=2e-3)
    assert measured_rate(x, age) == pytest.approx(rho, rel=5e-3)  # with it, 2^(1/200)


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


LOSES_FROM = {"fixed": 3, "polynomial": 4, "exponential": None}  # the first age


@pytest.mark.parametrize(("weighting", "first"), LOSES_FROM.items())
def test_which_weights_lose_to_plain_gradient_descent(weighting, first):
    weight = WEIGHTS[weighting]
    for age in range(1, 13):
        gamma = weight(age) / 32
        loses = first is not None and age >= first
        assert (rate(1 / 4, gamma, age) > 1 / 2) == loses, age
        assert (gamma > loses_from(1 / 4, age)) == loses, age
    for age in range(13, 400):
        assert (weight(age) / 32 > loses_from(1 / 4, age)) == (first is not None), age


@pytest.mark.parametrize(("weighting", "first"), LOSES_FROM.items())
def test_they_lose_in_the_simulator_too(weighting, first):
    weight = WEIGHTS[weighting]
    steps = 400
    plain = 8 * 0.5**steps
    for age in (1, 2, 3, 4, 5):
        x = iterates(1 / 4, weight(age) / 32, age, steps)
        slower = largest_at(x, steps, age) > plain
        assert slower == (first is not None and age >= first), age
