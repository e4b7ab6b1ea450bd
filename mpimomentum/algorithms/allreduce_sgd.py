"""AllReduce-SGD: synchronous data-parallel SGD with heavy-ball momentum, the baseline.

With n workers that hold the same x::

    m <- mu m + (1/n) sum_i G_i(x)
    x <- x - lr m

One step is one step of SGD on the union of the mini-batches. Every step waits for the slowest
worker.

References
----------
B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpimomentum.algorithms.checks import momentum, not_negative
from mpimomentum.codecs import mix
from mpimomentum.worker import Requires, Same, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Same[Vector]  # (d,) iterate, the same on all ranks
    m: Same[Vector]  # (d,) momentum, the same on all ranks


@dataclass(frozen=True)
class AllReduceSGD:
    """Synchronous SGD with heavy-ball momentum.

    Parameters
    ----------
    lr : float
        Step size η.
    mu : float
        Momentum μ in [0, 1).
    """

    lr: float
    mu: float = 0.0

    name: ClassVar[str] = "allreduce-sgd"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "none"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        momentum("mu", self.mu)

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0 without momentum."""
        return State(x=x0.clone(), m=torch.zeros_like(x0))

    async def step(self, w: Worker, s: State) -> None:
        """Compute the mean gradient, then take a momentum step."""
        mean = await w.mean_gradient(s.x, w.sample())
        mix.heavy_ball(s.x, s.m, mean, w.lr, self.mu)
        w.record(tau=0)
