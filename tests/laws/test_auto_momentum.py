"""mu="auto": what it measures, what it chooses, and that runs are stable where mu = .9 is not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.algorithms.auto_momentum import MEMORY, SAFETY, Edge
from mpimomentum.algorithms.stability import largest_a, largest_mu, spectral_radius

DIM = 20
STRAGGLER = mm.Clock(slow={0: 5}, jitter=0.1, seed=1)


def quadratic(h, noise=0.0, apart=0.0):
    """Of curvature h, with a minimum of its own on each rank."""

    def make(rank, size):
        b = np.full(DIM, apart * np.cos(rank))
        return mm.Quadratic(b=b, h=h, x0=np.ones(DIM), noise=noise)

    return make


def server(**options):
    return mm.AsyncServer(**{"lr": 0.02, "mu": "auto", **options})


def gossip(**options):
    return mm.ADPSGD(**{"lr": 0.02, "mu": "auto", **options})


BOTH = pytest.mark.parametrize("make", [server, gossip])


def chosen(run):
    return [r for r in run.records if "mu" in r]


@BOTH
@pytest.mark.parametrize("h", [0.3, 2.0, 11.0])
@pytest.mark.parametrize("apart", [0.0, 3.0])
def test_it_finds_the_curvature_of_a_quadratic(make, h, apart):
    """To rounding, however the minima of the ranks differ."""
    run = mm.simulate(make(), quadratic(h, apart=apart), 4, steps=30, clock=STRAGGLER)
    measured = [r["lr_h"] / 0.02 for r in chosen(run) if r["lr_h"]]
    assert len(measured) > 20
    # where minima agree steps come to be as small as rounding
    np.testing.assert_allclose(measured[:20], h, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("apart", [0.0, 3.0])
def test_it_finds_the_curvature_behind_noise(make, apart):
    """At rest all is noise; |g - g'|/|x - x'| would be that of lr, not of the curvature."""
    f = quadratic(2.0, noise=1.0, apart=apart)
    run = mm.simulate(make(lr=0.05), f, 4, steps=600, clock=STRAGGLER)
    measured = [r["lr_h"] / 0.05 for r in chosen(run) if r["rank"] == 0][-200:]
    assert 1.5 < np.mean(measured) < 3.0  # the largest of means of 100


def test_the_plain_secant_would_be_wrong_there():
    """The ratio of norms, for comparison: many times the curvature."""
    seen = []

    class Watched(mm.Quadratic):
        def gradient(self, x, batch):
            g = super().gradient(x, batch)
            seen.append((x.clone(), g.clone()))
            return g

    mm.simulate(
        mm.AsyncServer(lr=0.05),
        lambda r, n: Watched(b=np.zeros(DIM), h=2.0, noise=1.0),
        1,
        steps=500,
    )
    norms = [
        (g - other).norm() / (x - before).norm()
        for (before, other), (x, g) in itertools.pairwise(seen[250:])
    ]
    assert np.median(norms) > 20


@pytest.mark.parametrize("tau", [1, 3, 7.5, 20])
@pytest.mark.parametrize("a", [0.001, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("ceiling", [0.5, 0.9, 0.99])
def test_the_choice_is_the_edge_with_its_margin_or_the_ceiling(tau, a, ceiling):
    edge = Edge()
    for _ in range(5):
        edge.see(tau, a * 3.0, 3.0)
    mu = edge.mu(ceiling)
    assert mu == min(ceiling, largest_mu(SAFETY * edge.a, tau))
    assert edge.a == pytest.approx(a, rel=1e-12)
    if 0 < mu < ceiling:
        assert largest_a(mu, tau) == pytest.approx(SAFETY * a, rel=1e-9)
    if tau in (1, 3, 20) and mu:
        assert spectral_radius(a, mu, tau) < 1


def test_a_shorter_step_is_stable_where_no_momentum_is():
    edge = Edge()
    edge.see(7, 1.0, 1.0)
    assert edge.mu(0.9) == 0
    assert edge.scale() == pytest.approx(0.209057 / SAFETY, rel=1e-5)
    assert edge.mu(0.9, edge.scale()) == pytest.approx(0, abs=1e-6)
    edge = Edge()
    edge.see(7, 0.01, 1.0)
    assert edge.scale() == 1


def test_until_something_is_known_there_is_no_momentum():
    edge = Edge()
    edge.see(3, 0.0, 0.0)
    assert edge.mu(0.9) == 0
    assert edge.scale() == 1
    edge.see(3, -1.0, 1.0)  # a saddle
    assert edge.mu(0.9) == 0
    edge.see(3, 2.0, 0.5)
    assert edge.mu(0.9) == min(0.9, largest_mu(SAFETY * (1 / 1.5), 3))


def test_it_is_the_largest_of_late_that_counts():
    edge = Edge()
    for _ in range(3 * MEMORY):
        edge.see(2, 0.5, 1.0)
    for _ in range(MEMORY):
        edge.see(2, 0.01, 1.0)
    assert 0.4 < edge.a < 0.5
    for _ in range(30 * MEMORY):
        edge.see(2, 0.01, 1.0)
    assert edge.a == pytest.approx(0.025, abs=0.015)


@BOTH
@pytest.mark.parametrize("ceiling", [0.9, 0.35])
def test_without_staleness_it_is_the_ceiling_and_plain_momentum(make, ceiling):
    f = quadratic(np.linspace(0.5, 20, DIM), noise=0.3)
    auto = mm.simulate(make(mu_max=ceiling), f, 1, steps=60)
    fixed = mm.simulate(type(make())(lr=0.02, mu=ceiling), f, 1, steps=60)
    assert {r["mu"] for r in chosen(auto)} == {ceiling}
    assert torch.equal(auto.x, fixed.x)


@BOTH
@pytest.mark.parametrize("ceiling", [0.9, 0.5, 0.0])
def test_never_above_the_ceiling(make, ceiling):
    f = quadratic(np.geomspace(0.01, 5, DIM), noise=0.1)
    run = mm.simulate(make(mu_max=ceiling), f, 5, steps=80, clock=STRAGGLER)
    mu = [r["mu"] for r in chosen(run)]
    assert max(mu) == ceiling
    assert min(mu) >= 0
    assert len(mu) == len(run.tau)


@pytest.mark.parametrize(("n", "h", "lr"), [(8, 4.0, 0.02), (16, 8.0, 0.006), (12, 1.0, 0.05)])
@pytest.mark.parametrize("clock", [mm.Clock(), STRAGGLER], ids=["even", "straggler"])
def test_stable_far_beyond_the_edge_of_fixed_momentum(n, h, lr, clock):
    assert lr * h > 3 * largest_a(0.9, n - 1)
    assert lr * h < largest_a(0.0, n - 1) / SAFETY
    curvatures = np.geomspace(h / 30, h, DIM)
    start = np.ones(DIM)
    runs = {
        mu: mm.simulate(
            mm.AsyncServer(lr=lr, mu=mu),
            quadratic(curvatures),
            n,
            duration_s=250,
            clock=clock,
        )
        for mu in ("auto", 0.9)
    }
    assert np.linalg.norm(runs["auto"].mean) < 0.05 * np.linalg.norm(start)
    assert not np.linalg.norm(runs[0.9].mean) < 1e3 * np.linalg.norm(start)


def test_auto_lr_is_stable_where_no_momentum_is():
    """Steps beyond the edge of mu = 0, of a server and of AD-PSGD's slowest worker."""
    lr, h, n = 0.5, 2.0, 8
    assert lr * h > 3 * largest_a(0.0, n - 1)
    f = quadratic(np.geomspace(h / 10, h, DIM))
    run = mm.simulate(server(lr=lr, auto_lr=True), f, n, duration_s=600)
    assert np.linalg.norm(run.mean) < 0.05 * DIM**0.5
    run = mm.simulate(server(lr=lr), f, n, duration_s=600)
    assert not np.linalg.norm(run.mean) < 1e3 * DIM**0.5


# -- a run is the recursion over its records -------------------------------------------------------


def replay(run, lr, h, apart):
    x = before = np.ones(DIM)
    history = [x]
    for r in (r for r in run.records if "source" in r):
        stale = history[-1 - r["tau"]]
        gradient = h * (stale - apart * np.cos(r["source"]))
        before, x = x, x - lr * gradient + r["mu"] * (x - before)
        history.append(x)
    return x


def test_a_servers_run_is_the_recursion_with_the_recorded_momentum():
    run = mm.simulate(server(), quadratic(3.0, apart=1.0), 5, steps=40, clock=STRAGGLER)
    assert len({r["mu"] for r in chosen(run)}) > 50
    law = np.tile(replay(run, 0.02, 3.0, 1.0), (5, 1))
    np.testing.assert_allclose(run.x, law, rtol=0, atol=1e-12)


def test_the_recorded_momentum_is_the_rules_over_the_records():
    """From the staleness and the stiffness on record."""
    run = mm.simulate(server(), quadratic(3.0, apart=1.0), 5, steps=60, clock=STRAGGLER)
    mean = 0.0
    for k, r in enumerate(chosen(run), start=1):
        mean += max(1 / k, 1 / MEMORY) * (r["tau"] - mean)
        if mean == 0:
            assert r["mu"] == 0.9
        elif r["lr_h"]:
            assert r["mu"] == min(0.9, largest_mu(SAFETY * r["lr_h"], mean))
        else:
            assert r["mu"] == 0


def test_shards_have_their_own_staleness_and_the_same_stiffness():
    run = mm.simulate(server(servers=2), quadratic(3.0), 4, steps=40, clock=STRAGGLER)
    measured = [r["lr_h"] / 0.02 for r in chosen(run) if r["lr_h"]]
    np.testing.assert_allclose(measured[:40], 3.0, rtol=1e-6)
    assert {r["rank"] for r in chosen(run)} == {0, 1}


@BOTH
def test_the_same_seed_chooses_the_same(make):
    f = quadratic(np.geomspace(0.1, 5, DIM), noise=0.5)
    one, two = (mm.simulate(make(), f, 6, steps=40, clock=STRAGGLER, seed=3) for _ in range(2))
    assert one.records == two.records
    assert torch.equal(one.x, two.x)


@BOTH
def test_it_reaches_the_tallies(make):
    run = mm.simulate(make(), quadratic(2.0), 3, steps=30, clock=STRAGGLER)
    for rank, tally in enumerate(run.tallies):
        mu = [r["mu"] for r in chosen(run) if r["rank"] == rank]
        assert tally.momentum.count == len(mu)
        if mu:
            assert tally.momentum.total == pytest.approx(sum(mu))
            assert (tally.momentum.low, tally.momentum.high) == (min(mu), max(mu))
            assert tally.momentum.last == mu[-1]


# -- AD-PSGD's delay -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 8, 16])
@pytest.mark.parametrize("mu", [0.5, 0.8, 0.9])
def test_local_momentum_mixed_at_once_has_half_a_round_of_delay(n, mu):
    """(z − 1)(1 − μ z^−n) + a/n z^−(n−1) = 0 is on its edge about where L12's with a delay of
    ((n − 1) − (n − 1)/2)/n is."""

    def radius(a):
        c = np.zeros(2 * n + 1)
        c[0], c[1], c[n], c[n + 1] = 1, -1, -mu + a / n, mu
        return np.abs(np.roots(c)).max()

    edge = largest_a(mu, (n - 1) / 2 / n)
    assert radius(0.9 * edge) < 1 < radius(1.12 * edge)


@pytest.mark.mpi
def test_on_mpi_ranks(make_worker):
    w = make_worker()
    run = mm.run(server(), quadratic(3.0, apart=1.0), steps=60, worker=w)
    if w.rank == 0:
        law = np.tile(replay(run, 0.02, 3.0, 1.0), (w.size, 1))
        np.testing.assert_allclose(run.x, law, rtol=0, atol=1e-12)
        measured = [r["lr_h"] / 0.02 for r in chosen(run) if r["lr_h"]]
        np.testing.assert_allclose(measured[:20], 3.0, rtol=1e-6)


@pytest.mark.mpi
def test_gossip_on_mpi_ranks(make_worker):
    w = make_worker()
    run = mm.run(gossip(), quadratic(3.0, apart=1.0), steps=60, worker=w)
    mine = [r for r in chosen(run) if r["rank"] == w.rank]
    assert len(mine) == 60
    assert max(r["mu"] for r in mine) <= 0.9
    measured = [r["lr_h"] / 0.02 for r in mine if r["lr_h"]]
    np.testing.assert_allclose(measured[:20], 3.0, rtol=1e-4)
