"""A parameter server's run is the paper's recursion over its own record of sources and staleness.

x_{k+1} = x_k - lr w(tau_k) G_{s_k}(x_{k - tau_k}) + mu_k (x_k - x_{k-1}), x_{-1} = x_0, where
mu_k = mu, or mu w(tau_k) with weight 1 on the gradient. Quadratics without noise, float64.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import mpimomentum as mm

LR, MU = 0.05, 0.6
WEIGHTS = {
    "none": ({}, lambda tau: 1.0),
    "exponential": ({"decay": 0.3}, lambda tau: math.exp(-0.3 * tau)),
    "polynomial": ({"decay": 1.5}, lambda tau: (1 + tau) ** -1.5),
    "inverse": ({}, lambda tau: 1 / max(1, tau)),
}


def minimum(rank):
    return np.array([np.cos(rank), np.sin(2 * rank), 1.0])


def curvature(rank):
    return 0.5 + 0.3 * rank


def objective(rank, size):
    return mm.Quadratic(b=minimum(rank), h=curvature(rank))


def replay(run, weight, weight_momentum):
    updates = [r for r in run.records if "source" in r]
    history = [np.zeros(3)]
    before = history[0]
    for record in updates:
        x, stale, rank = history[-1], history[-1 - record["tau"]], record["source"]
        factor = weight(record["tau"])
        mu, scale = (MU * factor, 1.0) if weight_momentum else (MU, factor)
        gradient = curvature(rank) * (stale - minimum(rank))
        history.append(x - LR * scale * gradient + mu * (x - before))
        before = x
    return history[-1]


def algorithm(weighting, weight_momentum):
    options, weight = WEIGHTS[weighting]
    made = mm.AsyncServer(
        lr=LR, mu=MU, weighting=weighting, weight_momentum=weight_momentum, **options
    )
    return made, weight


FORMS = pytest.mark.parametrize(
    ("weighting", "weight_momentum"),
    [(w, False) for w in WEIGHTS] + [(w, True) for w in WEIGHTS if w != "none"],
)


@FORMS
def test_on_the_virtual_clock(weighting, weight_momentum):
    made, weight = algorithm(weighting, weight_momentum)
    clock = mm.Clock(slow={1: 3.3}, jitter=0.4, latency_s=0.1, seed=2)
    run = mm.simulate(made, objective, 5, steps=40, clock=clock)
    assert len(set(run.tau.tolist())) > 5  # all kinds of staleness
    law = replay(run, weight, weight_momentum)
    np.testing.assert_allclose(run.x, np.tile(law, (5, 1)), rtol=0, atol=1e-12)


@pytest.mark.mpi
@FORMS
def test_on_mpi_ranks(make_worker, weighting, weight_momentum):
    made, weight = algorithm(weighting, weight_momentum)
    w = make_worker()
    run = mm.run(made, objective, steps=50, worker=w)
    if w.rank == 0:
        law = replay(run, weight, weight_momentum)
        np.testing.assert_allclose(run.x, np.tile(law, (w.size, 1)), rtol=0, atol=1e-12)
