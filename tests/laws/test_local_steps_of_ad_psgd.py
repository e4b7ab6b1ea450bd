"""AD-PSGD with I local steps: an average is begun during the gradient of every I-th step only.

An average still conserves the sum, tau still counts all updates, and between two averages a rank
does nothing but heavy ball by itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm

VARIANTS = pytest.mark.parametrize("variant", ["lockfree", "paired"])


@dataclass(frozen=True)
class Apart(mm.ADPSGD):
    """Its ranks start at e_i."""

    windows: dict[int, Any] = field(default_factory=dict)

    def init(self, w, x0):
        state = super().init(w, torch.eye(w.size, dtype=x0.dtype)[w.rank])
        self.windows[w.rank] = state.x
        return state


def still(rank, size):
    return mm.Quadratic(b=torch.zeros(size, dtype=torch.float64))


def scattered(rank, size):
    return mm.Quadratic(b=np.array([np.cos(rank), float(rank)]), h=1 + 0.2 * rank)


def begun(records, rank):
    """At which steps of `rank` an average came about."""
    return [r["step"] for r in records if r["rank"] == rank and r.get("peer", -1) >= 0]


@VARIANTS
@pytest.mark.parametrize(("n", "every", "steps"), [(2, 2, 41), (6, 3, 60), (8, 5, 37), (4, 7, 30)])
def test_one_average_in_so_many_steps(n, every, steps, variant):
    """Nobody is busy where messages take no time and no two gradients end together."""
    algorithm = Apart(lr=0.0, variant=variant, local_steps=every)
    run = mm.simulate(algorithm, still, n, steps=steps, clock=mm.Clock(jitter=0.5, seed=n))
    due = [t for t in range(steps) if (t + 1) % every == 0]
    assert len(due) == steps // every
    active = mm.topology.build("ring", n).bipartition() if variant == "paired" else range(n)
    for rank in range(n):
        assert begun(run.records, rank) == (due if rank in active else [])
    if variant == "lockfree":
        mixes = sum(w.mixes for w in algorithm.windows.values())
        assert mixes == 2 * n * (steps // every)


@VARIANTS
@pytest.mark.parametrize(("n", "every"), [(10, 2), (6, 4), (8, 3)])
def test_averages_conserve_the_sum_and_bring_the_ranks_together(n, every, variant):
    algorithm = Apart(lr=0.0, variant=variant, local_steps=every)
    clock = mm.Clock(jitter=0.3, latency_s=0.2, slow={1: 3}, seed=n)
    run = mm.simulate(algorithm, still, n, steps=400 * every, topology="ring", clock=clock)
    np.testing.assert_allclose(run.x, np.full((n, n), 1 / n), rtol=0, atol=1e-9)
    short = mm.simulate(algorithm, still, n, steps=every, topology="ring", clock=clock)
    assert 1e-3 < np.abs(np.asarray(short.x) - 1 / n).max() < 1
    np.testing.assert_allclose(short.x.sum(0), np.ones(n), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("every", "steps"), [(10, 9), (4, 3)])
def test_between_averages_it_is_heavy_ball_by_itself(every, steps):
    run = mm.simulate(mm.ADPSGD(0.1, mu=0.8, local_steps=every), scattered, 3, steps=steps)
    for rank in range(3):
        alone = mm.simulate(
            mm.AllReduceSGD(0.1, mu=0.8), lambda _, size, r=rank: scattered(r, 3), 1, steps=steps
        )
        assert torch.equal(run.x[rank], alone.x[0])


@VARIANTS
@pytest.mark.parametrize(("n", "every"), [(4, 4), (6, 2)])
def test_the_staleness_of_an_update_still_counts_all_updates(n, every, variant):
    algorithm = mm.ADPSGD(lr=0.01, variant=variant, local_steps=every)
    clock = mm.Clock(jitter=0.4, slow={0: 2}, seed=1)
    run = mm.simulate(algorithm, scattered, n, duration_s=400, clock=clock)
    assert run.tau.mean() == pytest.approx(n - 1, rel=0.02)


@pytest.mark.parametrize(("slow", "every"), [({0: 4}, 3), ({0: 2, 1: 2}, 5)])
def test_reweighting_still_undoes_the_bias_towards_fast_ranks(slow, every):
    b = [4.0, 0.0, 0.0, 0.0]

    def mean(reweight):
        seen = []
        mm.simulate(
            mm.ADPSGD(lr=0.004, reweight=reweight, local_steps=every),
            lambda rank, size: mm.Quadratic(b=torch.tensor([b[rank]], dtype=torch.float64)),
            4, topology="complete", duration_s=6000, clock=mm.Clock(slow=slow, jitter=0.1),
            observe=lambda w, s: seen.append(float(s.x.read())) if w.step > 1000 else None,
        )  # fmt: skip
        return np.mean(seen)

    assert mean(reweight=True) == pytest.approx(1.0, abs=0.1)
    assert mean(reweight=False) < 0.85


@pytest.mark.mpi
@VARIANTS
def test_on_mpi_ranks(make_worker, variant):
    every, steps = 3, 300
    w = make_worker()
    algorithm = Apart(lr=0.0, variant=variant, local_steps=every)
    run = mm.run(algorithm, still, steps=steps, worker=w)
    np.testing.assert_allclose(run.mean, np.full(w.size, 1 / w.size), rtol=0, atol=1e-13)
    assert run.consensus_distance < 1e-3
    if w.rank == 0:
        tried = Counter(r["step"] % every for r in run.records if r.get("peer", -1) >= 0)
        assert set(tried) == {every - 1}
        active = w.topology.bipartition() if variant == "paired" else range(w.size)
        most = steps // every * len(active)
        assert (
            sum(tried.values()) == most if variant == "paired" else 0 < sum(tried.values()) <= most
        )
