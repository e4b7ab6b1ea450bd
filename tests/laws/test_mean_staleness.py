"""The mean staleness is n − 1 with n workers, at any speeds; exactly so in round-robin.

Every update of a worker is stale by the updates of the others since its last, so that the sum over
one worker telescopes: only the first and last rounds deviate, by at most n − 1 each per worker.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

import mpimomentum as mm

STEPS = 200


def f(rank, size):
    return mm.Quadratic(b=torch.full((10,), float(rank)), noise=0.1)


def edges(n, updates):
    """How far the mean may be from n − 1: (n − 1)² updates' worth at either end of the run."""
    return 2 * (n - 1) ** 2 / updates


def by_server(run):
    taus = defaultdict(list)
    for row in run.records:
        taus[row["rank"]].append(row["tau"])
    return {rank: np.array(t) for rank, t in sorted(taus.items())}


SERVERS = pytest.mark.parametrize(
    ("ranks", "servers", "dedicated"),
    [(4, 1, False), (7, 1, False), (6, 2, False), (6, 2, True), (5, 1, True), (1, 1, False)],
)


@SERVERS
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_round_robin_at_a_server_is_stale_by_exactly_the_others(ranks, servers, dedicated, mu):
    algorithm = mm.AsyncServer(lr=0.01, mu=mu, servers=servers, dedicated=dedicated)
    run = mm.simulate(algorithm, f, ranks, steps=STEPS)
    n = ranks - servers if dedicated else ranks
    taus = by_server(run)
    assert list(taus) == list(range(servers))
    for tau in taus.values():
        assert len(tau) == n * STEPS
        assert tau[:n].tolist() == list(range(n))  # everyone still has x_0
        assert (tau[n:] == n - 1).all()


@SERVERS
@pytest.mark.parametrize(
    "clock",
    [
        mm.Clock(jitter=0.5),
        mm.Clock(jitter=1.0, seed=2),
        mm.Clock(slow={2: 10.0, 0: 3.0}, jitter=0.2),
        mm.Clock(jitter=0.3, latency_s=0.4, bandwidth_Bps=2000, network="shared"),
    ],
    ids=["jitter", "Poisson", "stragglers", "slow network"],
)
def test_mean_at_a_server_is_the_number_of_others_at_any_speeds(ranks, servers, dedicated, clock):
    algorithm = mm.AsyncServer(lr=0.01, servers=servers, dedicated=dedicated)
    clock = mm.Clock(**{**vars(clock), "slow": {r: s for r, s in clock.slow.items() if r < ranks}})
    # for all the same time: who has made its steps would leave fewer others to the rest
    run = mm.simulate(algorithm, f, ranks, duration_s=3 * STEPS, clock=clock)
    n = ranks - servers if dedicated else ranks
    taus = by_server(run)
    assert list(taus) == list(range(servers))
    for tau in taus.values():
        assert tau.min() >= 0
        assert tau.mean() == pytest.approx(n - 1, abs=edges(n, len(tau)) + 1e-12)
    if n > 1:
        assert np.concatenate(list(taus.values())).std() > 0.3  # the speeds did differ


def test_a_straggler_is_staler_and_the_others_fresher():
    algorithm = mm.AsyncServer(lr=0.01)
    clock = mm.Clock(slow={2: 10.0}, jitter=0.05)
    run = mm.simulate(algorithm, f, 4, duration_s=500.0, clock=clock)
    tau = defaultdict(list)
    for row in run.records:
        tau[row["source"]].append(row["tau"])
    # while worker 2 takes one gradient the three others take ten each
    assert np.mean(tau[2]) == pytest.approx(30, abs=1)
    assert np.mean(tau[0]) == pytest.approx(2.1, abs=0.05)


@pytest.mark.parametrize("variant", ["lockfree", "paired"])
@pytest.mark.parametrize("n", [4, 8])
@pytest.mark.parametrize(
    "clock",
    [mm.Clock(), mm.Clock(jitter=0.5), mm.Clock(jitter=0.2, slow={0: 10.0, 3: 2.0})],
    ids=["even", "jitter", "stragglers"],
)
def test_mean_of_ad_psgd_is_the_number_of_others(variant, n, clock):
    algorithm = mm.ADPSGD(lr=0.01, variant=variant)
    run = mm.simulate(algorithm, f, n, duration_s=2.0 * STEPS, clock=clock)
    assert run.tau.mean() == pytest.approx(n - 1, abs=edges(n, len(run.tau)))


def test_ad_psgd_in_lock_step_is_stale_by_exactly_the_others():
    run = mm.simulate(mm.ADPSGD(lr=0.01), f, 6, steps=50)
    assert sorted(run.tau[:6]) == list(range(6))
    by_step = run.tau.reshape(50, 6)
    assert (by_step.sum(axis=1)[1:] == 5 * 6).all()


@pytest.mark.parametrize(
    "algorithm", [mm.AllReduceSGD(lr=0.1), mm.DPSGD(lr=0.1), mm.DPSGD(lr=0.1, variant="atc")]
)
def test_synchronous_algorithms_are_never_stale(algorithm):
    run = mm.simulate(algorithm, f, 4, steps=10, clock=mm.Clock(jitter=0.5))
    assert len(run.tau) == 40
    assert not run.tau.any()


def test_measured_staleness_explains_the_iterates():
    """x_{k+1} = x_k − η G(x_{k−τ}) + μ (x_k − x_{k−1}), replayed from the records."""
    lr, mu, h, b = 0.02, 0.8, 3.0, torch.tensor([1.0, -2.0], dtype=torch.float64)
    run = mm.simulate(
        mm.AsyncServer(lr=lr, mu=mu), lambda rank, size: mm.Quadratic(b=b, h=h), 5, steps=60,
        clock=mm.Clock(jitter=0.6, seed=3),
    )  # fmt: skip
    assert max(run.tau) > 4
    before = x = torch.zeros_like(b)
    history = [x]
    for tau in run.tau.astype(int):
        gradient = h * (history[len(history) - 1 - tau] - b)
        before, x = x, x - lr * gradient + mu * (x - before)
        history.append(x)
    torch.testing.assert_close(run.x, x.expand(5, 2), rtol=0, atol=1e-12)
