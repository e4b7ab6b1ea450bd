"""Quasi-global momentum: its mean, and where it comes to rest. Quadratics, no noise, float64.

With one direction for all ranks, (x - y)/η is that direction, d = μm + g (I) or μ(μm + g) + g (II),
so the means over the ranks follow, on any doubly stochastic graph,

    x' = x - η_t d;   m' = μm + (1 - μ) d,   in I: m' = (1 - (1 - μ)²) m + (1 - μ) g.

At rest x = y, hence m = 0, and x = W(x - c η g) with c = 1 (I) or 1 + μ (II): D-PSGD's atc with the
step cη, so the modes of the error are cηλ b_λ / (1 - λ + cηλ).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.algorithms.momentum_step import direction

EXACT = {"rtol": 0, "atol": 1e-12}
OPTIONS = pytest.mark.parametrize("nesterov", [False, True], ids=["I", "II"])


def objectives(b, h=1.0):
    return lambda rank, size: mm.Quadratic(b=b[rank], h=h)


def floor(x):
    x = np.asarray(x)
    return float(((x - x.mean(axis=0)) ** 2).sum() / len(x))


def mean_after(steps, b, h, lr, mu, nesterov, factor=lambda t: 1.0):
    x, m = np.zeros(b.shape[1]), np.zeros(b.shape[1])
    for t in range(steps):
        g = h * (x - b.mean(axis=0))
        if nesterov:
            x = x - lr * factor(t) * (mu**2 * m + (1 + mu) * g)
            m = mu * m + (1 - mu) * (mu**2 * m + (1 + mu) * g)
        else:
            x = x - lr * factor(t) * (mu * m + g)
            m = (1 - (1 - mu) ** 2) * m + (1 - mu) * g
    return x


@OPTIONS
@pytest.mark.parametrize("mu", [0.0, 0.6, 0.9])
@pytest.mark.parametrize(
    ("graph", "n"),
    [("ring", 6), ("star", 5), ("complete", 4), ("exponential", 6), ("one-peer-exponential", 7),
     ("random-matching", 8)],
)  # fmt: skip
def test_the_mean_follows_its_recursion_on_any_graph(graph, n, mu, nesterov):
    b = np.random.default_rng(n).normal(size=(n, 3))
    algorithm = mm.QuasiGlobalMomentum(lr=0.1, mu=mu, nesterov=nesterov)
    schedule = mm.LRSchedule("step", milestones=(6, 9), decay=0.3)
    for steps in (1, 3, 12):
        run = mm.simulate(
            algorithm, objectives(b, 1.5), n, steps=steps, topology=graph, schedule=schedule
        )
        law = mean_after(steps, b, 1.5, 0.1, mu, nesterov, schedule.factor)
        np.testing.assert_allclose(run.mean, law, **EXACT)
        if graph == "complete":  # one mixing makes all equal
            np.testing.assert_allclose(run.x, np.tile(law, (n, 1)), **EXACT)
        else:
            assert floor(run.x) > 1e-8


def at_rest(W, b, eta):
    eigenvalues, modes = np.linalg.eigh(W)
    push = eta * eigenvalues
    return modes @ ((push / (1 - eigenvalues + push))[:, None] * (modes.T @ b))


@OPTIONS
@pytest.mark.parametrize("mu", [0.3, 0.7, 0.9])
def test_momentum_does_not_raise_the_floor(mu, nesterov):
    """L5's floor of atc, .115775, for any momentum; mixing momenta as well leaves a higher one."""
    ring = mm.topology.build("ring", 8, self_weight=0.5)
    b = np.repeat([1.0, -1.0], 4)[:, None]
    lr = 0.1 / (1 + mu) if nesterov else 0.1
    ours, mixed = (
        floor(mm.simulate(a, objectives(b), 8, steps=1600, topology=ring).x)
        for a in (
            mm.QuasiGlobalMomentum(lr=lr, mu=mu, nesterov=nesterov),
            mm.DecentralizedMomentum(lr=lr, mu=mu, nesterov=nesterov),
        )
    )
    assert ours == pytest.approx(0.115775, abs=6e-7)
    assert mixed > 1.09 * ours


@OPTIONS
@pytest.mark.parametrize("mu", [0.0, 0.5, 0.8])
@pytest.mark.parametrize(
    ("graph", "n", "lazy"),
    [("star", 6, True), ("complete", 5, True), ("ring", 7, True)],
)
def test_modes_of_other_graphs(graph, n, lazy, mu, nesterov):
    topology = mm.topology.build(graph, n, lazy=lazy)
    b = np.random.default_rng(n).normal(size=(n, 2))
    algorithm = mm.QuasiGlobalMomentum(lr=0.05, mu=mu, nesterov=nesterov)
    run = mm.simulate(algorithm, objectives(b), n, steps=900, topology=topology)
    law = at_rest(topology.W, b, 0.05 * (1 + mu if nesterov else 1))
    np.testing.assert_allclose(run.x, law, rtol=0, atol=1e-11)
    np.testing.assert_allclose(run.mean, b.mean(axis=0), rtol=0, atol=1e-11)
    assert floor(law) > 1e-5


@pytest.mark.parametrize("mu", [0.5, 0.9])
def test_a_step_of_size_0_mixes_and_leaves_no_nan(mu):
    b = np.random.default_rng(2).normal(size=(4, 2))
    schedule = mm.LRSchedule("step", milestones=(3,), decay=0.0)
    algorithm = mm.QuasiGlobalMomentum(lr=0.1, mu=mu)
    runs = [
        mm.simulate(algorithm, objectives(b), 4, steps=steps, schedule=schedule)
        for steps in (3, 200)
    ]
    assert floor(runs[0].x) > 1e-4
    np.testing.assert_allclose(runs[1].x, np.tile(runs[0].mean, (4, 1)), **EXACT)


def test_a_direction_is_0_where_the_step_size_is():
    before, after = torch.tensor([3.0, 3.0]), torch.tensor([1.0, 2.0])
    got = direction(before, after, torch.tensor([0.5, 0.0]))
    assert got.tolist() == [4.0, 0.0]
    assert direction(before, after, torch.tensor(0.5)).tolist() == [4.0, 2.0]
    assert direction(before, after, 0.0).tolist() == [0.0, 0.0]


@pytest.mark.mpi
@OPTIONS
def test_on_mpi_ranks(make_worker, nesterov):
    from mpi4py import MPI

    n = MPI.COMM_WORLD.size
    topology = mm.topology.build("ring", n, self_weight=0.5)
    b = np.random.default_rng(7).normal(size=(n, 3))
    algorithm = mm.QuasiGlobalMomentum(lr=0.1, mu=0.7, nesterov=nesterov)
    for steps in (4, 700):
        w = make_worker(topology)
        run = mm.run(algorithm, objectives(b), steps=steps, worker=w)
        np.testing.assert_allclose(run.mean, mean_after(steps, b, 1.0, 0.1, 0.7, nesterov), **EXACT)
        if w.rank == 0:
            virtual = mm.simulate(algorithm, objectives(b), n, steps=steps, topology=topology)
            assert torch.equal(run.x, virtual.x)
    law = at_rest(topology.W, b, 0.1 * (1.7 if nesterov else 1))
    assert run.consensus_distance == pytest.approx(floor(law) ** 0.5, abs=1e-12)
