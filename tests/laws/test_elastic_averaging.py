"""EASGD: springs conserve the sum of workers and center, under every interleaving.

So Σ x_i + c moves by the workers' own steps v_i alone, v_i <- μv_i - η G_i(x_i + μv_i) with G_i
taken at the model before the pull.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.runtime.pace import paced

EXACT = {"rtol": 0, "atol": 1e-12}
CLOCK = {"jitter": 0.4, "latency_s": 0.3, "slow": {0: 3.0}}


@dataclass(frozen=True)
class Seen(mm.ElasticAveraging):
    """Keeps what is lost at the end, when all take over the center; may start its ranks apart."""

    apart: bool = False
    ends: dict[int, Any] = field(default_factory=dict)

    def init(self, w, x0):
        state = super().init(w, x0)
        if self.apart:
            state.x = torch.eye(w.size, dtype=x0.dtype)[w.rank]
        return state

    async def finish(self, w, s):
        self.ends[w.rank] = s.x.clone()
        await super().finish(w, s)


def still(rank, size):
    return mm.Quadratic(b=torch.zeros(size, dtype=torch.float64))


def slowly(rank, size):
    """Each gradient takes a while, so that none is done before others begin."""
    return paced(still(rank, size), rank, compute_s=0.0005)


def minimum(rank):
    return np.array([np.cos(rank), float(rank)])


def scattered(rank, size):
    return mm.Quadratic(b=minimum(rank), h=1 + 0.2 * rank)


@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize(
    ("n", "local_steps", "beta"), [(1, 1, 0.9), (2, 1, 0.9), (5, 3, 0.6), (8, 2, 0.9)]
)
def test_springs_conserve_the_sum_and_bring_all_to_its_mean(n, local_steps, beta, mu):
    """Workers start at e_i, the center at 0."""
    for steps in (local_steps, 4 * local_steps, 600 * local_steps):
        algorithm = Seen(lr=0.0, local_steps=local_steps, beta=beta, mu=mu, apart=True)
        run = mm.simulate(algorithm, still, n, steps=steps, clock=mm.Clock(**CLOCK, seed=n))
        total = sum(algorithm.ends.values()) + run.mean
        np.testing.assert_allclose(total, np.ones(n), **EXACT)
        assert float(run.mean.abs().max()) > 0.01  # the center was pulled
    np.testing.assert_allclose(run.x, np.full((n, n), 1 / (n + 1)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mu", [0.0, 0.6])
@pytest.mark.parametrize(("n", "local_steps", "beta"), [(4, 1, 0.9), (6, 3, 0.5), (3, 10, 0.9)])
def test_the_sum_of_all_moves_by_the_workers_steps_alone(n, local_steps, beta, mu):
    lr = 0.05
    algorithm = Seen(lr=lr, local_steps=local_steps, beta=beta, mu=mu)
    x, v = np.zeros((n, 2)), np.zeros((n, 2))
    moved = np.zeros(2)

    def observe(w, s):
        nonlocal moved
        i = w.rank
        at = x[i] + mu * v[i]
        law = mu * v[i] - lr * (1 + 0.2 * i) * (at - minimum(i))
        np.testing.assert_allclose(s.v, law, **EXACT)
        pulled = np.abs(np.asarray(s.x) - x[i] - law).max() > 1e-12
        assert not pulled or w.step % local_steps == 0
        x[i], v[i] = s.x, s.v
        moved = moved + v[i]

    clock = mm.Clock(**CLOCK, seed=n)
    run = mm.simulate(algorithm, scattered, n, steps=60, clock=clock, observe=observe)
    np.testing.assert_allclose(sum(algorithm.ends.values()) + run.mean, moved, **EXACT)
    assert np.abs(moved).max() > 0.1


@pytest.mark.parametrize(("local_steps", "beta", "lr"), [(1, 0.9, 0.1), (4, 0.5, 0.05)])
def test_one_worker_and_its_center_are_an_affine_map(local_steps, beta, lr):
    run = mm.simulate(mm.ElasticAveraging(lr, local_steps, beta), scattered, 1, steps=37)
    x, c, b = np.zeros(2), np.zeros(2), minimum(0)
    for t in range(37):
        g, pull = x - b, beta * (x - c) if (t + 1) % local_steps == 0 else 0
        x, c = x - pull - lr * g, c + pull
    np.testing.assert_allclose(run.mean, c, **EXACT)


@pytest.mark.parametrize(("n", "local_steps"), [(4, 1), (6, 4)])
def test_a_pull_is_stale_by_the_pulls_of_the_others(n, local_steps):
    algorithm = mm.ElasticAveraging(lr=0.01, local_steps=local_steps)
    clock = mm.Clock(jitter=0.4, slow={0: 2}, seed=1)
    run = mm.simulate(algorithm, scattered, n, duration_s=500, clock=clock)
    pulls = [r["tau"] for r in run.records if (r["step"] + 1) % local_steps == 0]
    others = [r["tau"] for r in run.records if (r["step"] + 1) % local_steps]
    assert np.mean(pulls) == pytest.approx(n - 1, rel=0.02)
    assert not any(others)


@pytest.mark.parametrize(("n", "local_steps", "beta"), [(4, 1, 0.9), (5, 4, 0.5)])
def test_workers_stay_apart_by_the_pull_of_their_own_data(n, local_steps, beta):
    """At rest the springs' pulls add up to 0, so c is the mean of the minima b_i.

    With e = b_i - c and y = x_i - c after a round of I - 1 steps of gradients alone, which leave
    r = (1 - η)^(I-1) of the distance from b_i, and one with a pull too: y = (1 - β/n - η)
    (e + r(y - e)) + ηe.
    """
    lr, x = 0.004, [[] for _ in range(n)]
    algorithm = mm.ElasticAveraging(lr=lr, local_steps=local_steps, beta=beta)
    f = lambda rank, size: mm.Quadratic(b=minimum(rank))  # noqa: E731

    def observe(w, s):
        if w.step > 1000 and w.step % local_steps == 0:
            x[w.rank].append(np.asarray(s.x.clone()))

    clock = mm.Clock(jitter=1.0, seed=3)
    mm.simulate(algorithm, f, n, duration_s=4000, clock=clock, observe=observe)
    b = np.array([minimum(i) for i in range(n)])
    mean = np.array([np.mean(each, axis=0) for each in x])
    np.testing.assert_allclose(mean.mean(axis=0), b.mean(axis=0), rtol=0, atol=0.05)
    keep, r = 1 - beta / n - lr, (1 - lr) ** (local_steps - 1)
    law = (keep * (1 - r) + lr) / (1 - keep * r) * (b - b.mean(axis=0))
    apart = mean - mean.mean(axis=0)
    np.testing.assert_allclose(apart, law, rtol=0, atol=0.05 * np.abs(law).max())


@pytest.mark.mpi
@pytest.mark.parametrize(("local_steps", "mu"), [(1, 0.0), (3, 0.5)])
def test_on_mpi_ranks(make_worker, local_steps, mu):
    w = make_worker()
    for steps in (5 * local_steps, 200 * local_steps):
        algorithm = Seen(lr=0.0, local_steps=local_steps, mu=mu, apart=True)
        run = mm.run(algorithm, slowly, steps=steps, worker=w)
        ends = mm_sum(w, algorithm.ends[w.rank])
        np.testing.assert_allclose(ends + np.asarray(run.mean), np.ones(w.size), **EXACT)
        assert run.consensus_distance < 1e-15  # all took over the center
    np.testing.assert_allclose(run.mean, np.full(w.size, 1 / (w.size + 1)), rtol=0, atol=1e-3)
    # with gradients: the sum moves by the ranks' own steps
    moved = torch.zeros(2, dtype=torch.float64)
    algorithm = Seen(lr=0.05, local_steps=local_steps, mu=mu)
    run = mm.run(algorithm, scattered, steps=40, worker=w, observe=lambda _, s: moved.add_(s.v))
    total = mm_sum(w, algorithm.ends[w.rank]) + np.asarray(run.mean)
    np.testing.assert_allclose(total, mm_sum(w, moved), **EXACT)


def mm_sum(w, v):
    from mpi4py import MPI

    return MPI.COMM_WORLD.allreduce(v.numpy())
