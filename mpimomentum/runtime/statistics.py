"""Running statistics of BatchNorm and the like, which differ between the ranks: their mean.

They are not parameters, so no algorithm averages them. Each rank's come from its own data at its
own iterates; the averaged model is evaluated with the mean of both kinds, means and variances.
(The variance *between* the ranks' means is left out, as DDP users do who average buffers.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from mpimomentum.worker import Handle, Vector


class Summing(Protocol):
    """What is asked of a worker here."""

    step: int

    def allreduce(self, v: Vector) -> Handle[Vector]:
        """Sum over all ranks."""


def statistics_of(objective: Any) -> Vector:
    """Return an objective's running statistics, float64, shape (s,), on the CPU; s is 0 without."""
    if not hasattr(objective, "statistics"):
        return torch.empty(0, dtype=torch.float64)
    statistics: Vector = objective.statistics()
    return statistics


def mean_of(parts: Sequence[tuple[Vector, int]]) -> Vector:
    """Return the mean of (statistics, steps) over those that made a step, shape (s,).

    Others still have the values that the model came with; those are returned if nobody stepped.
    """
    stepped = [v for v, steps in parts if steps > 0]
    return torch.stack(stepped or [parts[0][0]]).mean(dim=0)


async def mean_over_ranks(w: Summing, objective: Any) -> Vector:
    """Return what :func:`mean_of` does, over the MPI ranks. Collective."""
    own = statistics_of(objective)
    counts = w.step > 0
    row = torch.cat([own if counts else torch.zeros_like(own), own.new_tensor([counts])])
    total = await w.allreduce(row)
    return total[:-1] / total[-1] if total[-1] > 0 else own
