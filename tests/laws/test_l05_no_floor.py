"""L5: D² and gradient tracking have no floor: models agree at the minimum of the mean, however the
data are spread.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mpimomentum as mm

EXACT = {"rtol": 0, "atol": 1e-12}
ALGORITHMS = pytest.mark.parametrize("make", [mm.D2, mm.GradientTracking])


def objectives(b, h=1.0, noise=0.0):
    return lambda rank, size: mm.Quadratic(b=b[rank], h=h, noise=noise)


def floor(x):
    x = np.asarray(x)
    return float(((x - x.mean(axis=0)) ** 2).sum() / len(x))


@ALGORITHMS
@pytest.mark.parametrize("zeta", [1.0, 100.0])
def test_no_floor_where_d_psgd_has_one(make, zeta):
    ring = mm.topology.build("ring", 8, self_weight=0.5)
    b = zeta * np.repeat([1.0, -1.0], 4)[:, None]
    rest = {a: mm.simulate(a, objectives(b), 8, steps=2000, topology=ring) for a in (
        make(lr=0.1), mm.DPSGD(lr=0.1))}  # fmt: skip
    ours, d_psgd = (floor(run.x) for run in rest.values())
    assert ours < 1e-20 * zeta**2
    assert d_psgd > 0.1 * zeta**2


@pytest.mark.parametrize(("graph", "n", "options"), [
    ("torus", 12, {"lazy": True}), ("star", 6, {"lazy": True}), ("complete", 5, {}),
    ("ring", 7, {}), ("hypercube", 8, {"self_weight": 0.6}),
])  # fmt: skip
@ALGORITHMS
def test_every_rank_is_at_the_minimum_of_the_mean(make, graph, n, options):
    """Curvatures differ, too, so the minimum is not the mean of the minima."""
    rng = np.random.default_rng(n)
    b, h = rng.normal(size=(n, 3)), rng.uniform(0.5, 2, size=n)
    topology = mm.topology.build(graph, n, **options)

    def objective(rank, size):
        return mm.Quadratic(b=b[rank], h=h[rank])

    run = mm.simulate(make(lr=0.1), objective, n, steps=4500, topology=topology)
    minimum = (h[:, None] * b).sum(axis=0) / h.sum()
    np.testing.assert_allclose(run.x, np.tile(minimum, (n, 1)), rtol=0, atol=1e-11)  # 4500 steps


def mean_after(steps, b, start, lr, factors=None):
    """mean(x_{t+1}) = mean(x_t) - lr_t mean(G_t), where mean(G) = mean(x) - mean(b)."""
    x = np.full(b.shape[1], start)
    for t in range(steps):
        x = x - lr * (1 if factors is None else factors(t)) * (x - b.mean(axis=0))
    return x


@pytest.mark.parametrize("schedule", [None, mm.LRSchedule("step", milestones=(5, 9), decay=0.3)])
@ALGORITHMS
def test_the_mean_makes_steps_of_sgd(make, schedule):
    """Also where the step size changes: each gradient keeps the one it was taken with."""
    b = np.random.default_rng(3).normal(size=(5, 4))
    options = {} if schedule is None else {"schedule": schedule}
    for steps in (1, 2, 6, 14):
        run = mm.simulate(make(lr=0.2), objectives(b), 5, steps=steps, topology="ring", **options)
        law = mean_after(steps, b, 0.0, 0.2, schedule and schedule.factor)
        np.testing.assert_allclose(run.mean, law, **EXACT)
        assert floor(run.x) > 1e-8


@pytest.mark.parametrize("graph", ["exponential", "one-peer-exponential", "random-matching"])
def test_gradient_tracking_on_directed_and_time_varying_graphs(graph):
    b = np.random.default_rng(8).normal(size=(8, 2))
    algorithm = mm.GradientTracking(lr=0.1)
    run = mm.simulate(algorithm, objectives(b), 8, steps=1500, topology=graph)
    np.testing.assert_allclose(run.x, np.tile(b.mean(axis=0), (8, 1)), rtol=0, atol=1e-10)


@pytest.mark.mpi
@ALGORITHMS
def test_on_mpi_ranks(make_worker, make):
    from mpi4py import MPI

    n = MPI.COMM_WORLD.size
    b = np.random.default_rng(7).normal(size=(n, 3))
    for steps in (3, 10):
        w = make_worker(mm.topology.build("ring", n, lazy=True))
        run = mm.run(make(lr=0.1), objectives(b), steps=steps, worker=w)
        np.testing.assert_allclose(run.mean, mean_after(steps, b, 0.0, 0.1), **EXACT)
        w.close()
    w = make_worker(mm.topology.build("ring", n, lazy=True))
    run = mm.run(make(lr=0.1), objectives(b), steps=1500, worker=w)
    assert run.consensus_distance**2 < 1e-20
    assert run.mean.dtype == torch.float64


class Watched(mm.Quadratic):
    """Keeps every gradient it gave, noise and all."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.given = []

    def gradient(self, x, batch):
        g = super().gradient(x, batch)
        self.given.append(g.clone().numpy())
        return g


def watched(run, size, **options):
    """Models before the first and after every step, and gradients; each (…, steps, n, d)."""
    tasks, after = {}, {rank: [] for rank in range(size)}

    def objective(rank, n):
        b = np.random.default_rng(rank).normal(size=5)
        tasks[rank] = Watched(b=b, h=0.5 + rank / n, noise=0.4, **options)
        return tasks[rank]

    run(objective, lambda w, s: after[w.rank].append(s.x.clone().numpy()))
    mine = sorted(tasks)
    x = np.stack([np.stack([np.zeros(5), *after[r]]) for r in mine], axis=1)
    g = np.stack([np.stack(tasks[r].given) for r in mine], axis=1)
    return x, g


def residual(x, g, lr, factor):
    """mean(x_{t+1}) - mean(x_t) + lr_t mean(G_t) of every step."""
    rates = np.array([lr * factor(t) for t in range(len(g))])[:, None]
    return np.diff(x.mean(axis=1), axis=0) + rates * g.mean(axis=1)


CHANGES = mm.LRSchedule("step", milestones=(7, 20), decay=0.4)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("graph", "n"), [("ring", 5), ("star", 4), ("complete", 6)])
@ALGORITHMS
def test_every_step_of_the_mean_is_one_of_sgd(make, graph, n, dtype, rounding):
    """Curvatures differ, gradients are noisy, the step size changes."""
    topology = mm.topology.build(graph, n, lazy=True)
    x, g = watched(
        lambda f, observe: mm.simulate(
            make(lr=0.1), f, n, steps=30, topology=topology, schedule=CHANGES, observe=observe
        ),
        n, dtype=dtype,
    )  # fmt: skip
    assert np.abs(residual(x, g, 0.1, CHANGES.factor)).max() < rounding
    assert np.ptp(x[-1], axis=0).max() > 1e-3


@pytest.mark.mpi
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@ALGORITHMS
def test_every_step_of_the_mean_is_one_of_sgd_on_mpi_ranks(make_worker, make, dtype, rounding):
    from mpi4py import MPI

    w = make_worker(mm.topology.build("ring", MPI.COMM_WORLD.size, lazy=True))
    x, g = watched(
        lambda f, observe: mm.run(
            make(lr=0.1), f, steps=30, worker=w, schedule=CHANGES, observe=observe
        ),
        w.size, dtype=dtype,
    )  # fmt: skip
    x, g = (np.concatenate(MPI.COMM_WORLD.allgather(each), axis=1) for each in (x, g))
    assert x.shape == (31, w.size, 5)
    assert np.abs(residual(x, g, 0.1, CHANGES.factor)).max() < rounding
