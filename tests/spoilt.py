"""Objectives with mini-batches whose gradient is not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import mpimomentum as mm

DIM = 6


class Numbered(mm.Quadratic):
    """Batch k of a rank has noise of its own; those in `bad` have no finite gradient.

    With `without`, the bad ones are not drawn in the first place.
    """

    layer_sizes = (1, 4, 1)

    def __init__(
        self, rank: int, bad: dict[int, float], without: bool = False, dim: int = DIM
    ) -> None:
        b = torch.linspace(-1, 1, dim, dtype=torch.float64) + 0.3 * np.cos(rank)
        super().__init__(b=b, x0=torch.full_like(b, 5.0))
        self._rank, self._bad, self._without = rank, bad, without
        self._next = 0
        self.answered: list[int] = []

    def sample(self, rng: np.random.Generator, indices: Any = None) -> int:
        assert indices is None
        while self._without and self._next in self._bad:
            self._next += 1
        self._next += 1
        return self._next - 1

    def gradient(self, x: torch.Tensor, batch: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(1000 * self._rank + batch)
        g = x - self.b + 0.1 * torch.randn(len(x), generator=draw, dtype=x.dtype)
        if batch in self._bad:
            g[batch % len(g)] = self._bad[batch]
        self.answered.append(batch)
        return g


def bad_batches(seed: int, rank: int, sick: int = 1) -> dict[int, float]:
    """Return which batches of `rank` are bad, and what stands in their gradient."""
    if rank != sick:
        return {}
    draw = np.random.default_rng(seed)
    kinds = [float("nan"), float("inf"), -float("inf")]
    return {int(k): kinds[i % 3] for i, k in enumerate(draw.choice(20, 5, replace=False))}
