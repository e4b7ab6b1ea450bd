"""SlowMo: against its pseudocode in numpy, and in the limits where it is another algorithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mpimomentum as mm

EXACT = {"rtol": 0, "atol": 1e-12}
BUFFERS = pytest.mark.parametrize("buffers", ["average", "reset", "keep"])
H, B = np.array([1.0, 2.0, 4.0, 8.0]), np.array([2.0, -1.0, 1.0, -2.0])


def scattered(rank, size):
    return mm.Quadratic(b=np.array([B[rank % 4], 1.0]), h=H[rank % 4])


def noisy(rank, size):
    b = torch.randn(7, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    return mm.Quadratic(b=b, noise=0.3)


def pseudocode(a, n, rounds, factor=lambda t: 1.0):
    """Algorithm 1 of the paper, all workers side by side: x_{t,0} after `rounds` rounds."""
    h, b = np.resize(H, n)[:, None], np.stack([np.resize(B, n), np.ones(n)], axis=1)
    x0, u, m = np.zeros(2), np.zeros(2), np.zeros((n, 2))
    for t in range(rounds):
        x = np.tile(x0, (n, 1))
        for k in range(a.local_steps):
            lr = a.lr * factor(t * a.local_steps + k)
            g = h * (x - b)
            m = a.mu * m + g
            x = x - lr * (a.mu * m + g if a.nesterov else m)
        u = a.slow_mu * u + (x0 - x.mean(axis=0)) / lr
        x0 = x0 - a.slow_lr * lr * u
        if a.buffers == "average":
            m = np.tile(m.mean(axis=0), (n, 1))
        elif a.buffers == "reset":
            m = np.zeros((n, 2))
    return x0


@BUFFERS
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    ("n", "local_steps", "mu", "slow_mu", "slow_lr"),
    [(4, 3, 0.5, 0.6, 1.0), (3, 5, 0.7, 0.3, 0.8), (5, 1, 0.4, 0.7, 1.2), (1, 4, 0.0, 0.5, 1.0)],
)
def test_rounds_are_those_of_the_pseudocode(
    n, local_steps, mu, slow_mu, slow_lr, nesterov, buffers
):
    algorithm = mm.SlowMo(0.01, mu, local_steps, slow_mu, slow_lr, buffers, nesterov)
    schedule = mm.LRSchedule("step", milestones=(2 * local_steps,), decay=0.5)
    for rounds in (1, 2, 7):
        steps = rounds * local_steps
        run = mm.simulate(algorithm, scattered, n, steps=steps, schedule=schedule)
        law = pseudocode(algorithm, n, rounds, schedule.factor)
        np.testing.assert_allclose(run.x, np.tile(law, (n, 1)), **EXACT)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("mu", "local_steps"), [(0.9, 1), (0.8, 6), (0.0, 3)])
def test_without_slow_momentum_it_is_local_momentum(mu, local_steps, nesterov):
    slow = mm.SlowMo(0.05, mu, local_steps, slow_mu=0.0, slow_lr=1.0, nesterov=nesterov)
    local = mm.LocalMomentum(0.05, mu, local_steps, nesterov)
    for steps in (local_steps - 1, 4 * local_steps, 4 * local_steps + 1):
        one, other = (mm.simulate(a, noisy, 4, steps=steps) for a in (slow, local))
        np.testing.assert_allclose(one.x, other.x, **EXACT)


@BUFFERS
@pytest.mark.parametrize(("slow_mu", "slow_lr"), [(0.9, 1.0), (0.5, 0.7), (0.0, 1.3)])
def test_of_single_steps_without_momentum_it_makes_synchronous_heavy_ball(
    slow_mu, slow_lr, buffers
):
    slow = mm.SlowMo(0.1, 0.0, local_steps=1, slow_mu=slow_mu, slow_lr=slow_lr, buffers=buffers)
    whole = mm.AllReduceSGD(lr=0.1 * slow_lr, mu=slow_mu)
    one, other = (mm.simulate(a, noisy, 4, steps=40) for a in (slow, whole))
    np.testing.assert_allclose(one.x, other.x, **EXACT)


@pytest.mark.parametrize(("slow_mu", "slow_lr"), [(0.0, 1.0), (0.5, 1.0), (0.7, 0.6)])
@pytest.mark.parametrize(("local_steps", "quoted"), [(2, 0.003079), (4, 0.014638), (8, 0.055597)])
def test_slow_momentum_leaves_the_bias_of_local_steps_as_it_is(
    local_steps, quoted, slow_mu, slow_lr
):
    """L7: at rest a round ends where it began, whatever is done with the difference."""
    run = mm.simulate(
        mm.SlowMo(0.002, 0.9, local_steps, slow_mu, slow_lr), scattered, 4, steps=2400
    )
    minimum = (H * B).sum() / H.sum()
    assert abs(float(run.mean[0]) - minimum) == pytest.approx(quoted, abs=6e-7)


def test_between_averages_the_ranks_go_their_own_ways():
    algorithm = mm.SlowMo(lr=0.1, mu=0.5, local_steps=4)
    distances = [mm.simulate(algorithm, noisy, 4, steps=s).consensus_distance for s in range(1, 9)]
    assert [d < 1e-12 for d in distances] == [False, False, False, True] * 2


def test_a_step_of_size_0_leaves_no_nan():
    schedule = mm.LRSchedule("step", milestones=(4,), decay=0.0)
    algorithm = mm.SlowMo(lr=0.05, mu=0.5, local_steps=2)
    runs = [mm.simulate(algorithm, noisy, 3, steps=s, schedule=schedule) for s in (4, 12)]
    np.testing.assert_allclose(runs[1].x, runs[0].x, **EXACT)


def test_a_round_that_ends_with_a_step_of_size_0_keeps_its_other_steps():
    schedule = mm.LRSchedule("step", milestones=(3,), decay=0.0)
    algorithm = mm.SlowMo(lr=0.05, mu=0.5, local_steps=2)
    three, four = (mm.simulate(algorithm, noisy, 3, s, schedule=schedule) for s in (3, 4))
    np.testing.assert_allclose(four.mean, three.mean, **EXACT)


@pytest.fixture
def driver():
    """One is enough: the drivers have tests of their own."""
    return "thread"


@pytest.mark.mpi
@BUFFERS
@pytest.mark.parametrize("local_steps", [1, 5])
def test_on_mpi_ranks(make_worker, local_steps, buffers):
    w = make_worker()
    algorithm = mm.SlowMo(0.03, 0.6, local_steps, slow_mu=0.5, buffers=buffers)
    run = mm.run(algorithm, noisy, steps=20, worker=w)
    law = mm.simulate(algorithm, noisy, w.size, steps=20)
    np.testing.assert_allclose(run.mean, law.mean, **EXACT)
    assert run.consensus_distance < 1e-12
    if local_steps == 1:
        limit = mm.SlowMo(0.1, 0.0, 1, slow_mu=0.9, buffers=buffers)
        run = mm.run(limit, noisy, steps=20, worker=w)
        whole = mm.simulate(mm.AllReduceSGD(lr=0.1, mu=0.9), noisy, w.size, steps=20)
        np.testing.assert_allclose(run.mean, whole.mean, **EXACT)
