"""L7: local momentum SGD. Its variance falls with the ranks for every I; its bias grows with I."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mpimomentum as mm

EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.mark.parametrize(("n", "local_steps", "eta", "mu", "h"), [
    (4, 1, 0.05, 0.5, 1.0), (4, 5, 0.05, 0.5, 1.0), (8, 4, 0.02, 0.8, 2.0), (2, 10, 0.1, 0.3, 0.7),
])  # fmt: skip
def test_linear_speed_up(n, local_steps, eta, mu, h):
    """f = h x²/2 and unit noise: Var(x̄) = η(1+μ) / (n(1-μ)h(2(1+μ) - ηh)), option I, any I."""
    noisy = lambda rank, size: mm.Quadratic(b=torch.zeros(20_000), h=h, noise=1.0)  # noqa: E731
    algorithm = mm.LocalMomentum(lr=eta, mu=mu, local_steps=local_steps)
    steps = int(12 * (1 - mu) / (eta * h)) // local_steps * local_steps
    run = mm.simulate(algorithm, noisy, n, steps=steps)
    law = eta * (1 + mu) / (n * (1 - mu) * h * (2 * (1 + mu) - eta * h))
    assert float(run.mean.square().mean()) == pytest.approx(law, rel=0.03)


def fixed_point(h, b, eta, mu, local_steps, nesterov):
    """Of the averaged affine map (x, u) -> (x, u) of a whole round."""
    M, c = np.zeros((2, 2)), np.zeros(2)
    for hi, bi in zip(h, b, strict=True):
        # u' = mu u + h(x - b); x' = x - eta u', or x - eta (mu u' + h(x - b))
        k = eta * mu if nesterov else eta
        step = np.array([[1 - k * hi, -k * mu], [hi, mu]])
        push = np.array([k * hi * bi, -hi * bi])
        if nesterov:
            step[0, 0] -= eta * hi
            push[0] += eta * hi * bi
        A, a = np.eye(2), np.zeros(2)
        for _ in range(local_steps):
            A, a = step @ A, step @ a + push
        M, c = M + A / len(h), c + a / len(h)
    return np.linalg.solve(np.eye(2) - M, c)[0]


H, B = np.array([1.0, 2.0, 4.0, 8.0]), np.array([2.0, -1.0, 1.0, -2.0])


def scattered(rank, size):
    return mm.Quadratic(b=np.array([B[rank]]), h=H[rank])


@pytest.mark.parametrize(
    ("local_steps", "quoted"), [(1, 0.0), (2, 0.003079), (4, 0.014638), (8, 0.055597)]
)
def test_the_quoted_bias(local_steps, quoted):
    algorithm = mm.LocalMomentum(lr=0.002, mu=0.9, local_steps=local_steps)
    run = mm.simulate(algorithm, scattered, 4, steps=1600)
    minimum = (H * B).sum() / H.sum()
    assert abs(float(run.mean[0]) - minimum) == pytest.approx(quoted, abs=6e-7)


@pytest.mark.parametrize("nesterov", [False, True], ids=["I", "II"])
@pytest.mark.parametrize(
    ("local_steps", "eta", "mu"), [(1, 0.01, 0.7), (3, 0.01, 0.7), (6, 0.005, 0.8)]
)
def test_the_fixed_point_of_a_round(local_steps, eta, mu, nesterov):
    algorithm = mm.LocalMomentum(lr=eta, mu=mu, local_steps=local_steps, nesterov=nesterov)
    run = mm.simulate(algorithm, scattered, 4, steps=600)
    law = fixed_point(H, B, eta, mu, local_steps, nesterov)
    np.testing.assert_allclose(run.x[:, 0], np.full(4, law), **EXACT)


def noisy(rank, size):
    b = torch.randn(7, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    return mm.Quadratic(b=b, noise=0.3)


def test_averaging_every_step_is_synchronous_momentum():
    local, whole = (
        mm.simulate(a, noisy, 4, steps=50)
        for a in (mm.LocalMomentum(lr=0.1, mu=0.9, local_steps=1), mm.AllReduceSGD(lr=0.1, mu=0.9))
    )
    np.testing.assert_allclose(local.x, whole.x, **EXACT)


def test_between_averages_the_ranks_go_their_own_ways():
    algorithm = mm.LocalMomentum(lr=0.1, mu=0.5, local_steps=4)
    distances = [mm.simulate(algorithm, noisy, 4, steps=s).consensus_distance for s in range(1, 9)]
    assert [d < 1e-12 for d in distances] == [False, False, False, True] * 2


@pytest.mark.mpi
@pytest.mark.parametrize("local_steps", [1, 5])
def test_on_mpi_ranks(make_worker, local_steps):
    w = make_worker()
    algorithm = mm.LocalMomentum(lr=0.05, mu=0.9, local_steps=local_steps)
    run = mm.run(algorithm, noisy, steps=20, worker=w)
    law = mm.simulate(algorithm, noisy, w.size, steps=20)
    np.testing.assert_allclose(run.mean, law.mean, **EXACT)
    assert run.consensus_distance < 1e-12
    if local_steps == 1:
        whole = mm.simulate(mm.AllReduceSGD(lr=0.05, mu=0.9), noisy, w.size, steps=20)
        np.testing.assert_allclose(run.mean, whole.mean, **EXACT)


@pytest.mark.mpi
@pytest.mark.parametrize("driver", ["thread"], indirect=True)
def test_the_quoted_bias_on_mpi_ranks(make_worker, driver):
    w = make_worker()
    if w.size != 4:
        pytest.skip("quoted for four ranks")
    algorithm = mm.LocalMomentum(lr=0.002, mu=0.9, local_steps=8)
    run = mm.run(algorithm, scattered, steps=1600, worker=w)
    minimum = (H * B).sum() / H.sum()
    assert abs(float(run.mean[0]) - minimum) == pytest.approx(0.055597, abs=6e-7)
