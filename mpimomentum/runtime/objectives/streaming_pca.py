"""Streaming PCA: the nonconvex objective on which momentum was first set against staleness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mpimomentum.worker import Objective, Vector


class StreamingPCA(Objective):
    """The first principal component of a stream of X ~ N(0, diag(eigenvalues)).

    A gradient is -(I - v vᵀ) X Xᵀ v, so that ``AsyncServer`` makes exactly the paper's steps::

        v_{k+1} = v_k + mu (v_k - v_{k-1}) + lr (I - v_d v_dᵀ) X_k X_kᵀ v_d,    d = k - tau_k

    v is not brought back to the sphere, neither here nor there: near e_1 the step itself keeps it
    there, and that radial mode is the stiffest (curvature 2 λ_1), the first that delays unsettle.

    Parameters
    ----------
    eigenvalues : torch.Tensor, array or sequence of float
        Of the covariance Σ, shape (dim,): positive, the first one the largest.
    x0 : torch.Tensor, array or sequence of float, optional
        Start, shape (dim,), on the sphere for the paper's; e_1 by default.
    dtype : torch.dtype
        Of all vectors.

    Raises
    ------
    ValueError
        If shapes disagree, or no eigenvalue is the largest.

    References
    ----------
    T. Liu, S. Li, J. Shi, E. Zhou, T. Zhao, "Towards understanding acceleration tradeoff between
    momentum and asynchrony in nonconvex stochastic optimization", NeurIPS 2018.
    """

    samples = 1

    def __init__(
        self, eigenvalues: Any, x0: Any = None, dtype: torch.dtype = torch.float64
    ) -> None:
        self.eigenvalues = torch.as_tensor(eigenvalues, dtype=dtype).clone()
        if self.eigenvalues.ndim != 1 or len(self.eigenvalues) < 2:
            shape = tuple(self.eigenvalues.shape)
            raise ValueError(f"eigenvalues must be a vector of at least 2, got shape {shape}")
        first, others = self.eigenvalues[0], self.eigenvalues[1:]
        if not (bool((self.eigenvalues > 0).all()) and bool((others < first).all())):
            raise ValueError(
                f"eigenvalues={self.eigenvalues.tolist()}: all must be positive and the first "
                "larger than the others"
            )
        self.dim = len(self.eigenvalues)
        start = torch.eye(self.dim, dtype=dtype)[0] if x0 is None else x0
        self.x0 = torch.as_tensor(start, dtype=dtype).clone()
        if self.x0.shape != (self.dim,):
            raise ValueError(
                f"x0 has shape {tuple(self.x0.shape)}, but there are {self.dim} eigenvalues"
            )

    def initial(self) -> Vector:
        """Return a copy of the start x0, shape (dim,)."""
        return self.x0.clone()

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> Vector:
        """Return the next X of the stream, shape (dim,); `indices` mean nothing here."""
        normal = torch.from_numpy(rng.standard_normal(self.dim)).to(self.x0.dtype)
        return self.eigenvalues.sqrt() * normal

    def gradient(self, x: Vector, batch: Vector) -> Vector:
        """Return -(I - x xᵀ) X Xᵀ x, shape (dim,), a tensor of its own."""
        projection = batch @ x
        return x * projection**2 - batch * projection

    def full_gradient(self, x: Vector) -> Vector:
        """Return its mean -(I - x xᵀ) Σ x, shape (dim,), a tensor of its own."""
        image = self.eigenvalues * x
        return x * (x @ image) - image

    def loss(self, x: Vector) -> float:
        """Return the squared sine of the angle between x and e_1."""
        return float(1 - x[0] ** 2 / (x @ x))
