"""Gradient tracking: every rank follows an estimate of the mean gradient.

With y_{-1} = 0 and G_{-1} = 0, the gradient taken at the rank's own model::

    y_i <- sum_j W_ij y_j + G_i(x_i) - G_i(x_i of the step before)
    x_i <- sum_j W_ij (x_j - lr y_j)

The mean of the y_i is the mean of the G_i at every step, and the y_i agree in the end; so all
models come to rest at the minimum, however the data are spread, as with D². Any doubly stochastic W
will do, directed and time-varying graphs included, at the price of a second vector per neighbour.
The y_i travel while the gradient is computed.

References
----------
A. Nedić, A. Olshevsky, W. Shi, "Achieving geometric convergence for distributed optimization over
time-varying graphs", SIAM Journal on Optimization, 2017 (DIGing, here adapt-then-combine).

S. Pu, A. Nedić, "Distributed stochastic gradient tracking methods", Mathematical Programming, 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpimomentum.algorithms.checks import not_negative
from mpimomentum.algorithms.gossip import mixed
from mpimomentum.worker import Requires, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    no_resizing: ClassVar[str] = "what the ranks track adds up to the gradients that each had last"

    x: Vector  # (d,) this rank's iterate
    y: Vector  # (d,) its estimate of the mean gradient
    g: Vector  # (d,) its gradient of the step before


@dataclass(frozen=True)
class GradientTracking:
    """Decentralized SGD along tracked gradients.

    Parameters
    ----------
    lr : float
        Step size.
    """

    lr: float

    name: ClassVar[str] = "gradient-tracking"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "doubly_stochastic"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0, with nothing tracked yet."""
        return State(x=x0.clone(), y=torch.zeros_like(x0), g=torch.zeros_like(x0))

    async def step(self, w: Worker, s: State) -> None:
        """Bring the estimate up to date, then descend along it and mix."""
        weights = w.mixing(w.step).in_weights
        gradient = w.gradient(s.x, w.sample())
        estimates = w.neighbor_allgather(s.y)
        g = await gradient
        s.y = mixed(weights, await estimates).add_(g).sub_(s.g)
        s.g.copy_(g)
        s.x = mixed(weights, await w.neighbor_allgather(s.x - w.lr * s.y))
        w.record(tau=0)
