"""L10: averaging pairs. λ₂(E[W]) = 1 − λ₂(L)/(2|E|) for a uniformly drawn edge.

On a complete graph that is 1 − 1/(n−1), the exact decay of E‖deviation‖² per exchange.

With identity models, x_i = e_i, the models after k exchanges are the rows of the product P_k of
the k matrices: E[P_k] = E[W]^k, and every start at once is tested.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import mpimomentum as mm


@dataclass
class State:
    x: Any  # Window, (n,): row `rank` of the product


@dataclass(frozen=True)
class Gossip:
    """A user's algorithm: wait as long as a gradient takes, then average with a neighbour."""

    lr: float = 0.0
    windows: dict[int, Any] = field(default_factory=dict)  # for the test to look at

    name: ClassVar[str] = "gossip"
    synchronous: ClassVar[bool] = False
    requires: ClassVar[str] = "none"

    def init(self, w, x0):
        self.windows[w.rank] = w.window("x", torch.eye(w.size, dtype=x0.dtype)[w.rank])
        return State(self.windows[w.rank])

    async def step(self, w, s):
        await w.gradient(s.x.read(), w.sample())
        assert await s.x.average(int(w.rng.choice(w.neighbors)))  # alone: nobody else is at it


@dataclass(frozen=True)
class Scattered(mm.ADPSGD):
    """AD-PSGD whose ranks start apart."""

    windows: dict[int, Any] = field(default_factory=dict)

    def init(self, w, x0):
        state = super().init(w, torch.eye(w.size, dtype=x0.dtype)[w.rank])
        self.windows[w.rank] = state.x
        return state


def still(rank, size):
    return mm.Quadratic(b=torch.zeros(size))


def watched(make, topology, steps, seed):
    """The models after the given numbers of steps of all workers, in one run: (len(steps), n, n).

    Exponential compute times: whoever ends a gradient next is drawn uniformly, whatever was.
    """
    algorithm, n = make(), topology.size
    done = itertools.count(1)
    found = []

    def note(w, state):
        if next(done) in steps:
            found.append(np.stack([algorithm.windows[r].read() for r in range(n)]))

    last = max(steps)
    duration_s = (last + 10 * last**0.5 + 10) / n  # ten standard deviations more than it takes
    mm.simulate(
        algorithm, still, n, duration_s=duration_s, topology=topology, seed=seed, observe=note,
        clock=mm.Clock(jitter=1.0, seed=seed),
    )  # fmt: skip
    assert len(found) == len(steps)
    return np.stack(found)


def products(graph, n, exchanges, seeds, **options):
    """P_k of many runs, k = `exchanges`; shape (seeds, n, n)."""
    topology = mm.topology.build(graph, n, **options)
    return np.stack([watched(Gossip, topology, [exchanges], s)[0] for s in range(seeds)])


def laplacian(graph, n, **options):
    W = mm.topology.build(graph, n, **options).W
    A = (W - np.diag(W.diagonal()) > 0).astype(float)
    return np.diag(A.sum(axis=1)) - A


def expected_w(L, chosen="edge"):
    """E[W] by the sum over the edges, each I − (e_i − e_j)(e_i − e_j)ᵀ/2."""
    n = len(L)
    edges = [(i, j) for i in range(n) for j in range(i) if L[i, j]]
    W = np.eye(n)
    for i, j in edges:
        p = 1 / len(edges) if chosen == "edge" else (1 / L[i, i] + 1 / L[j, j]) / n
        e = np.zeros(n)
        e[i], e[j] = 1, -1
        W -= p * np.outer(e, e) / 2
    return W


GRAPHS = [
    ("ring", 8, {}),
    ("torus", 9, {}),
    ("hypercube", 8, {}),
    ("complete", 6, {}),
    ("bipartite-exponential", 10, {}),
    ("random-regular", 10, {"seed": 2}),
]


@pytest.mark.parametrize(("graph", "n", "options"), [*GRAPHS, ("star", 7, {})])
def test_second_eigenvalue_of_the_expected_matrix(graph, n, options):
    L = laplacian(graph, n, **options)
    edges = np.trace(L) / 2
    law = 1 - np.linalg.eigvalsh(L)[1] / (2 * edges)
    assert np.linalg.eigvalsh(expected_w(L))[-2] == pytest.approx(law, abs=1e-12)
    if graph == "complete":
        assert law == pytest.approx(1 - 1 / (n - 1), abs=1e-12)


@pytest.mark.parametrize(("graph", "n", "options"), GRAPHS)
def test_expected_product_on_a_regular_graph(graph, n, options):
    """A uniform worker's uniform neighbour is a uniform edge where all degrees are equal."""
    check_expectation(graph, n, options, "edge")


def test_expected_product_on_a_star():
    """Degrees differ: an edge is drawn from either end with the chance that its worker has."""
    check_expectation("star", 6, {}, "worker")


def check_expectation(graph, n, options, chosen):
    k, seeds = n, 300
    L = laplacian(graph, n, **options)
    W = expected_w(L, chosen)
    eigenvalues, modes = np.linalg.eigh(W)
    law = eigenvalues[-2] ** k
    P = products(graph, n, k, seeds, **options)
    np.testing.assert_allclose(P.sum(axis=1), 1, atol=1e-12)  # conserved
    slowest = modes[:, np.isclose(eigenvalues, eigenvalues[-2])]  # all modes of λ₂ together
    amplitude = np.einsum("im,sij,jm->s", slowest, P, slowest) / slowest.shape[1]
    error = amplitude.std(ddof=1) / seeds**0.5
    assert amplitude.mean() == pytest.approx(law, abs=4 * error)
    assert error < 0.05 * law  # so λ₂ is known to about 0.05/k


def squares(P):
    """‖deviation‖² as a fraction of its start, averaged over all starts, shape (…)."""
    n = P.shape[-1]
    return ((P - 1 / n) ** 2).sum(axis=(-2, -1)) / (n - 1)


@pytest.mark.parametrize(("n", "k"), [(4, 6), (6, 10), (9, 25)])
def test_squared_deviation_on_a_complete_graph(n, k):
    seeds = 400
    ratio = squares(products("complete", n, k, seeds))
    error = ratio.std(ddof=1) / seeds**0.5
    law = (1 - 1 / (n - 1)) ** k
    assert ratio.mean() == pytest.approx(law, abs=4 * error)
    assert error < 0.06 * law


@pytest.mark.parametrize(("n", "k"), [(5, 8), (8, 14)])
def test_squared_deviation_under_ad_psgd(n, k):
    """The real step with lr = 0, which averages at the instant at which a gradient begins.

    All begin together at time 0, where some find their peers busy. From then on a step that ends
    is an exchange that begins: after 1 + k of them, k exchanges on top of the first instant's.
    """
    topology, seeds = mm.topology.build("complete", n), 400
    P = [watched(lambda: Scattered(lr=0.0), topology, [1, 1 + k], s) for s in range(seeds)]
    np.testing.assert_allclose(np.sum(P, axis=2), 1, atol=1e-12)
    before, after = squares(np.stack(P)).T
    ratio = after / before
    error = ratio.std(ddof=1) / seeds**0.5
    law = (1 - 1 / (n - 1)) ** k
    assert ratio.mean() == pytest.approx(law, abs=4 * error)
    assert error < 0.06 * law


def test_a_users_algorithm_reaches_consensus_on_the_mean():
    run = mm.simulate(Gossip(), still, 4, steps=60, topology="complete", clock=mm.Clock(jitter=1.0))
    assert run.busy_rate == 0
    assert run.updates.tolist() == [60] * 4
    torch.testing.assert_close(run.x, torch.full((4, 4), 0.25, dtype=torch.float64))
