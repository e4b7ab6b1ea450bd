"""L13: Katyusha X on sums of quadratics that are not convex one by one.

The longest runs drive the algorithm's coroutine without a clock: the simulator's bits in less time.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.algorithms.drawn_samples import DrawnSamples
from mpimomentum.base_worker import _SHARED, BaseWorker, stream
from mpimomentum.worker import Handle

L = 3.0  # A up to 1, D_i = ±2


class Alone(BaseWorker):
    """One rank, where everything is done as soon as it is asked for."""

    def __init__(self, objective: Any, seed: int) -> None:
        super().__init__(0, 1, mm.topology.build("ring", 1), seed)
        self.bind(objective, 0.0)

    def now_s(self) -> float:
        return 0.0

    def gradient(self, x: Any, batch: Any) -> Handle[Any]:
        return Handle.completed(self.objective.gradient(x, batch))

    def full_gradient(self, x: Any) -> Handle[Any]:
        return Handle.completed(self.objective.full_gradient(x))

    def allreduce(self, v: Any) -> Handle[Any]:
        return Handle.completed(v)

    def allgather(self, v: Any) -> Handle[Any]:
        return Handle.completed(v[None])


def models(algorithm: Any, objective: Any, seed: int = 0) -> Any:
    """The models after each epoch, without end."""
    w = Alone(objective, seed)
    w.lr = algorithm.lr
    state = algorithm.init(w, objective.initial())
    while True:
        with contextlib.suppress(StopIteration):
            algorithm.step(w, state).send(None)
            pytest.fail("it waited")
        w.step += 1
        yield state.x


def epochs(algorithm: Any, objective: Any, most: int, seed: int = 0) -> int:
    """How many bring f - min f down to 1e-8 of what it is at the start; `most` + 1 if more."""
    h, start = objective.hessian, objective.initial()
    for k, x in zip(range(1, most + 1), models(algorithm, objective, seed), strict=False):
        if float(x @ h @ x) <= 1e-8 * float(start @ h @ start):
            return k
    return most + 1


def svrg_epochs(objective: Any, lr: float, seed: int = 0) -> int:
    """The same for SVRG in numpy, b = 1 and m = n, without what cancels in its gradients."""
    a, d = objective.hessian.numpy(), objective.d_and_c[:, 0].numpy()
    x, n, rng = objective.initial().numpy(), objective.samples, np.random.default_rng(seed)
    start = x @ a @ x
    for epoch in itertools.count(1):
        v = x.copy()
        for i in rng.integers(n, size=rng.geometric(1 / n)):
            v -= lr * (a @ v + d[i] * (v - x))
        x = v
        if x @ a @ x <= 1e-8 * start:
            return epoch
    raise AssertionError


@pytest.mark.parametrize(("samples", "dim", "kappa", "factor", "seed"), [
    (400, 20, 1e3, 4, 0),  # as quoted: SVRG about 1440, Katyusha X about 205
    (100, 20, 100.0, 2, 3), (36, 10, 300.0, 4, 1), (64, 5, 400.0, 4, 2),
])  # fmt: skip
def test_momentum_saves_epochs(samples, dim, kappa, factor, seed) -> None:
    """b = 1, m = n, lr = 1/(2L sqrt(n)), to 1e-8 of the gap at the start."""
    objective = mm.NonconvexQuadratics(0, 1, samples, dim, kappa, seed=seed)
    assert objective.smoothness == L
    lr = 1 / (2 * L * samples**0.5)
    fast = mm.KatyushaX(lr=lr, inner_steps=samples, sigma=1 / kappa)
    plain = svrg_epochs(objective, lr, seed)
    assert factor * epochs(fast, objective, plain // factor + 1, seed) <= plain


def numpy_epoch(rng: Any, objective: Any, lr: float, m: int, batch: int, x: Any, prox: Any) -> Any:
    """SVRG from the anchor x, over all samples of one rank."""
    every = torch.arange(objective.samples)
    f = lambda v, i: objective.gradient(torch.from_numpy(v), i).numpy()  # noqa: E731
    g, v = f(x, every), x
    for _ in range(rng.geometric(1 / m)):
        i = torch.from_numpy(rng.integers(objective.samples, size=batch))
        v = prox(v - lr * (g + f(v, i) - f(x, i)))
    return v


TERMS = {
    None: lambda v, lr: v,
    "l1:0.3": lambda v, lr: np.sign(v) * np.maximum(np.abs(v) - lr * 0.3, 0),
    "l2:0.7": lambda v, lr: v / (1 + lr * 0.7),
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("sigma", [0.0, 0.05, "svrg"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_numpy_transcript(term, sigma, batch) -> None:
    """Both forms as they are printed, 12 epochs; tau = 1/2 is SVRG and nothing else."""
    lr, m = 0.02, 9
    objective = mm.NonconvexQuadratics(0, 1, samples=12, dim=4, kappa=10.0, seed=5)
    given = 1 / (m * lr) if sigma == "svrg" else sigma
    algorithm = mm.KatyushaX(lr=lr, inner_steps=m, batch=batch, sigma=given, prox=term)
    seen: list[Any] = []
    mm.simulate(
        algorithm,
        lambda rank, size: objective,
        1,
        steps=12,
        seed=4,
        observe=lambda w, s: seen.append(s.x.clone()),
    )
    alone = itertools.islice(models(algorithm, objective, seed=4), 12)
    assert all(torch.equal(a, b) for a, b in zip(seen, alone, strict=True))
    rng, x = stream(4, _SHARED), objective.initial().numpy()
    y = before = x
    for k in range(12):
        if sigma == "svrg":
            x = y
        elif sigma:
            tau = 0.5 * (m * lr * sigma) ** 0.5
            x = (1.5 * y + 0.5 * x - (1 - tau) * before) / (1 + tau)
        else:
            x = ((3 * k + 1) * y + (k + 1) * x - (2 * k - 2) * before) / (2 * k + 4)
        before = y
        y = numpy_epoch(rng, objective, lr, m, batch, x, lambda v: TERMS[term](v, lr))
        np.testing.assert_allclose(seen[k].numpy(), y, rtol=0, atol=1e-12)


def test_half_tau_starts_every_epoch_where_the_last_ended_bit_by_bit() -> None:
    objective = mm.NonconvexQuadratics(0, 1, samples=36, dim=10, kappa=100.0)
    svrg = mm.KatyushaX(lr=0.03, inner_steps=36, sigma=1 / (36 * 0.03))
    same: list[bool] = []
    mm.simulate(
        svrg,
        lambda rank, size: objective,
        1,
        steps=30,
        observe=lambda w, s: same.append(torch.equal(s.x, s.anchor)),
    )
    assert same == [True] * 30


def test_the_number_of_inner_steps_has_mean_m() -> None:
    """Geometric: mean m, variance m² - m; the streams of the ranks agree."""
    counted: list[int] = []

    class Counting(mm.Quadratic):
        def gradient(self, x: Any, batch: Any) -> Any:
            counted[-1] += 1
            return self.h * (x - self.b)

        def full_gradient(self, x: Any) -> Any:
            counted.append(0)
            return self.h * (x - self.b)

    m, n = 8, 4000
    objective = Counting(b=torch.zeros(1))
    steps = models(mm.KatyushaX(lr=0.0, inner_steps=m), objective)
    for _ in range(n):
        next(steps)
    inner = np.array(counted) / 2  # two gradients each
    assert inner.min() == 1
    assert inner.mean() == pytest.approx(m, abs=4 * (m * (m - 1) / n) ** 0.5)
    assert inner.var() == pytest.approx(m * (m - 1), rel=0.25)


def lasso(rank: int, size: int) -> mm.LeastSquares:
    rng = np.random.default_rng(7)
    a = rng.standard_normal((30, 8))
    b = a @ np.array([2.0, 0, 0, -1, 0, 0, 0.5, 0]) + 0.1 * rng.standard_normal(30)
    cut = [0, 3, 20, 24, 30] if size == 4 else [0, 30]  # uneven
    mine = slice(cut[rank], cut[rank + 1])
    return mm.LeastSquares(a[mine], b[mine], batch_size=2)


@pytest.mark.parametrize("size", [1, 4])
def test_l1_comes_to_the_optimum_of_lasso(size) -> None:
    """Karush, Kuhn and Tucker: the gradient is -λ sign(x_j) where x_j is not 0, else within ±λ."""
    weight, whole = 0.2, lasso(0, 1)
    algorithm = mm.KatyushaX(lr=0.02, inner_steps=20, batch=3, prox=f"l1:{weight}")
    x = mm.simulate(algorithm, lasso, size, steps=250).mean
    g = whole.full_gradient(x)
    active = x != 0
    assert 0 < int(active.sum()) < 8
    torch.testing.assert_close(g[active], -weight * x[active].sign(), rtol=0, atol=1e-8)
    assert float(g[~active].abs().max()) < weight


def test_l2_is_weight_decay() -> None:
    """ψ = λ/2 ‖x‖² as a term or inside f: the same minimum, the normal equations'."""
    whole = lasso(0, 1)
    algorithm = mm.KatyushaX(lr=0.02, inner_steps=20, batch=3, prox="l2:0.5")
    x = mm.simulate(algorithm, lasso, 4, steps=120).mean
    normal = whole.a.T @ whole.a / 30 + 0.5 * torch.eye(8, dtype=torch.float64)
    law = torch.linalg.solve(normal, whole.a.T @ whole.b / 30)
    torch.testing.assert_close(x, law, rtol=0, atol=1e-8)


def interleaved(rank: int, size: int) -> mm.LeastSquares:
    """30 samples in the same order of numbers for any number of ranks."""
    whole, cut = lasso(0, 1), [rank * (rank + 1) // 2 for rank in range(size)] + [30]
    mine = slice(cut[rank], cut[rank + 1])
    return mm.LeastSquares(whole.a[mine], whole.b[mine])


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("size", [2, 4, 7])
def test_the_iterates_do_not_depend_on_the_number_of_ranks(size, sigma) -> None:
    """Mini-batches are those of one rank, whoever holds their samples, also in uneven parts."""
    algorithm = mm.KatyushaX(lr=0.03, inner_steps=15, batch=4, sigma=sigma, prox="l1:0.01")
    one, many = (mm.simulate(algorithm, interleaved, n, steps=20, seed=9) for n in (1, size))
    torch.testing.assert_close(many.mean, one.mean, rtol=0, atol=1e-12)
    assert bool((many.x == many.x[0]).all())


def test_corrections_are_unbiased_with_uneven_parts() -> None:
    """Their mean over many draws is grad f(x) - grad f(anchor), f over all samples alike."""
    x, anchor = torch.linspace(-1, 1, 8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    total = torch.zeros(8, dtype=torch.float64)

    class Drawing(mm.AllReduceSGD):
        async def step(self, w: Any, s: Any) -> None:
            data = await DrawnSamples.of(w)
            change = await data.mean_change(w, x, anchor, 2)
            if w.rank == 0:
                total.add_(change)

    n = 4000
    mm.simulate(Drawing(lr=0.1), lasso, 4, steps=n)
    whole = lasso(0, 1)
    law = whole.full_gradient(x) - whole.full_gradient(anchor)
    each = torch.stack([
        whole.gradient(x, torch.tensor([i])) - whole.gradient(anchor, torch.tensor([i]))
        for i in range(30)
    ])  # fmt: skip
    error = each.std(dim=0) / (2 * n) ** 0.5
    assert bool(((total / n - law).abs() < 4 * error).all())


@pytest.mark.mpi
@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_on_mpi_ranks(make_worker, sigma) -> None:
    """The simulator's iterates, bit by bit on a node; all ranks alike."""
    algorithm = mm.KatyushaX(lr=0.02, inner_steps=10, batch=3, sigma=sigma, prox="l1:0.05")
    w = make_worker(seed=3)
    real: list[Any] = []
    run = mm.run(
        algorithm, lasso, steps=20, worker=w, observe=lambda _, s: real.append(s.x.clone())
    )
    virtual: list[Any] = []
    mm.simulate(
        algorithm,
        lasso,
        w.size,
        steps=20,
        seed=3,
        observe=lambda v, s: virtual.append(s.x.clone()) if v.rank == w.rank else None,
    )
    torch.testing.assert_close(torch.stack(real), torch.stack(virtual), rtol=0, atol=1e-13)
    if w.env.nodes == 1:
        assert all(map(torch.equal, real, virtual))
    if w.rank == 0:
        assert bool((run.x == run.x[0]).all())
