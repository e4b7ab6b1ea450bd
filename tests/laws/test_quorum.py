"""A server with a quorum of c makes an update of the mean of the first c workers' gradients.

The recursion is run again from its records: who sent what, how stale. Quadratics, float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.runtime.agreement import told

DIM = 5


def minimum(rank):
    return np.cos(rank * np.arange(1, DIM + 1))


def curvature(rank):
    return 0.5 + 0.3 * rank + 0.1 * np.arange(DIM)


def objective(rank, size):
    return mm.Quadratic(b=minimum(rank), h=curvature(rank))


def gradient(rank, x):
    return curvature(rank) * (x - minimum(rank))


class Replay:
    """The law, in lists: which gradients make up which update, and the x of each."""

    def __init__(self, records, c, lr, mu, weight=lambda tau: 1.0, weight_momentum=False):
        self.x = [np.zeros(DIM)]
        self.counted = {}  # update -> worker -> its gradients that count toward it
        self.pushed = 0
        v = np.zeros(DIM)
        for record in records:
            k, source = len(self.x) - 1, record["source"]
            toward = k + (source in self.counted.get(k, {}))
            stale = self.x[toward - record["tau"]]
            scale = weight(record["tau"])
            g = lr * gradient(source, stale) * (1 if weight_momentum else scale)
            self.counted.setdefault(toward, {}).setdefault(source, []).append((g, scale))
            self.pushed += 1
            if len(self.counted[k]) == c:
                means = [np.mean([g for g, _ in part], axis=0) for part in self.counted[k].values()]
                weights = [np.mean([s for _, s in part]) for part in self.counted[k].values()]
                v = mu * (np.mean(weights) if weight_momentum else 1) * v - np.mean(means, axis=0)
                self.x.append(self.x[-1] + v)

    @property
    def most_of_one_worker(self):
        return max(len(part) for update in self.counted.values() for part in update.values())


def replayed(run, servers, c, *more):
    """The model whose shard j is what the records of server j come to."""
    parts = []
    for j in range(servers):
        law = Replay([r for r in run.records if "source" in r and r["rank"] == j], c, *more)
        parts.append(law.x[-1][j * DIM // servers : (j + 1) * DIM // servers])
    return np.concatenate(parts)


WEIGHTED = {"weighting": "polynomial", "decay": 0.7}
CASES = pytest.mark.parametrize(
    ("options", "law"),
    [
        ({}, ()),
        ({"servers": 2}, ()),
        (WEIGHTED, (lambda tau: (1 + tau) ** -0.7,)),
        (WEIGHTED | {"weight_momentum": True}, (lambda tau: (1 + tau) ** -0.7, True)),
    ],
    ids=["plain", "2 shards", "weighted", "weighted momentum"],
)


@CASES
@pytest.mark.parametrize("c", [2, 4, 6])
def test_on_the_virtual_clock(c, options, law):
    made = mm.AsyncServer(lr=0.05, mu=0.6, quorum=c, **options)
    clock = mm.Clock(slow={1: 3.3, 4: 9}, jitter=0.4, latency_s=0.1, seed=2)
    run = mm.simulate(made, objective, 6, duration_s=60, clock=clock)
    assert len(set(run.tau.tolist())) > 2
    expected = replayed(run, made.servers, c, 0.05, 0.6, *law)
    np.testing.assert_allclose(run.x, np.tile(expected, (6, 1)), rtol=0, atol=1e-12)


@pytest.mark.mpi
@CASES
@pytest.mark.parametrize("c", [2, 4])
def test_on_mpi_ranks(make_worker, c, options, law):
    made = mm.AsyncServer(lr=0.05, mu=0.6, quorum=c, **options)
    w = make_worker()
    run = mm.run(made, objective, steps=50, worker=w)
    if w.rank == 0:
        assert len(run.tau) == 50 * w.size * made.servers
        expected = replayed(run, made.servers, c, 0.05, 0.6, *law)
        np.testing.assert_allclose(run.x, np.tile(expected, (w.size, 1)), rtol=0, atol=1e-12)


@pytest.mark.mpi
@pytest.mark.parametrize("servers", [1, 3])
def test_saved_and_gone_on_from_it_is_one_recursion(make_worker, tmp_path, servers):
    """What waits for its update is in the checkpoints: it is neither lost nor counted twice."""
    made = mm.AsyncServer(lr=0.05, mu=0.6, quorum=3, servers=servers)
    w = make_worker()
    out = Path(told(w, str(tmp_path))[0])
    parts = []
    for steps in (13, 28, 40):
        checkpoints = mm.Checkpoints(out, every=6, resume="auto")
        parts.append(mm.run(made, objective, steps=steps, worker=w, checkpoints=checkpoints))
    if w.rank == 0:
        run = parts[-1]
        run.records = [r for part in parts for r in part.records]
        assert len(run.tau) == 40 * w.size * servers
        expected = replayed(run, servers, 3, 0.05, 0.6)
        np.testing.assert_allclose(run.x, np.tile(expected, (w.size, 1)), rtol=0, atol=1e-12)


class Keeping(mm.AsyncServer):
    """Keeps each server's State."""

    kept: ClassVar[dict] = {}

    async def finish(self, w, s):
        await super().finish(w, s)
        self.kept[w.rank] = s


@pytest.mark.parametrize("c", [2, 3, 5])
def test_every_gradient_is_applied_or_waits(c):
    """Σ pushed = c (x_0 - x_k) + what waits, if no worker counts twice toward one update."""
    sent = []

    class Telling(mm.Quadratic):
        def gradient(self, x, batch):
            g = super().gradient(x, batch)
            sent.append(g.clone())
            return g

    made = Keeping(lr=0.1, quorum=c)
    clock = mm.Clock(jitter=0.05, latency_s=0.01, seed=c)
    run = mm.simulate(
        made, lambda r, n: Telling(b=minimum(r), h=curvature(r)), 5, steps=33, clock=clock
    )
    law = Replay([r for r in run.records if "source" in r], c, 0.1, 0.0)
    assert law.most_of_one_worker == 1
    waiting = made.kept[0].waiting
    assert len(sent) == law.pushed == 5 * 33
    pushed = 0.1 * torch.stack(sent).sum(dim=0)
    pending = waiting.sum + waiting.sums.sum(dim=0)
    torch.testing.assert_close(-c * run.mean + pending, pushed, rtol=0, atol=1e-12)
    in_round = len(waiting.members) + sum(waiting.counts)
    assert c * (len(law.x) - 1) + in_round == 5 * 33


def test_equal_speeds_and_all_workers_are_allreduce_sgd_one_update_late():
    """Who completes the quorum is given the new model; the n - 1 others have the one before it.

    x_{k+1} = x_k + mu (x_k - x_{k-1}) - lr/n [G_{n-1}(x_k) + sum over i < n - 1 of G_i(x_{k-1})].
    """
    n, lr, mu = 5, 0.07, 0.8
    run = mm.simulate(mm.AsyncServer(lr=lr, mu=mu, quorum=n), objective, n, steps=40)
    x, before = np.zeros(DIM), np.zeros(DIM)
    for _ in range(40):
        g = gradient(n - 1, x) + sum(gradient(i, before) for i in range(n - 1))
        x, before = x + mu * (x - before) - lr / n * g, x
    np.testing.assert_allclose(run.x, np.tile(x, (n, 1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "lr", "mu"), [(2, 0.1, 0.0), (4, 0.03, 0.9), (7, 0.5, 0.5)])
def test_where_gradients_do_not_depend_on_the_model_it_is_allreduce_sgd(n, lr, mu):
    class Slope(mm.Quadratic):
        def gradient(self, x, batch):
            return self.b.clone()

    def slopes(rank, size):
        return Slope(b=minimum(rank))

    server = mm.simulate(mm.AsyncServer(lr=lr, mu=mu, quorum=n), slopes, n, steps=30)
    central = mm.simulate(mm.AllReduceSGD(lr=lr, mu=mu), slopes, n, steps=30)
    torch.testing.assert_close(server.mean, central.mean, rtol=1e-12, atol=1e-12)


def test_a_straggler_neither_biases_nor_blows_up_nor_fills_the_memory():
    """A hundred gradients of each fast worker count toward an update, as one mean."""
    n = 4
    made = Keeping(lr=0.5, quorum=n)

    def shifted(rank, size):
        return mm.Quadratic(b=np.full(DIM, 4.0 if rank == 0 else 0.0))

    run = mm.simulate(made, shifted, n, duration_s=8000, clock=mm.Clock(slow={0: 100}))
    law = Replay([r for r in run.records if "source" in r], n, 0.5, 0.0)
    assert law.most_of_one_worker >= 99
    torch.testing.assert_close(run.mean, torch.ones(DIM, dtype=torch.float64), rtol=0, atol=1e-6)
    assert made.kept[0].waiting.sums.shape == (n - 1, DIM)
