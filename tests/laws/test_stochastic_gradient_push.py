"""SGP on directed graphs. f_i = h_i/2 (x - b_i)², no noise, float64.

The vectors v_i = w_i x_i have a mean that makes steps of SGD, the weights w_i sum to n. At rest the
momentum is G_i/(1 - μ), so with s = η/(1 - μ), w the weights and H = diag(h_i / w_i)

    atc:  (I - P + s P H) v = s P h b,   cta:  (I - P + s H) v = s h b;   x_i = v_i / w_i.

Summed over the ranks that is Σ h_i (x_i - b_i) = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import mpimomentum as mm

EXACT = {"rtol": 0, "atol": 1e-12}
VARIANTS = pytest.mark.parametrize("variant", ["atc", "cta"])
FORMS = pytest.mark.parametrize(
    ("mu", "nesterov"), [(0.0, False), (0.7, False), (0.7, True)], ids=["", "I", "II"]
)


def pushing(n, seed=0):
    """A random directed graph whose columns sum to 1 and whose rows do not."""
    rng = np.random.default_rng(seed)
    W = np.eye(n) + np.roll(np.eye(n), 1, axis=0) + (rng.random((n, n)) < 0.25)
    W *= rng.uniform(0.5, 2, size=(n, n))
    W /= W.sum(axis=0)
    assert np.ptp(W.sum(axis=1)) > 0.1
    return W


def task(n, dim=3):
    rng = np.random.default_rng(n)
    h, b = rng.uniform(0.5, 2, size=(n, 1)), rng.normal(size=(n, dim))
    return h, b, lambda rank, size: mm.Quadratic(b=b[rank], h=float(h[rank, 0]))


def watched(algorithm, objective, n, steps, topology):
    """Models (steps, n, d) and weights (steps, n, 1) after every step."""
    x, w = np.empty((steps, n, 3)), np.empty((steps, n, 1))

    def note(worker, state):
        x[worker.step - 1, worker.rank] = state.x
        w[worker.step - 1, worker.rank] = state.weight

    clock = mm.Clock(jitter=0.4, latency_s=0.3, slow={0: 2})
    mm.simulate(algorithm, objective, n, steps, topology=topology, clock=clock, observe=note)
    return x, w


@VARIANTS
@FORMS
@pytest.mark.parametrize(("graph", "n"), [(pushing(4), 4), (pushing(7, 1), 7), ("ring", 5)])
def test_the_mean_of_what_is_pushed_makes_steps_of_sgd(graph, n, mu, nesterov, variant):
    h, b, objective = task(n)
    algorithm = mm.SGP(lr=0.1, mu=mu, variant=variant, nesterov=nesterov)
    x, w = watched(algorithm, objective, n, 40, graph)
    np.testing.assert_allclose(w.sum(axis=1), np.full((40, 1), n), **EXACT)
    mean, u, at = np.zeros(3), np.zeros(3), np.zeros((n, 3))
    for t in range(40):
        g = (h * (at - b)).mean(axis=0)
        u = mu * u + g
        mean = mean - 0.1 * (mu * u + g if nesterov else u)
        np.testing.assert_allclose((w[t] * x[t]).mean(axis=0), mean, **EXACT)
        at = x[t]
    if not isinstance(graph, str):
        assert np.abs(x[-1].mean(axis=0) - mean).max() > 1e-3  # the models' mean is another


@dataclass(frozen=True)
class Apart(mm.SGP):
    """Its ranks start at e_i."""

    def init(self, w, x0):
        return super().init(w, torch.eye(w.size, dtype=x0.dtype)[w.rank])


def still(rank, size):
    return mm.Quadratic(b=torch.zeros(size, dtype=torch.float64))


@VARIANTS
@pytest.mark.parametrize(
    ("graph", "n"),
    [(pushing(4), 4), (pushing(9, 2), 9), ("exponential", 6), ("one-peer-exponential", 6),
     ("one-peer-exponential", 8), ("random-matching", 5)],
)  # fmt: skip
def test_without_gradients_every_rank_comes_to_the_mean_of_all_starts(graph, n, variant):
    run = mm.simulate(Apart(lr=0.0, variant=variant), still, n, steps=300, topology=graph)
    np.testing.assert_allclose(run.x, np.full((n, n), 1 / n), **EXACT)


@VARIANTS
def test_a_power_of_two_ranks_agree_after_one_period_of_one_peer_pushes(variant):
    algorithm = Apart(lr=0.0, variant=variant)
    runs = [
        mm.simulate(algorithm, still, 8, steps=steps, topology="one-peer-exponential")
        for steps in (2, 3)
    ]
    assert runs[0].consensus_distance > 0.1
    assert runs[1].consensus_distance < 1e-15


def at_rest(P, h, b, s, variant):
    n = len(P)
    values, vectors = np.linalg.eig(P)
    w = np.real(vectors[:, np.argmax(values.real)])
    w = w / w.sum() * n
    mixes = P if variant == "atc" else np.eye(n)
    v = np.linalg.solve(np.eye(n) - P + s * mixes * (h.T / w), s * mixes @ (h * b))
    return v / w[:, None]


@VARIANTS
@FORMS
@pytest.mark.parametrize(("n", "seed"), [(3, 5), (4, 0), (8, 3)])
def test_it_comes_to_rest_where_the_linear_equations_say(n, seed, mu, nesterov, variant):
    P = pushing(n, seed)
    h, b, objective = task(n)
    lr = 0.08 * (1 - mu)
    algorithm = mm.SGP(lr=lr, mu=mu, variant=variant, nesterov=nesterov)
    run = mm.simulate(algorithm, objective, n, steps=1200, topology=P)
    law = at_rest(P, h, b, 0.08, variant)
    np.testing.assert_allclose(run.x, law, **EXACT)
    np.testing.assert_allclose((h * (np.asarray(run.x) - b)).sum(axis=0), np.zeros(3), atol=1e-11)
    assert run.consensus_distance > 1e-3


def test_with_equal_minima_all_ranks_find_it_on_a_graph_d_psgd_refuses(tmp_path):
    P, n = pushing(6, 4), 6
    np.save(tmp_path / "W.npy", P)
    graph = mm.topology.build(str(tmp_path / "W.npy"), n)
    same = lambda rank, size: mm.Quadratic(b=np.arange(3.0), h=1 + rank / 4)  # noqa: E731
    run = mm.simulate(mm.SGP(lr=0.2, mu=0.5), same, n, steps=400, topology=graph)
    np.testing.assert_allclose(run.x, np.tile(np.arange(3.0), (n, 1)), **EXACT)
    with pytest.raises(ValueError, match="needs a doubly stochastic W"):
        mm.simulate(mm.DPSGD(lr=0.2), same, n, steps=1, topology=graph)
    with pytest.raises(ValueError, match=r"needs a column stochastic W.*transpose W"):
        mm.simulate(mm.SGP(lr=0.2), same, n, steps=1, topology=P.T)


@VARIANTS
@pytest.mark.parametrize(
    ("graph", "n"), [("ring", 6), ("exponential", 7), ("one-peer-exponential", 8), ("star", 5)]
)
def test_on_a_doubly_stochastic_matrix_it_is_d_psgd(graph, n, variant):
    _, _, objective = task(n)
    x, w = watched(mm.SGP(lr=0.1, variant=variant), objective, n, 30, graph)
    np.testing.assert_allclose(w, np.ones((30, n, 1)), **EXACT)
    run = mm.simulate(mm.DPSGD(lr=0.1, variant=variant), objective, n, steps=30, topology=graph)
    np.testing.assert_allclose(x[-1], run.x, **EXACT)


@pytest.fixture
def driver():
    """One is enough: the drivers have tests of their own."""
    return "thread"


@pytest.mark.mpi
@VARIANTS
@FORMS
def test_on_mpi_ranks(make_worker, variant, mu, nesterov):
    from mpi4py import MPI

    n = MPI.COMM_WORLD.size
    P = pushing(n, 6)
    h, b, objective = task(n)
    algorithm = mm.SGP(lr=0.08 * (1 - mu), mu=mu, variant=variant, nesterov=nesterov)
    w = make_worker(P)
    run = mm.run(algorithm, objective, steps=600, worker=w)
    law = at_rest(P, h, b, 0.08, variant)
    np.testing.assert_allclose(run.mean, law.mean(axis=0), **EXACT)
    if w.rank == 0:
        np.testing.assert_allclose(run.x, law, **EXACT)
        virtual = mm.simulate(algorithm, objective, n, steps=600, topology=P)
        assert torch.equal(run.x, virtual.x)
