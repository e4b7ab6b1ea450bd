"""Finite sums: gradients are those of the losses, and parts of ranks make up the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.algorithms.prox import parse

RNG = np.random.default_rng(3)
A, Y = RNG.standard_normal((9, 4)), RNG.integers(3, size=9)
B = A @ [1, 2, 3, 4]
MAKE = {
    "least squares": lambda rank, size: mm.LeastSquares(
        A[rank::size], A[rank::size] @ [1, 2, 3, 4]
    ),
    "softmax": lambda rank, size: mm.SoftmaxRegression(
        A[rank::size], Y[rank::size], classes=3, weight_decay=0.3
    ),
    "nonconvex": lambda rank, size: mm.NonconvexQuadratics(rank, size, 10, 6, kappa=50.0, seed=8),
}


@pytest.fixture(params=MAKE.values(), ids=MAKE)
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_gradients_are_finite_differences_of_the_loss(make: Any) -> None:
    f = make(0, 1)
    x, h = torch.from_numpy(RNG.standard_normal(f.dim)), 1e-5
    steps = h * torch.eye(f.dim, dtype=torch.float64)
    slopes = torch.tensor([(f.loss(x + e) - f.loss(x - e)) / (2 * h) for e in steps])
    torch.testing.assert_close(f.full_gradient(x), slopes.double(), rtol=1e-7, atol=1e-8)


def test_a_mini_batch_is_the_mean_of_its_samples(make: Any) -> None:
    f = make(0, 1)
    x = torch.from_numpy(RNG.standard_normal(f.dim))
    each = [f.gradient(x, f.sample(RNG, [i])) for i in range(f.samples)]
    batch = f.sample(RNG, [4, 1, 4])
    torch.testing.assert_close(f.gradient(x, batch), (2 * each[4] + each[1]) / 3)
    torch.testing.assert_close(f.full_gradient(x), torch.stack(each).mean(dim=0))
    f.batch_size = 5
    assert len(set(f.sample(RNG).tolist()) | set(f.sample(RNG).tolist())) > 3


def test_the_parts_of_ranks_make_up_the_whole(make: Any) -> None:
    whole, parts = make(0, 1), [make(rank, 4) for rank in range(4)]
    x = torch.from_numpy(RNG.standard_normal(whole.dim))
    assert sum(f.samples for f in parts) == whole.samples
    assert all(torch.equal(f.initial(), whole.initial()) for f in parts)
    loss = sum(f.samples / whole.samples * f.loss(x) for f in parts)
    assert loss == pytest.approx(whole.loss(x), rel=1e-12)
    g = sum(f.samples / whole.samples * f.full_gradient(x) for f in parts)
    torch.testing.assert_close(g, whole.full_gradient(x))


def test_the_sum_of_nonconvex_quadratics_is_the_convex_one() -> None:
    f = mm.NonconvexQuadratics(0, 1, samples=10, dim=6, kappa=50.0, largest=2.0, seed=8)
    h = torch.linalg.eigvalsh(f.hessian)
    np.testing.assert_allclose(h, np.geomspace(2 / 50, 2, 6), rtol=1e-10)
    x = torch.from_numpy(RNG.standard_normal(6))
    torch.testing.assert_close(f.full_gradient(x), f.hessian @ x)
    assert f.loss(x) == pytest.approx(float(x @ f.hessian @ x) / 2)
    one = f.hessian + torch.diag(f.d_and_c[0, 0])
    curvatures = torch.linalg.eigvalsh(one)
    assert curvatures.min() < 0  # not convex by itself
    assert curvatures.abs().max() <= f.smoothness == 4.0


def test_softmax_regression_is_torchs_cross_entropy() -> None:
    f = MAKE["softmax"](0, 1)
    x = torch.from_numpy(RNG.standard_normal(12)).requires_grad_()
    scores = torch.from_numpy(A) @ x.view(3, 4).T
    loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(Y))
    loss = loss + 0.15 * x.square().sum()
    loss.backward()
    assert f.loss(x.detach()) == pytest.approx(loss.item())
    torch.testing.assert_close(f.full_gradient(x.detach()), x.grad)


@pytest.mark.parametrize("text", ["l1:0.3", "l2:0.3", "l1:0"])
def test_a_proximal_step_is_the_argmin(text: str) -> None:
    """Of psi(u) + (u - v)²/(2 lr), found on a fine grid."""
    grid = np.linspace(-2, 2, 400_001)
    weight = float(text[3:])
    psi = weight * np.abs(grid) if text.startswith("l1") else weight / 2 * grid**2
    v, lr = torch.tensor([-1.0, -0.05, 0.0, 0.1, 1.5]), 0.5
    law = [grid[np.argmin(psi + (grid - float(vi)) ** 2 / (2 * lr))] for vi in v]
    np.testing.assert_allclose(parse(text)(v.clone(), lr), law, atol=2e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mm.LeastSquares(A, A), r"b \(9, 4\): \(n, dim\) and \(n,\) are needed"),
        (lambda: mm.LeastSquares(A, A[:, 0], batch_size=10), "batch_size=10 must be 1 to the 9"),
        (lambda: mm.SoftmaxRegression(A, Y[:3], 3), r"\(n,\) are needed"),
        (lambda: mm.SoftmaxRegression(A, Y, 2), "classes=2, but y goes from 0 to 2"),
        (lambda: mm.NonconvexQuadratics(0, 1, 7, 3, 10.0), "samples=7 must be even"),
        (lambda: mm.NonconvexQuadratics(0, 9, 8, 3, 10.0), "the number of ranks, 9"),
        (lambda: parse("l1"), "prox='l1': write l1:WEIGHT"),
        (lambda: parse("l3:1"), "prox='l3:1'"),
        (lambda: parse("l1:-1"), "not negative"),
        (lambda: parse("l2:inf"), "finite"),
    ],
)
def test_wrong_use_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
