"""A quadratic per worker: the objective whose optimum and convergence are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mpimomentum.worker import Objective, Vector


class Quadratic(Objective):
    """f_i(x) = ½ (x − b_i)ᵀ diag(h) (x − b_i), with Gaussian gradient noise.

    Parameters
    ----------
    b : torch.Tensor, array or sequence of float
        This worker's minimum b_i, shape (dim,).
    h : float, torch.Tensor, array or sequence of float
        Curvatures, one or shape (dim,).
    noise : float
        Standard deviation of the noise in each coordinate of a gradient.
    x0 : torch.Tensor, array or sequence of float, optional
        Start, shape (dim,); zero by default.
    dtype : torch.dtype
        Of all vectors; x must have it too.

    Raises
    ------
    ValueError
        If shapes disagree or `noise` is negative.
    """

    samples = 1

    def __init__(
        self,
        b: Any,
        h: Any = 1.0,
        noise: float = 0.0,
        x0: Any = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.b = torch.as_tensor(b, dtype=dtype).clone()
        self.h = torch.as_tensor(h, dtype=dtype).clone()
        self.x0 = (
            torch.zeros_like(self.b) if x0 is None else torch.as_tensor(x0, dtype=dtype).clone()
        )
        self.noise = noise
        if self.b.ndim != 1:
            raise ValueError(f"b must be a vector, got shape {tuple(self.b.shape)}")
        self.dim = len(self.b)
        if self.h.shape not in ((), self.b.shape) or self.x0.shape != self.b.shape:
            raise ValueError(
                f"b has shape ({self.dim},), but h has {tuple(self.h.shape)} "
                f"and x0 {tuple(self.x0.shape)}"
            )
        if noise < 0:
            raise ValueError(f"noise must not be negative, got {noise}")

    def initial(self) -> Vector:
        """Return a copy of the start x0, shape (dim,)."""
        return self.x0.clone()

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> Vector:
        """Return the noise of the next gradient, shape (dim,); `indices` mean nothing here."""
        if self.noise == 0:
            return torch.zeros_like(self.b)
        return self.noise * torch.from_numpy(rng.standard_normal(self.dim)).to(self.b)

    def gradient(self, x: Vector, batch: Vector) -> Vector:
        """Return h (x − b) + batch, shape (dim,), a tensor of its own."""
        return self.full_gradient(x) + batch

    def full_gradient(self, x: Vector) -> Vector:
        """Return h (x − b), shape (dim,), a tensor of its own."""
        return self.h * (x - self.b)

    def loss(self, x: Vector) -> float:
        """Return f_i(x), without noise."""
        return float((self.h * (x - self.b) ** 2).sum()) / 2
