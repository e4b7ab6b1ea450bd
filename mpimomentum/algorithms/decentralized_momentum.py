"""Decentralized momentum SGD: neighbours average their momenta as well as their models.

Every step, the gradient taken at the rank's own model::

    u_i <- mu u_i + G_i(x_i)
    x_i <- x_i - lr u_i                     option I, heavy ball
    x_i <- x_i - lr (mu u_i + G_i(x_i))     option II, nesterov
    u_i <- sum_j W_ij u_j;   x_i <- sum_j W_ij x_j

Momentum is not normalised: the effective step is lr / (1 - mu). Without the exchange of u the
momenta drift apart with the ranks' data, and the models with them.

References
----------
H. Yu, R. Jin, S. Yang, "On the linear speedup analysis of communication efficient momentum SGD for
distributed non-convex optimization", ICML 2019, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpimomentum.algorithms.checks import momentum, not_negative
from mpimomentum.algorithms.gossip import mixed
from mpimomentum.algorithms.momentum_step import momentum_step
from mpimomentum.worker import Mean, Requires, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Mean[Vector]  # (d,) this rank's iterate
    u: Mean[Vector]  # (d,) this rank's momentum


@dataclass(frozen=True)
class DecentralizedMomentum:
    """SGD with momentum on a graph, both models and momenta mixed.

    Parameters
    ----------
    lr : float
        Step size (the paper's γ).
    mu : float
        Momentum in [0, 1) (the paper's β).
    nesterov : bool
        Option II of the paper.
    """

    lr: float
    mu: float
    nesterov: bool = False

    name: ClassVar[str] = "decentralized-momentum"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "doubly_stochastic"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        momentum("mu", self.mu)

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0 without momentum."""
        return State(x=x0.clone(), u=torch.zeros_like(x0))

    async def step(self, w: Worker, s: State) -> None:
        """Take a momentum step, then mix with the neighbours of this step."""
        g = await w.gradient(s.x, w.sample())
        momentum_step(s.x, s.u, g, w.lr, self.mu, self.nesterov)
        weights = w.mixing(w.step).in_weights
        momenta, models = w.neighbor_allgather(s.u), w.neighbor_allgather(s.x)
        s.u, s.x = mixed(weights, await momenta), mixed(weights, await models)
        w.record(tau=0)
