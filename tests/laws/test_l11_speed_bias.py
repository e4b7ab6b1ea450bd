"""L11: fast workers' data count more. b = (4, 0, 0, 0), worker 0 ten times slower: Σ p_i b_i.

The law is that of small steps. At a step η the mean over time of x̄ is off by O(η): worker 0 takes
its next gradient at the model that has just swallowed its last, before anyone averaged with it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mpimomentum as mm

P0 = 0.1 / 3.1  # worker 0's share of the updates


def mean_over_time(algorithm, b, slow, *, topology="complete", jitter=0.05, seed=0):
    """Mean of x̄ over the last two thirds of a run of 24 time constants n/(η · updates a second)."""
    n = len(b)
    rate = sum(1 / slow.get(r, 1.0) for r in range(n))
    duration_s = 24 * n / (algorithm.lr * rate)
    states, samples = {}, []

    def note(w, state):
        states[w.rank] = state
        # by a regular worker's clock, so that time is sampled evenly
        if w.rank == n - 1 and w.now_s() > duration_s / 3 and len(states) == n:
            samples.append(np.mean([float(s.x.read()) for s in states.values()]))

    def f(rank, size):
        return mm.Quadratic(b=torch.tensor([float(b[rank])]))

    run = mm.simulate(
        algorithm, f, n, duration_s=duration_s, topology=topology, seed=seed, observe=note,
        clock=mm.Clock(slow=slow, jitter=jitter, seed=seed),
    )  # fmt: skip
    shares = run.updates / run.updates.sum()
    return float(np.mean(samples)), shares


@pytest.mark.parametrize("topology", ["complete", "ring"])
def test_fast_workers_data_count_more(topology):
    x, shares = mean_over_time(mm.ADPSGD(lr=0.01), (4, 0, 0, 0), {0: 10}, topology=topology)
    assert shares[0] == pytest.approx(P0, rel=0.02)
    assert pytest.approx(0.1290, abs=5e-5) == P0 * 4
    assert x == pytest.approx(0.1290, rel=0.03)
    assert x == pytest.approx(shares[0] * 4, rel=0.02)


@pytest.mark.parametrize(("lr", "tolerance"), [(0.01, 0.08), (0.0025, 0.02)])
def test_reweighting_brings_it_to_the_mean_of_the_data(lr, tolerance):
    """The error is O(η) and worker 0's steps are 7.75 η."""
    x, _ = mean_over_time(mm.ADPSGD(lr=lr, reweight=True), (4, 0, 0, 0), {0: 10})
    assert x == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("slow", [0, 1])  # an active and a passive worker
def test_paired_exchanges_have_the_same_bias(slow):
    """A slow active worker exchanges rarely and lags by O(sη): a smaller step."""
    b = tuple(4 if r == slow else 0 for r in range(4))
    algorithm = mm.ADPSGD(lr=0.0025, variant="paired")
    x, shares = mean_over_time(algorithm, b, {slow: 10}, topology="ring")
    assert shares[slow] == pytest.approx(P0, rel=0.02)
    assert x == pytest.approx(0.1290, rel=0.04)


def test_other_data_and_speeds():
    b, slow = (3.0, -6.0, 1.0, 8.0, 0.0, 0.0), {1: 4.0, 3: 2.5}
    speeds = np.array([1, 1 / 4, 1, 1 / 2.5, 1, 1])
    law = float(speeds @ np.array(b) / speeds.sum())
    assert abs(law - np.mean(b)) > 0.2
    x, shares = mean_over_time(mm.ADPSGD(lr=0.005), b, slow)
    np.testing.assert_allclose(shares, speeds / speeds.sum(), rtol=0.03)
    assert x == pytest.approx(law, abs=0.03)
    x, _ = mean_over_time(mm.ADPSGD(lr=0.005, reweight=True), b, slow)
    assert x == pytest.approx(np.mean(b), abs=0.03)


def test_at_equal_speeds_there_is_no_bias():
    for reweight in (False, True):
        x, _ = mean_over_time(mm.ADPSGD(lr=0.01, reweight=reweight), (4, 0, 0, 0), {})
        assert x == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("slow", [{}, {0: 10.0}])
def test_reweighting_does_not_change_the_speed_of_learning(slow):
    """The weights 1/(n p_i) average to 1 over all updates."""
    duration_s = 300.0

    def distance(reweight):
        def f(rank, size):
            return mm.Quadratic(b=torch.ones(1))

        algorithm = mm.ADPSGD(lr=0.004, reweight=reweight)
        clock = mm.Clock(slow=slow)
        run = mm.simulate(algorithm, f, 4, duration_s=duration_s, topology="complete", clock=clock)
        return float(1 - run.mean)

    rate = sum(1 / slow.get(r, 1.0) for r in range(4)) / 4
    law = np.exp(-0.004 * rate * duration_s)
    assert distance(False) == pytest.approx(law, rel=0.02)
    assert distance(True) == pytest.approx(law, rel=0.04)
