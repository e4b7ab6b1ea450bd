"""A learning-rate schedule on real ranks: every step of every rank has its own value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mpimomentum as mm

pytestmark = pytest.mark.mpi

ALGORITHMS = [
    mm.AllReduceSGD(lr=0.1, mu=0.5),
    mm.DPSGD(lr=0.1),
    mm.ADPSGD(lr=0.1, mu=0.5),
    mm.AsyncServer(lr=0.1),
]


def quadratic(rank: int, size: int) -> mm.Quadratic:
    return mm.Quadratic(b=torch.tensor([1.0, -2.0]), h=0.5)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_it_reaches_the_update_of_every_rank(make_worker: Any, algorithm: Any) -> None:
    seen: list[float] = []
    schedule = mm.LRSchedule("step", warmup_steps=2, milestones=(3, 5), decay=0.0)
    options = {"steps": 9, "schedule": schedule, "observe": lambda w, s: seen.append(w.lr)}
    worker = make_worker()
    run = mm.run(algorithm, quadratic, worker=worker, **options)
    assert seen == [0.05, 0.1, 0.1, *[0.0] * 6]
    free = mm.run(algorithm, quadratic, worker=worker, steps=9)
    short = mm.run(
        algorithm, quadratic, worker=worker, steps=3, schedule=mm.LRSchedule(warmup_steps=2)
    )
    # how far it goes in three steps depends, without synchrony, on when they happen
    tolerance = 1e-12 if algorithm.synchronous else 0.15
    torch.testing.assert_close(run.mean, short.mean, rtol=tolerance, atol=1e-12)
    assert free.mean[0] > 1.2 * run.mean[0] > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_at_factor_zero_nobody_ever_moves(make_worker: Any, algorithm: Any) -> None:
    still = mm.LRSchedule("step", milestones=(0,), decay=0.0)
    run = mm.run(algorithm, quadratic, worker=make_worker(), steps=9, schedule=still)
    assert not run.mean.any()
