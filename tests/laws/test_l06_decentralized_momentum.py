"""L6: where decentralized momentum SGD comes to rest. f_i = ½(x - b_i)², no noise, float64.

In the eigenvectors of W the amplitude at eigenvalue λ is ληc b_λ / (1 - λ + ληc), with
c = 1/(1 - λμ) for option I and c = 1 + μ/(1 - λμ) for option II.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import mpimomentum as mm
from mpimomentum.algorithms.gossip import mixed
from mpimomentum.algorithms.momentum_step import momentum_step

EXACT = {"rtol": 0, "atol": 1e-12}
OPTIONS = pytest.mark.parametrize("nesterov", [False, True], ids=["I", "II"])


def objectives(b):
    return lambda rank, size: mm.Quadratic(b=b[rank])


def floor(x):
    x = np.asarray(x)
    return float(((x - x.mean(axis=0)) ** 2).sum() / len(x))


def at_rest(W, b, eta, mu, nesterov):
    eigenvalues, modes = np.linalg.eigh(W)
    c = 1 / (1 - eigenvalues * mu)
    c = 1 + mu * c if nesterov else c
    push = eigenvalues * eta * c
    return modes @ ((push / (1 - eigenvalues + push))[:, None] * (modes.T @ b))


@pytest.mark.parametrize(("nesterov", "quoted"), [(False, 0.035065), (True, 0.0392184)])
def test_ring_of_eight_with_self_weight_one_half(nesterov, quoted):
    ring = mm.topology.build("ring", 8, self_weight=0.5)
    b = np.repeat([1.0, -1.0], 4)[:, None]
    algorithm = mm.DecentralizedMomentum(lr=0.05 * 0.5, mu=0.5, nesterov=nesterov)
    run = mm.simulate(algorithm, objectives(b), 8, steps=1200, topology=ring)
    assert floor(run.x) == pytest.approx(quoted, abs=6e-7)


@OPTIONS
@pytest.mark.parametrize("mu", [0.0, 0.7, 0.9])
@pytest.mark.parametrize(
    ("graph", "n", "lazy"),
    [("torus", 12, False), ("star", 6, False), ("complete", 5, True), ("ring", 9, False)],
)
def test_modes_of_other_graphs(graph, n, lazy, mu, nesterov):
    topology = mm.topology.build(graph, n, lazy=lazy)
    b = np.random.default_rng(n).normal(size=(n, 2))
    algorithm = mm.DecentralizedMomentum(lr=0.2 * (1 - mu), mu=mu, nesterov=nesterov)
    run = mm.simulate(algorithm, objectives(b), n, steps=600, topology=topology)
    law = at_rest(topology.W, b, 0.2 * (1 - mu), mu, nesterov)
    np.testing.assert_allclose(run.x, law, **EXACT)
    np.testing.assert_allclose(run.mean, b.mean(axis=0), **EXACT)
    assert floor(law) > 1e-6


@dataclass(frozen=True)
class WithoutMomentumGossip(mm.DecentralizedMomentum):
    async def step(self, w, s):
        g = await w.gradient(s.x, w.sample())
        momentum_step(s.x, s.u, g, w.lr, self.mu, self.nesterov)
        s.x = mixed(w.mixing(w.step).in_weights, await w.neighbor_allgather(s.x))
        w.record(tau=0)


def test_without_the_exchange_of_momenta_the_floor_is_another():
    ring = mm.topology.build("ring", 8, self_weight=0.5)
    b = np.repeat([1.0, -1.0], 4)[:, None]
    both, models = (
        floor(mm.simulate(make(lr=0.025, mu=0.5), objectives(b), 8, steps=1200, topology=ring).x)
        for make in (mm.DecentralizedMomentum, WithoutMomentumGossip)
    )
    assert models > 1.2 * both


@OPTIONS
def test_no_momentum_is_d_psgd_that_adapts_then_combines(nesterov):
    b = np.random.default_rng(1).normal(size=(5, 3))
    runs = [
        mm.simulate(a, objectives(b), 5, steps=20)
        for a in (
            mm.DecentralizedMomentum(lr=0.1, mu=0.0, nesterov=nesterov),
            mm.DPSGD(lr=0.1, variant="atc"),
        )
    ]
    np.testing.assert_allclose(runs[0].x, runs[1].x, **EXACT)


@pytest.mark.mpi
@OPTIONS
def test_on_mpi_ranks(make_worker, nesterov):
    from mpi4py import MPI

    n = MPI.COMM_WORLD.size
    topology = mm.topology.build("ring", n, self_weight=0.5)
    b = np.random.default_rng(7).normal(size=(n, 3))
    w = make_worker(topology)
    algorithm = mm.DecentralizedMomentum(lr=0.05, mu=0.5, nesterov=nesterov)
    run = mm.run(algorithm, objectives(b), steps=500, worker=w)
    law = at_rest(topology.W, b, 0.05, 0.5, nesterov)
    np.testing.assert_allclose(run.mean, b.mean(axis=0), **EXACT)
    if w.rank == 0:
        np.testing.assert_allclose(run.x, law, **EXACT)
    assert run.consensus_distance == pytest.approx(floor(law) ** 0.5, abs=1e-12)
