"""Every algorithm that mixes or averages, against its pseudocode in numpy, iterate by iterate.

Means and points of rest cannot tell W y + G - G' from W (y + G - G'). Here ranks differ in their
curvatures, W_t is neither symmetric nor constant, messages take time and the step size changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mpimomentum as mm
from mpimomentum.topology import Topology
from mpimomentum.topology.schedule import Periodic

STEPS, MU, LOCAL_STEPS = 17, 0.7, 4
SCHEDULE = mm.LRSchedule("step", milestones=(4, 9), decay=0.5)
LR = [0.1 * SCHEDULE.factor(t) for t in range(STEPS)]


class Problem:
    """n ranks with f_i = ½ h_i (x - b_i)², and directed rounds: `W` doubly stochastic, `P` not."""

    def __init__(self, n: int, dim: int) -> None:
        rng = np.random.default_rng(n)
        self.n, self.zero = n, np.zeros((n, dim))
        self.h, self.b = rng.uniform(0.5, 2, size=(n, dim)), rng.normal(size=(n, dim))
        self.rounds = []
        for _ in range(3):
            shares, ways = rng.dirichlet(np.ones(4)), [rng.permutation(n) for _ in range(3)]
            parts = zip(shares, [np.arange(n), *ways], strict=True)
            self.rounds.append(sum(share * np.eye(n)[way] for share, way in parts))
        pushed = [W * rng.uniform(0.5, 2, size=(n, n)) for W in self.rounds]
        self.pushed = [P / P.sum(axis=0) for P in pushed]
        W = sum(W + W.T for W in self.rounds) / 6
        self.symmetric = (W + np.eye(n)) / 2

    def mixing(self, t: int) -> Any:
        return self.rounds[t % 3]

    def g(self, x: Any) -> Any:
        return self.h * (x - self.b)

    def x_of(self, algorithm: Any, graph: Any) -> Any:
        """The simulator's."""
        graph = Topology("rounds", Periodic(*graph)) if isinstance(graph, list) else graph
        clock = mm.Clock(jitter=0.4, latency_s=0.2, slow={0: 2})
        run = mm.simulate(
            algorithm, lambda rank, size: mm.Quadratic(b=self.b[rank], h=self.h[rank]), self.n,
            steps=STEPS, topology=graph, clock=clock, schedule=SCHEDULE,
        )  # fmt: skip
        return run.x.numpy()


def descent(u: Any, g: Any, nesterov: bool) -> Any:
    return MU * u + g if nesterov else u


def d_psgd(p: Problem, variant: str) -> Any:
    x = p.zero
    for t, lr in enumerate(LR):
        x = p.mixing(t) @ x - lr * p.g(x) if variant == "cta" else p.mixing(t) @ (x - lr * p.g(x))
    return p.x_of(mm.DPSGD(0.1, variant), p.rounds), x


def decentralized_momentum(p: Problem, nesterov: bool) -> Any:
    x = u = p.zero
    for t, lr in enumerate(LR):
        g = p.g(x)
        u = MU * u + g
        x, u = p.mixing(t) @ (x - lr * descent(u, g, nesterov)), p.mixing(t) @ u
    return p.x_of(mm.DecentralizedMomentum(0.1, MU, nesterov), p.rounds), x


def local_momentum(p: Problem, nesterov: bool) -> Any:
    x = u = p.zero
    for t, lr in enumerate(LR):
        g = p.g(x)
        u = MU * u + g
        x = x - lr * descent(u, g, nesterov)
        if (t + 1) % LOCAL_STEPS == 0:
            x, u = (np.tile(v.mean(axis=0), (p.n, 1)) for v in (x, u))
    return p.x_of(mm.LocalMomentum(0.1, MU, LOCAL_STEPS, nesterov), "ring"), x


def quasi_global_momentum(p: Problem, nesterov: bool) -> Any:
    x = m = p.zero
    for t, lr in enumerate(LR):
        g = p.g(x)
        y = p.mixing(t) @ (x - lr * descent(MU * m + g, g, nesterov))
        x, m = y, MU * m + (1 - MU) * (x - y) / lr
    return p.x_of(mm.QuasiGlobalMomentum(0.1, MU, nesterov), p.rounds), x


def sgp(p: Problem, variant: Any, nesterov: bool) -> Any:
    v = u = p.zero
    weight = np.ones((p.n, 1))
    for t, lr in enumerate(LR):
        P, g = p.pushed[t % 3], p.g(v / weight)
        u = MU * u + g
        step = lr * descent(u, g, nesterov)
        v, weight = P @ (v - step) if variant == "atc" else P @ v - step, P @ weight
    return p.x_of(mm.SGP(0.1, MU, variant, nesterov), p.pushed), v / weight


def gradient_tracking(p: Problem) -> Any:
    x = y = before = p.zero
    for t, lr in enumerate(LR):
        g = p.g(x)
        y, before = p.mixing(t) @ y + g - before, g
        x = p.mixing(t) @ (x - lr * y)
    return p.x_of(mm.GradientTracking(0.1), p.rounds), x


def d2(p: Problem) -> Any:
    x, before, old = p.symmetric @ (p.zero - LR[0] * p.g(p.zero)), p.zero, LR[0] * p.g(p.zero)
    for lr in LR[1:]:
        new = lr * p.g(x)
        x, before, old = p.symmetric @ (2 * x - before - new + old), x, new
    return p.x_of(mm.D2(0.1), p.symmetric), x


CASES: dict[str, Any] = {
    "d-psgd cta": (d_psgd, "cta"),
    "d-psgd atc": (d_psgd, "atc"),
    "decentralized-momentum I": (decentralized_momentum, False),
    "decentralized-momentum II": (decentralized_momentum, True),
    "local-momentum I": (local_momentum, False),
    "local-momentum II": (local_momentum, True),
    "quasi-global-momentum": (quasi_global_momentum, False),
    "quasi-global-momentum N": (quasi_global_momentum, True),
    "sgp atc": (sgp, "atc", False),
    "sgp cta, nesterov": (sgp, "cta", True),
    "gradient-tracking": (gradient_tracking,),
    "d2": (d2,),
}


@pytest.mark.parametrize(("n", "dim"), [(5, 3), (8, 2)])
@pytest.mark.parametrize("name", CASES)
def test_iterates_are_those_of_the_pseudocode(name: str, n: int, dim: int) -> None:
    transcript, *options = CASES[name]
    ours, law = transcript(Problem(n, dim), *options)
    np.testing.assert_allclose(ours, law, rtol=0, atol=1e-13)
    assert np.ptp(law, axis=0).max() > 1e-4  # the ranks have not agreed
