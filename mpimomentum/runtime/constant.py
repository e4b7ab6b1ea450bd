"""An objective without work: what is measured beside it is the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mpimomentum.runtime.host_copies import CPU
from mpimomentum.worker import Batch, Objective, Vector


class Constant(Objective):
    """Its gradient is a constant vector, there at once.

    Parameters
    ----------
    dim : int
    device : torch.device
        Where its vectors are.
    """

    samples = 1
    last_loss = None  # nothing is learnt

    def __init__(self, dim: int, device: torch.device = CPU) -> None:
        self.dim = dim
        self._g = torch.full((dim,), 1e-3, device=device)

    def initial(self) -> Vector:
        """Start at zero."""
        return torch.zeros_like(self._g)

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> Batch:
        """There are no data."""
        return None

    def gradient(self, x: Vector, batch: Batch) -> Vector:
        """Return the constant."""
        return self._g

    def full_gradient(self, x: Vector) -> Vector:
        """Return the constant."""
        return self._g

    def loss(self, x: Vector) -> float:
        """There is none."""
        return 0.0
