"""Decentralized momentum SGD: neighbours average their momenta as well as their models.

Every step, the gradient taken at the rank's own model::

    u_i <- mu u_i + G_i(x_i)
    x_i <- x_i - lr u_i                     option I, heavy ball
    x_i <- x_i - lr (mu u_i + G_i(x_i))     option II, nesterov
    u_i <- sum_j W_ij u_j;   x_i <- sum_j W_ij x_j

Momentum is not normalised: the effective step is lr / (1 - mu). Without the exchange of u the
momenta drift apart with the ranks' data, and the models with them. ``wire``: both travel in fewer
bytes, see ``replicas.py``.

References
----------
H. Yu, R. Jin, S. Yang, "On the linear speedup analysis of communication efficient momentum SGD for
distributed non-convex optimization", ICML 2019, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpimomentum.algorithms import replicas
from mpimomentum.algorithms.checks import momentum, not_negative
from mpimomentum.algorithms.momentum_step import momentum_step
from mpimomentum.codecs.wire import Wire
from mpimomentum.worker import Fresh, Mean, Requires, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Mean[Vector]  # (d,) this rank's iterate
    u: Mean[Vector]  # (d,) this rank's momentum
    replicas: Fresh[Vector | None]  # (k, d) what neighbours know of x, if not all; replicas.py
    u_replicas: Fresh[Vector | None]  # the same of u


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
    wire : {"float32", "bf16", "int8"}
        How vectors travel.
    """

    lr: float
    mu: float
    nesterov: bool = False
    wire: Wire = "float32"

    name: ClassVar[str] = "decentralized-momentum"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "doubly_stochastic"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        momentum("mu", self.mu)
        replicas.check(self.wire)

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0 without momentum."""
        u = torch.zeros_like(x0)
        known = (replicas.start(w, v, self.wire) for v in (x0, u))
        return State(x0.clone(), u, *known)

    async def step(self, w: Worker, s: State) -> None:
        """Take a momentum step, then mix with the neighbours of this step."""
        g = await w.gradient(s.x, w.sample())
        momentum_step(s.x, s.u, g, w.lr, self.mu, self.nesterov)
        weights = w.mixing(w.step).in_weights
        momenta = replicas.send(w, s.u, s.u_replicas, self.wire)
        models = replicas.send(w, s.x, s.replicas, self.wire)
        s.u = replicas.combine(w, weights, s.u, await momenta, s.u_replicas, self.wire)
        s.x = replicas.combine(w, weights, s.x, await models, s.replicas, self.wire)
        w.record(tau=0)
