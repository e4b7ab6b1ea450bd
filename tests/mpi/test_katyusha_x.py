"""Katyusha X in a loop of one's own: the program's mini-batches, and the gradient over all data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mpimomentum as mm
from mpimomentum.base_worker import _SHARED, stream

pytestmark = pytest.mark.mpi

LR, M, SEED = 0.1, 5, 2
ALGORITHM = mm.KatyushaX(lr=LR, inner_steps=M, sigma=0.4, prox="l1:0.01")
STEPS = 40


def data(rank: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(50 + rank)
    return rng.standard_normal((6 + rank, 3)), rng.standard_normal(6 + rank)


def batch(rank: int, t: int) -> list[int]:
    return [(2 * t + rank) % (6 + rank), (2 * t + 1) % (6 + rank)]


class Loop:
    """One rank's program."""

    def __init__(self, w: Any) -> None:
        self.w = w
        self.x, self.y = (torch.from_numpy(v) for v in data(w.rank))
        self.model = nn.Linear(3, 1, bias=False).double()
        with torch.no_grad():
            self.model.weight.fill_(1.0)
        self.opt = mm.DistributedOptimizer(
            self.model, ALGORITHM, w, full_closure=lambda: self.loss(range(len(self.x)))
        )

    def loss(self, samples: Any) -> torch.Tensor:
        self.opt.zero_grad()
        rows = list(samples)
        loss = (self.model(self.x[rows])[:, 0] - self.y[rows]).square().mean() / 2
        loss.backward()
        return loss

    def go(self, start: int, stop: int) -> None:
        for t in range(start, stop):
            self.opt.step(lambda t=t: self.loss(batch(self.w.rank, t)))

    @property
    def weights(self) -> np.ndarray[Any, Any]:
        return self.model.weight.detach().numpy()[0].copy()


def gradient(rank: int, v: Any, rows: Any) -> Any:
    x, y = data(rank)
    return x[rows].T @ (x[rows] @ v - y[rows]) / len(rows)


def transcript(size: int) -> tuple[list[Any], Any]:
    """Where each step leaves the parameters, and y_k at the end."""
    rng, tau = stream(SEED, _SHARED), 0.5 * (M * LR * 0.4) ** 0.5
    x = y = before = np.ones(3)
    points: list[Any] = []
    while True:
        v = x
        full = sum(gradient(r, x, range(6 + r)) for r in range(size)) / size
        for _ in range(rng.geometric(1 / M)):
            t = len(points)
            rows = [batch(r, t) for r in range(size)]
            change = sum(gradient(r, v, b) - gradient(r, x, b) for r, b in enumerate(rows)) / size
            v = v - LR * (full + change)
            v = np.sign(v) * np.maximum(np.abs(v) - LR * 0.01, 0)
            points.append(v)
            if len(points) == STEPS:
                return points, y
        before, y = y, v
        x = points[-1] = (1.5 * y + 0.5 * x - (1 - tau) * before) / (1 + tau)


def test_a_loop_makes_the_papers_steps(make_worker: Any) -> None:
    w = make_worker(seed=SEED)
    loop = Loop(w)
    points, last = transcript(w.size)
    for t in range(STEPS):
        loop.go(t, t + 1)
        if t < STEPS - 1:  # unless the last ends an epoch
            np.testing.assert_allclose(loop.weights, points[t], rtol=0, atol=1e-12)
    epochs = w.step
    assert epochs == loop.opt.state_dict()["mpimomentum"]["state"]["k"] > 3
    loop.opt.close()
    assert [r["tau"] for r in loop.opt.records] == [0] * epochs
    if np.abs(loop.weights - last).max() > 1e-12:  # the last step ended an epoch
        np.testing.assert_allclose(loop.weights, points[-1], rtol=0, atol=1e-12)


def test_a_loop_saved_within_an_epoch_goes_on_bit_by_bit(make_worker: Any) -> None:
    w = make_worker(seed=SEED)
    loop = Loop(w)
    saved, points = [], []
    for t in range(12):
        saved.append(loop.opt.state_dict())
        points.append(loop.weights)
        loop.go(t, t + 1)
    loop.go(12, STEPS)
    loop.opt.close()
    left = [s["mpimomentum"]["state"]["left"] for s in saved]
    assert 0 in left
    for t in {left.index(0), next(t for t, n in enumerate(left) if n > 1), 11}:
        again = Loop(w)
        again.opt.load_state_dict(saved[t])
        np.testing.assert_array_equal(again.weights, points[t])
        again.go(t, STEPS)
        again.opt.close()
        np.testing.assert_array_equal(again.weights, loop.weights)


def test_a_step_needs_its_closure(make_worker: Any) -> None:
    loop = Loop(make_worker(seed=SEED))
    loop.loss([0])
    with pytest.raises(RuntimeError, match=r"optimizer\.step\(closure\)"):
        loop.opt.step()
    loop.go(0, 3)
    loop.opt.close()
