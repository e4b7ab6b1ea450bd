"""Torch's random numbers, which dropout draws, for each of several ranks in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from mpimomentum.worker import Batch, Objective, Vector


class OwnStream(Objective):
    """An objective whose gradients draw from a stream of torch's own, as on a rank of its own.

    Parameters
    ----------
    objective : Objective
        Everything else stays as it is.
    seed : int
        Of the stream.
    """

    def __init__(self, objective: Objective, seed: int) -> None:
        self.objective = objective
        self.dim = objective.dim
        self._stream = torch.Generator().manual_seed(seed).get_state()

    def __getattr__(self, name: str) -> Any:
        """Answer for `samples`, `last_loss` and what else the objective has."""
        if name == "objective":  # not there yet: while this object is copied or unpickled
            raise AttributeError(name)
        return getattr(self.objective, name)

    def initial(self) -> Vector:
        """Return the start."""
        return self.objective.initial()

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> Batch:
        """Draw a mini-batch."""
        return self.objective.sample(rng, indices)

    def loss(self, x: Vector) -> float:
        """Return f_i(x)."""
        return self.objective.loss(x)

    def gradient(self, x: Vector, batch: Batch) -> Vector:
        """Return a mini-batch's gradient."""
        with self._drawing():
            return self.objective.gradient(x, batch)

    def full_gradient(self, x: Vector) -> Vector:
        """Return the gradient over all data."""
        full: Callable[[Vector], Vector] = self.objective.full_gradient  # type: ignore[attr-defined]
        with self._drawing():
            return full(x)

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        others = torch.get_rng_state()
        torch.set_rng_state(self._stream)
        try:
            yield
        finally:
            self._stream = torch.get_rng_state()
            torch.set_rng_state(others)
