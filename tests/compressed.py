"""For the tests of vectors in fewer bytes: gradients that do not depend on the model."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import mpimomentum as mm
from mpimomentum.worker import Vector


class Drawn:
    """The gradient is rank r's own vector, for its first `steps` steps, then 0.

    So what all models come to in sum is known exactly, however they were mixed. Sizes of the
    coordinates differ by orders of magnitude.

    Parameters
    ----------
    rank : int
    dim : int
    steps : int
    dtype : torch.dtype
    """

    samples = 1

    def __init__(self, rank: int, dim: int, steps: int, dtype: torch.dtype = torch.float64) -> None:
        self.dim = dim
        self._left = steps
        draw = torch.Generator().manual_seed(rank)
        sizes = torch.exp(3 * torch.randn(dim, generator=torch.Generator().manual_seed(99)))
        self.g = (torch.randn(dim, generator=draw) * sizes).to(dtype)

    def initial(self) -> Vector:
        return torch.zeros_like(self.g)

    def sample(self, rng: Any, indices: Any = None) -> None:
        return None

    def gradient(self, x: Vector, batch: Any) -> Vector:
        self._left -= 1
        return self.g if self._left >= 0 else torch.zeros_like(self.g)

    def loss(self, x: Vector) -> float:
        return 0.0


def drawn(dim: int, steps: int, dtype: torch.dtype = torch.float64) -> Any:
    """Return what makes the objective of a rank."""
    return lambda rank, size: Drawn(rank, dim, steps, dtype)


def descended(run: mm.Run, lr: float, dim: int, steps: int) -> Vector:
    """Return the mean model that gradients alone would have made."""
    moves = [min(int(k), steps) * Drawn(r, dim, 0).g for r, k in enumerate(run.updates)]
    return -lr * torch.stack(moves).mean(0)


def with_wire(algorithm: Any, wire: str) -> Any:
    return dataclasses.replace(algorithm, wire=wire)
