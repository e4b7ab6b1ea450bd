"""Finite sums for the laws of variance reduction: means over samples that are spread over ranks.

All are made on every rank from the same seed and hold the part of their rank, so that f, the mean
over all samples, is the same for any number of ranks, and parts may be uneven.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpimomentum.worker import Objective, Vector


class FiniteSum(Objective):
    """The mean of losses of single samples; subclasses say what those are.

    Parameters
    ----------
    dim : int
    samples : int
        Of this rank.
    batch_size : int
        Samples of a mini-batch that this rank draws by itself.
    x0 : torch.Tensor, optional
        Start, shape (dim,); zero by default.
    dtype : torch.dtype
        Of all vectors.

    Raises
    ------
    ValueError
        If there are no samples, or `batch_size` is not 1 to all of them.
    """

    def __init__(
        self,
        dim: int,
        samples: int,
        batch_size: int = 1,
        x0: Any = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if not 1 <= batch_size <= samples:
            raise ValueError(f"batch_size={batch_size} must be 1 to the {samples} samples here")
        self.dim, self.samples, self.batch_size = dim, samples, batch_size
        self.x0 = torch.zeros(dim, dtype=dtype) if x0 is None else torch.as_tensor(x0, dtype=dtype)
        self._all = torch.arange(samples)

    def initial(self) -> Vector:
        """Return a copy of the start, shape (dim,)."""
        return self.x0.clone()

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> Tensor:
        """Return samples' indices, int64: `indices`, or `batch_size` drawn with replacement."""
        if indices is None:
            return torch.from_numpy(rng.integers(self.samples, size=self.batch_size))
        return torch.as_tensor(indices, dtype=torch.int64)

    def gradient(self, x: Vector, batch: Tensor) -> Vector:
        """Return the gradient of the mean loss over `batch`, shape (dim,), a tensor of its own."""
        raise NotImplementedError

    def full_gradient(self, x: Vector) -> Vector:
        """Return the gradient over all samples of this rank, shape (dim,), a tensor of its own."""
        return self.gradient(x, self._all)

    def loss(self, x: Vector) -> float:
        """Return f_i(x), the mean loss over all samples of this rank."""
        raise NotImplementedError


class LeastSquares(FiniteSum):
    """f_i(x) = mean over the samples j of this rank of ½ (a_jᵀx − b_j)²; with ψ = λ‖x‖₁, LASSO.

    Parameters
    ----------
    a : torch.Tensor or array, shape (n, dim)
        This rank's samples.
    b : torch.Tensor or array, shape (n,)
        Their targets.
    **options
        Of :class:`FiniteSum`.

    Raises
    ------
    ValueError
        If the shapes disagree.
    """

    def __init__(self, a: Any, b: Any, **options: Any) -> None:
        dtype = options.get("dtype", torch.float64)
        self.a, self.b = torch.as_tensor(a, dtype=dtype), torch.as_tensor(b, dtype=dtype)
        if self.a.ndim != 2 or self.b.shape != self.a.shape[:1]:
            raise ValueError(
                f"a has shape {tuple(self.a.shape)}, b {tuple(self.b.shape)}: (n, dim) and (n,) "
                f"are needed"
            )
        super().__init__(self.a.shape[1], self.a.shape[0], **options)

    def gradient(self, x: Vector, batch: Tensor) -> Vector:
        """Return mean_j a_j (a_jᵀx − b_j), shape (dim,)."""
        a = self.a[batch]
        return a.T @ (a @ x - self.b[batch]) / len(batch)

    def loss(self, x: Vector) -> float:
        """Return f_i(x)."""
        return float((self.a @ x - self.b).square().mean()) / 2


class SoftmaxRegression(FiniteSum):
    """f_i(x) = mean_j [log Σ_c exp(w_cᵀa_j) − w_{y_j}ᵀa_j] + λ/2 ‖x‖², x the rows w_c in order.

    Parameters
    ----------
    a : torch.Tensor or array, shape (n, features)
        This rank's samples; a last column of ones gives every class a bias.
    y : torch.Tensor or array, int64, shape (n,)
        Their classes, 0 to `classes` − 1.
    classes : int
    weight_decay : float
        λ, the strong convexity.
    **options
        Of :class:`FiniteSum`; dim = classes · features.

    Raises
    ------
    ValueError
        If the shapes disagree, or there is no such class.
    """

    def __init__(
        self, a: Any, y: Any, classes: int, weight_decay: float = 0.0, **options: Any
    ) -> None:
        dtype = options.get("dtype", torch.float64)
        self.a = torch.as_tensor(a, dtype=dtype)
        self.y = torch.as_tensor(y, dtype=torch.int64)
        if self.a.ndim != 2 or self.y.shape != self.a.shape[:1]:
            raise ValueError(
                f"a has shape {tuple(self.a.shape)}, y {tuple(self.y.shape)}: (n, features) and "
                f"(n,) are needed"
            )
        if len(self.y) and not 0 <= int(self.y.min()) <= int(self.y.max()) < classes:
            raise ValueError(f"classes={classes}, but y goes from {self.y.min()} to {self.y.max()}")
        self.classes, self.weight_decay = classes, weight_decay
        super().__init__(classes * self.a.shape[1], self.a.shape[0], **options)

    def gradient(self, x: Vector, batch: Tensor) -> Vector:
        """Return mean_j (softmax(w a_j) − e_{y_j}) a_jᵀ, row by row, + λx; shape (dim,)."""
        a = self.a[batch]
        p = torch.softmax(a @ x.view(self.classes, -1).T, dim=1)
        p[torch.arange(len(batch)), self.y[batch]] -= 1
        return (p.T @ a / len(batch)).reshape(-1) + self.weight_decay * x

    def loss(self, x: Vector) -> float:
        """Return f_i(x)."""
        scores = self.a @ x.view(self.classes, -1).T
        fit = scores.logsumexp(dim=1) - scores.gather(1, self.y[:, None])[:, 0]
        return float(fit.mean() + self.weight_decay / 2 * x.square().sum())


class NonconvexQuadratics(FiniteSum):
    """f = mean_j ½ xᵀ(A + D_j)x − c_jᵀx, whose sum is convex though its terms are not.

    A has eigenvalues from `largest`/`kappa` to `largest`, evenly spaced on a log scale, in random
    directions. Sample j and sample n/2 + j have opposite D_j = diag(±`spread`) and opposite c_j, so
    that f(x) = ½ xᵀAx with its minimum 0 at 0; every f_j is smooth with L = largest + spread.

    Parameters
    ----------
    rank, size : int
        Which part: samples rank, rank + size, rank + 2 size, ….
    samples : int
        n of all ranks together, even.
    dim : int
    kappa : float
        Condition number of A.
    largest, spread : float
    seed : int
        Of A, all D_j, all c_j and the start.
    batch_size, dtype
        As for :class:`FiniteSum`.

    Raises
    ------
    ValueError
        If `samples` is odd, or too few for the ranks.

    References
    ----------
    Z. Allen-Zhu, "Katyusha X: practical momentum method for stochastic sum-of-nonconvex
    optimization", ICML 2018 (the problem, not this instance).
    """

    def __init__(
        self,
        rank: int,
        size: int,
        samples: int,
        dim: int,
        kappa: float,
        *,
        largest: float = 1.0,
        spread: float = 2.0,
        seed: int = 0,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if samples % 2 or samples < size:
            raise ValueError(
                f"samples={samples} must be even, one with each D_j and one with its opposite, and "
                f"at least the number of ranks, {size}"
            )
        rng = np.random.default_rng(seed)
        directions, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
        hessian = (directions * np.geomspace(largest / kappa, largest, dim)) @ directions.T
        d = spread * np.sign(rng.random((samples // 2, dim)) - 0.5)
        c = rng.standard_normal((samples // 2, dim))
        mine = slice(rank, None, size)
        self.sigma, self.smoothness = largest / kappa, largest + spread
        self.hessian = torch.as_tensor(hessian, dtype=dtype)
        both = np.stack([np.concatenate([d, -d])[mine], np.concatenate([c, -c])[mine]], axis=1)
        self.d_and_c = torch.as_tensor(both, dtype=dtype)  # (samples here, 2, dim)
        super().__init__(dim, len(both), batch_size, rng.standard_normal(dim), dtype)

    def gradient(self, x: Vector, batch: Tensor) -> Vector:
        """Return mean_j (A + D_j)x − c_j, shape (dim,)."""
        d, c = self.d_and_c[batch].mean(dim=0)
        g: Vector = self.hessian @ x + d * x - c
        return g

    def loss(self, x: Vector) -> float:
        """Return the mean over the samples of this rank; it may be negative, f never is."""
        d, c = self.d_and_c.mean(dim=0)
        return float(x @ (self.hessian @ x + d * x)) / 2 - float(c @ x)
