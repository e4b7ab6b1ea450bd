"""L12: SGD and heavy ball with stale gradients on a quadratic of curvature h.

A server with n equally fast workers is stale by exactly n − 1, so the simulator runs the recursion
x_{k+1} = x_k − η h x_{k−τ} + μ (x_k − x_{k−1}) itself. Expectations are exact, not sampled.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import mpimomentum as mm
from mpimomentum.algorithms.stability import (
    largest_a,
    largest_mu,
    largest_tau,
    modes,
    spectral_radius,
)

QUOTED = {0: 2.0, 1: 1.0, 3: 0.445042, 7: 0.209057}
BEST = {0: 0.603, 1: 0.553, 2: 0.489, 3: 0.410, 4: 0.317, 7: -0.016}  # at lr h = .05


def iterates(lr, mu, tau, steps, h=1.0):
    """x_0 = 1, x_1, … of a server whose gradients are `tau` updates old."""
    seen = []

    def observe(w, s):
        seen.append(float(s.x[0]))

    algorithm = mm.AsyncServer(lr=lr, mu=mu)
    run = mm.simulate(
        algorithm,
        lambda rank, size: mm.Quadratic(b=[0.0], h=h, x0=[1.0]),
        tau + 1,
        steps=steps,
        observe=observe,
    )
    assert (run.tau[tau:] == tau).all()
    return np.array([1.0, *seen])


def growth(x, half):
    """Largest modulus in the last `half` over that in those before."""
    return np.abs(x[-half:]).max() / np.abs(x[-2 * half : -half]).max()


@pytest.mark.parametrize("tau", [*QUOTED, 2, 5, 12])
def test_the_edge_without_momentum(tau):
    edge = 2 * math.sin(math.pi / (2 * (2 * tau + 1)))
    assert edge == pytest.approx(QUOTED.get(tau, edge), abs=5e-7)
    assert largest_a(0.0, tau) == pytest.approx(edge, rel=1e-14)
    h, half = 2.5, 40 * (tau + 1)
    assert growth(iterates(0.98 * edge / h, 0.0, tau, 80 + 1, h), half) < 1
    assert growth(iterates(1.02 * edge / h, 0.0, tau, 80 + 1, h), half) > 1


@pytest.mark.parametrize(("mu", "tau"), [(0.5, 1), (0.9, 3), (0.3, 6), (0.8, 0), (0.95, 2)])
def test_the_edge_with_momentum(mu, tau):
    edge, half = largest_a(mu, tau), 60 * (tau + 1)
    assert growth(iterates(0.97 * edge, mu, tau, 120 + 1), half) < 1
    assert growth(iterates(1.03 * edge, mu, tau, 120 + 1), half) > 1


@pytest.mark.parametrize("mu", [0.0, 0.2, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("tau", [0, 1, 2, 5, 17, 60])
def test_largest_a_tau_and_mu_are_one_edge(mu, tau):
    a = largest_a(mu, tau)
    assert spectral_radius(a * (1 - 1e-4), mu, tau) < 1 < spectral_radius(a * (1 + 1e-4), mu, tau)
    if tau:
        assert largest_tau(a, mu) == pytest.approx(tau, rel=1e-9)
        assert largest_mu(a, tau) == pytest.approx(mu, abs=1e-9)


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.3, 0.49, 0.5, 0.75, 1.6])
def test_largest_mu_between_whole_delays(tau):
    """It is the largest of a fine grid at which largest_a allows a."""
    mu = np.linspace(0, 0.9999, 2000)
    allowed = np.array([largest_a(m, tau) for m in mu])
    for a in (1e-3, 0.1, 0.7, 1.2, 1.6, 1.74, 1.95):
        stable = mu[allowed > a]
        assert largest_mu(a, tau) == pytest.approx(max(stable, default=0), abs=6e-4)


def test_what_no_momentum_makes_stable():
    assert largest_mu(0.46, 3) == 0
    assert largest_tau(2.1, 0.0) == -1
    assert largest_tau(3.899, 0.95) == pytest.approx(0, abs=0.01)  # tau = 0 allows 2 (1 + mu)
    assert largest_mu(0.0, 5) == 1
    assert largest_mu(3.99, 0) == 1
    assert largest_mu(4.01, 0) == 0


def test_modes_are_roots():
    for a, mu, tau in [(0.3, 0.5, 4), (0.3, 0.5, 1), (0.7, 0.2, 0)]:
        z = modes(a, mu, tau)
        assert len(z) == max(tau + 1, 2)
        value = z ** (tau + 1) - (1 + mu) * z**tau + a
        value += mu * z ** (tau - 1) if tau else mu / z
        np.testing.assert_allclose(value, 0, atol=1e-10)


def best_mu(a, tau):
    """Least slowest mode; |z| has one minimum in mu."""
    low, high = -0.5, 0.95
    while high - low > 1e-7:
        one, two = low + (high - low) / 3, high - (high - low) / 3
        if spectral_radius(a, one, tau) < spectral_radius(a, two, tau):
            high = two
        else:
            low = one
    return low


@pytest.mark.parametrize("tau", BEST)
def test_best_momentum_falls_with_staleness(tau):
    assert best_mu(0.05, tau) == pytest.approx(BEST[tau], abs=1e-3)


@pytest.mark.parametrize(("a", "tau"), [(0.02, 2), (0.02, 6), (0.1, 1)])
def test_best_momentum_is_that_of_the_simulator(a, tau):
    """Runs at the law's optimum end nearer to 0 than at 0.08 on either side, at the law's rate."""
    best, steps = best_mu(a, tau), 400 // (tau + 1)
    ends = {}
    for mu in (best - 0.08, best, best + 0.08):
        x = np.abs(iterates(a, mu, tau, steps))
        ends[mu] = x[-60:].max()
        rate = (x[-60:].max() / x[-180:-120].max()) ** (1 / 120)
        if mu != best:  # there two modes are equally slow
            assert rate == pytest.approx(spectral_radius(a, mu, tau), abs=0.004)
    assert ends[best] == min(ends.values())


# -- random staleness ------------------------------------------------------------------------------


def in_expectation(lr, h, weights, steps):
    """E x_k of SGD whose staleness is drawn with `weights`; no gradient before the start."""
    x = [1.0]
    for k in range(steps):
        x.append(x[-1] - lr * h * sum(weights(age) * x[k - age] for age in range(k + 1)))
    return np.array(x)


def geometric(M):
    return lambda age: (1 - 1 / M) ** age / M


def heavy_ball(lr, mu, h, steps):
    """With fresh gradients: one worker, in the simulator."""
    return iterates(lr, mu, 0, steps, h)


@pytest.mark.parametrize(("M", "lr", "h"), [(4, 0.3, 1.0), (10, 0.5, 0.7), (1.5, 1.2, 1.0)])
def test_geometric_staleness_is_momentum_in_expectation(M, lr, h):
    law = in_expectation(lr, h, geometric(M), 200)
    ours = heavy_ball(lr / M, 1 - 1 / M, h, 200)
    np.testing.assert_allclose(ours, law, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("M", "lr", "h"), [(4, 0.3, 1.0), (10, 0.1, 0.7)])
def test_a_fixed_delay_is_not(M, lr, h):
    fixed = in_expectation(lr, h, lambda age: float(age == M - 1), 200)
    ours = heavy_ball(lr / M, 1 - 1 / M, h, 200)
    assert np.abs(fixed - ours).max() > 0.05


def test_the_expectation_is_that_over_all_that_can_happen():
    """Every sequence of ages, with its probability."""
    M, lr, h, steps = 3, 0.4, 1.0, 6
    share = geometric(M)
    mean = np.zeros(steps + 1)
    total = 0.0
    for ages in itertools.product(*(range(k + 2) for k in range(steps))):  # k + 1: before the start
        x, p = [1.0], 1.0
        for k, age in enumerate(ages):
            fresh = age <= k
            p *= share(age) if fresh else (1 - 1 / M) ** (k + 1)
            x.append(x[-1] - (lr * h * x[k - age] if fresh else 0.0))
        mean += p * np.array(x)
        total += p
    assert total == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(mean, in_expectation(lr, h, share, steps), rtol=0, atol=1e-13)
