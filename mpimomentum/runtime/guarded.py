"""An objective whose gradients are finite, or whose run ends with a message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mpimomentum.non_finite import Guard, Policy, check, finite
from mpimomentum.runtime.finite_sum import needs_finite_sum
from mpimomentum.worker import Algorithm, Batch, Objective, Vector


def checked(policy: Policy, algorithm: Algorithm[Any]) -> Policy:
    """Return `policy`, unless it is none, or `algorithm` cannot leave a mini-batch out.

    Raises
    ------
    ValueError
    """
    if check(policy) == "skip" and needs_finite_sum(algorithm):
        raise ValueError(
            f"non_finite=skip: {algorithm.name} chooses the samples of its gradients itself, none "
            "can be left out; use abort or ignore"
        )
    return policy


class Guarded(Objective):
    """Leaves out mini-batches whose gradient is not finite, or ends the run there.

    In place of such a mini-batch the rank draws its next one and computes again, so algorithms
    never know. Where the point itself is not finite no mini-batch helps: the gradient is then 0.

    Parameters
    ----------
    objective : Objective
        What is computed; everything else stays as it is.
    guard : Guard
    """

    def __init__(self, objective: Objective, guard: Guard) -> None:
        self.objective = objective
        self.dim = objective.dim
        self._guard = guard
        self._rng: np.random.Generator | None = None
        self._drawn: Batch = None

    def __getattr__(self, name: str) -> Any:
        """Answer for `samples`, `last_loss` and what else the objective has."""
        if name == "objective":  # not there yet: while this object is copied or unpickled
            raise AttributeError(name)
        value = getattr(self.objective, name)
        if name != "gradient_in_parts":
            return value
        if self._guard.policy == "skip":  # a part is with the others before the rest is known
            raise AttributeError(name)
        return self._in_parts

    def initial(self) -> Vector:
        """Return the start."""
        return self.objective.initial()

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> Batch:
        """Draw a mini-batch, and remember from where."""
        batch = self.objective.sample(rng, indices)
        self._rng, self._drawn = (rng, batch) if indices is None else (None, None)
        return batch

    def loss(self, x: Vector) -> float:
        """Return f_i(x)."""
        return self.objective.loss(x)

    def gradient(self, x: Vector, batch: Batch) -> Vector:
        """Return a mini-batch's gradient that is finite: of `batch`, or of a later one.

        Raises
        ------
        NonFinite
        """
        if self._guard.policy != "skip":
            return self._looked_at(self.objective.gradient(x, batch))
        statistics = self._statistics()
        while not finite(g := self.objective.gradient(x, batch)):
            if statistics is not None:  # BatchNorm's have seen the same
                self.objective.load_statistics(statistics)  # type: ignore[attr-defined]
            self._guard.gradient_found(self._words())
            if not finite(x):
                return torch.zeros_like(g)
            if self._rng is None or batch is not self._drawn:
                raise self._guard.error(f"{self._words()}, of samples that cannot be left out")
            batch = self._drawn = self.objective.sample(self._rng)
        self._guard.gradient_is_finite()
        return g

    def full_gradient(self, x: Vector) -> Vector:
        """Return the gradient over all data, if it is finite."""
        full: Callable[[Vector], Vector] = self.objective.full_gradient  # type: ignore[attr-defined]
        return self._looked_at(full(x))

    def _in_parts(self, x: Vector, batch: Batch, emit: Callable[[Vector], None]) -> Vector:
        compute: Callable[..., Vector] = self.objective.gradient_in_parts  # type: ignore[attr-defined]
        # its loss is not known before the whole of it is: that of the last one would be said
        return compute(x, batch, lambda part: emit(self._looked_at(part, _NOT_FINITE)))

    def _looked_at(self, g: Vector, what: str = "") -> Vector:
        if not self._guard.later(g, lambda: what or self._words()) and not finite(g):
            raise self._guard.error(what or self._words())
        return g

    def _statistics(self) -> Vector | None:
        """Return a copy of the model's running statistics, if they may have to be put back."""
        if self._guard.policy != "skip" or not hasattr(self.objective, "load_statistics"):
            return None
        copy: Vector = self.objective.statistics()  # type: ignore[attr-defined]
        return copy if len(copy) else None

    def _words(self) -> str:
        loss = getattr(self.objective, "last_loss", None)
        return _NOT_FINITE + ("" if loss is None else f" (training loss {loss:g})")


_NOT_FINITE = "the gradient is not finite"
