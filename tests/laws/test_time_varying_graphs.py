"""Every algorithm that mixes, on every schedule: the mean does not see the graph, and all agree.

f_i = h/2 (x - b_i)² without noise, the same h everywhere, so the mean gradient is h(x̄ - b̄) and the
means over the ranks follow a recursion of their own, whatever W_t is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.topology import Topology
from mpimomentum.topology.build import SCHEDULES
from mpimomentum.topology.schedule import Periodic

EXACT = {"rtol": 0, "atol": 1e-12}
H, LR, MU = 1.5, 0.1, 0.6


def sgd(x, m, g):
    return x - LR * g, m


def heavy_ball(x, m, g):
    m = MU * m + g
    return x - LR * m, m


def nesterov(x, m, g):
    m = MU * m + g
    return x - LR * (MU * m + g), m


def quasi_global(x, m, g):
    d = MU * m + g
    return x - LR * d, MU * m + (1 - MU) * d


MEANS: dict[str, tuple[Any, Any]] = {
    "d-psgd cta": (mm.DPSGD(LR), sgd),
    "d-psgd atc": (mm.DPSGD(LR, "atc"), sgd),
    "decentralized-momentum": (mm.DecentralizedMomentum(LR, MU), heavy_ball),
    "decentralized-momentum II": (mm.DecentralizedMomentum(LR, MU, nesterov=True), nesterov),
    "gradient-tracking": (mm.GradientTracking(LR), sgd),
    "sgp": (mm.SGP(LR, MU), heavy_ball),
    "sgp cta": (mm.SGP(LR, MU, "cta", nesterov=True), nesterov),
    "quasi-global-momentum": (mm.QuasiGlobalMomentum(LR, MU), quasi_global),
}
"""Algorithm, and one step of the mean."""


def in_turn(n):
    """Pairs (0, 1), (2, 3), … then pairs (1, 2), (3, 4), …: neither graph is connected."""
    rounds = []
    for first in (0, 1):
        W = np.eye(n)
        for i in range(first, n - 1 + first, 2):
            j = (i + 1) % n
            W[[i, j], [i, j]] = W[[i, j], [j, i]] = 0.5
        rounds.append(W)
    return Topology("pairs in turn", Periodic(*rounds))


GRAPHS = {
    f"{name}-{n}": mm.topology.build(name, n, seed=n, lazy=lazy)
    for name, n, lazy in (
        ("one-peer-exponential", 8, False),
        ("one-peer-exponential", 6, False),
        ("one-peer-exponential", 5, True),
        ("random-matching", 6, False),
        ("random-matching", 7, True),
    )
} | {"in turn-6": in_turn(6)}
ON_EVERY = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def test_every_schedule_is_here():
    assert {name.rpartition("-")[0] for name in GRAPHS} >= SCHEDULES.keys()


def objectives(b):
    return lambda rank, size: mm.Quadratic(b=b[rank], h=H)


def apart(algorithm):
    """The same algorithm, whose ranks start at e_i and take no gradient steps."""

    class Apart(type(algorithm)):
        def init(self, w, x0):
            return super().init(w, torch.eye(w.size, dtype=x0.dtype)[w.rank])

    return Apart(**{**dataclasses.asdict(algorithm), "lr": 0.0})


def still(rank, size):
    return mm.Quadratic(b=torch.zeros(size, dtype=torch.float64))


@ON_EVERY
@pytest.mark.parametrize("name", MEANS)
def test_the_mean_follows_its_own_recursion(name, graph):
    algorithm, step = MEANS[name]
    b = np.random.default_rng(graph.size).normal(size=(graph.size, 3))
    x = m = np.zeros(3)
    clock = mm.Clock(jitter=0.4, latency_s=0.2, slow={0: 2})
    for t in range(1, 11):
        x, m = step(x, m, H * (x - b.mean(axis=0)))
        if t in (1, 2, 5, 10):
            run = mm.simulate(
                algorithm, objectives(b), graph.size, steps=t, topology=graph, clock=clock
            )
            np.testing.assert_allclose(run.mean, x, **EXACT)
    assert run.consensus_distance > 1e-4


ALL: dict[str, Any] = {
    "d-psgd": mm.DPSGD(LR),
    "decentralized-momentum": mm.DecentralizedMomentum(LR, MU),
    "gradient-tracking": mm.GradientTracking(LR),
    "sgp": mm.SGP(LR, MU),
    "quasi-global-momentum": mm.QuasiGlobalMomentum(LR, MU),
    "ad-psgd": mm.ADPSGD(LR, MU),
    "ad-psgd, 2 local steps": mm.ADPSGD(LR, MU, local_steps=2),
    "ad-psgd, 3 local steps": mm.ADPSGD(LR, MU, local_steps=3),
}


@ON_EVERY
@pytest.mark.parametrize("name", ALL)
def test_without_gradients_all_come_to_the_mean_of_their_starts(name, graph):
    n, clock = graph.size, mm.Clock(jitter=0.4, seed=1)
    steps = 150 * getattr(ALL[name], "local_steps", 1)
    run = mm.simulate(apart(ALL[name]), still, n, steps=steps, topology=graph, clock=clock)
    np.testing.assert_allclose(run.x, np.full((n, n), 1 / n), rtol=0, atol=1e-4)


@ON_EVERY
def test_the_sum_of_ad_psgd_moves_by_the_workers_own_steps_alone(graph):
    b = np.random.default_rng(graph.size).normal(size=(graph.size, 3))
    moved = torch.zeros(3, dtype=torch.float64)
    run = mm.simulate(
        mm.ADPSGD(LR, MU), objectives(b), graph.size, steps=40, topology=graph,
        clock=mm.Clock(jitter=0.4, latency_s=0.2, slow={0: 3}),
        observe=lambda w, s: moved.sub_(LR * s.m),
    )  # fmt: skip
    np.testing.assert_allclose(run.x.sum(0), moved, **EXACT)
    assert {r["peer"] for r in run.records if r["rank"] == 0} > {-1}


@pytest.mark.parametrize("period", [2, 3])
def test_sgp_on_directed_rounds_whose_rows_do_not_sum_to_1(period):
    """Each rank gives a share of its own choice to one other; no round is connected."""
    n, rng = 6, np.random.default_rng(period)
    rounds = []
    for t in range(period):
        W = np.diag(rng.uniform(0.3, 0.7, size=n))
        W[(np.arange(n) + 1 + t) % n, np.arange(n)] = 1 - W.diagonal()
        W[:, ::2] = np.eye(n)[:, ::2] if t % 2 else W[:, ::2]
        rounds.append(W)
    graph = Topology("shares", Periodic(*rounds))
    assert np.ptp(graph.W.sum(axis=1)) > 0.1
    for variant in ("atc", "cta"):
        algorithm = apart(mm.SGP(LR, variant=variant))
        run = mm.simulate(algorithm, still, n, steps=400, topology=graph)
        np.testing.assert_allclose(run.x, np.full((n, n), 1 / n), **EXACT)
    with pytest.raises(ValueError, match=r"step 0: the algorithm needs a doubly stochastic W"):
        mm.simulate(mm.DPSGD(LR), still, n, steps=1, topology=graph)


@pytest.mark.parametrize(
    ("name", "algorithm", "remedy"),
    [
        ("one-peer-exponential", mm.D2(LR), "use an undirected topology such as ring"),
        ("random-matching", mm.D2(LR), "a static topology such as ring with lazy=True"),
        ("one-peer-exponential", mm.ADPSGD(LR, variant="paired"), "or the lockfree variant"),
        ("random-matching", mm.ADPSGD(LR, variant="paired"), "or the lockfree variant"),
    ],
)
def test_what_needs_one_graph_for_all_steps_is_refused(name, algorithm, remedy):
    for lazy in (False, True):
        graph = mm.topology.build(name, 8, lazy=lazy)
        with pytest.raises(ValueError, match=remedy):
            mm.simulate(algorithm, still, 8, steps=1, topology=graph)


@pytest.fixture
def driver():
    """One is enough: the drivers have tests of their own."""
    return "thread"


@pytest.mark.mpi
@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("graph", SCHEDULES)
def test_synchronous_ones_make_the_simulators_bits_on_mpi_ranks(make_worker, name, graph):
    w = make_worker(graph, seed=3)
    b = np.random.default_rng(2).normal(size=(w.size, 3))
    run = mm.run(MEANS[name][0], objectives(b), steps=15, worker=w)
    virtual = mm.simulate(MEANS[name][0], objectives(b), w.size, steps=15, topology=w.topology)
    if w.rank == 0:
        assert torch.equal(run.x, virtual.x)


@pytest.mark.mpi
@pytest.mark.parametrize("graph", SCHEDULES)
def test_ad_psgd_conserves_the_sum_on_mpi_ranks(make_worker, graph):
    w = make_worker(graph)
    run = mm.run(apart(mm.ADPSGD(LR, MU)), still, steps=300, worker=w)
    np.testing.assert_allclose(run.mean, np.full(w.size, 1 / w.size), **EXACT)
    assert run.consensus_distance < 0.1
