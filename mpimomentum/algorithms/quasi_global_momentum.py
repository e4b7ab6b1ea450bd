"""Quasi-global momentum: each rank's momentum follows the models' common way, not its own data.

Every step, the gradient taken at the rank's own model::

    d_i <- mu m_i + G_i(x_i)                       nesterov:  d_i <- mu (mu m_i + G_i) + G_i
    y_i <- sum_j W_ij (x_j - lr d_j)
    m_i <- mu m_i + (1 - mu) (x_i - y_i) / lr;   x_i <- y_i

Mixing has taken out of x_i - y_i most of what is peculiar to the rank's data, so momentum does not
amplify it: on quadratics all models come to rest as far apart as those of D-PSGD (atc), whatever mu
is. The effective step is lr / (1 - mu). Nothing but models is sent. Where lr is 0, no direction is
added to m_i.

Deviation: the paper allows one mu for d_i and one for m_i; as in its experiments they are the same.

References
----------
T. Lin, S. P. Karimireddy, S. U. Stich, M. Jaggi, "Quasi-global momentum: accelerating decentralized
deep learning on heterogeneous data", ICML 2021, Algorithm 1 (QG-DSGDm; nesterov: QG-DSGDm-N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpimomentum.algorithms.checks import momentum, not_negative
from mpimomentum.algorithms.gossip import mixed
from mpimomentum.algorithms.momentum_step import direction, momentum_step
from mpimomentum.worker import Mean, Requires, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Mean[Vector]  # (d,) this rank's iterate
    m: Mean[Vector]  # (d,) quasi-global momentum


@dataclass(frozen=True)
class QuasiGlobalMomentum:
    """Decentralized SGD with momentum of the mixed models' way.

    Parameters
    ----------
    lr : float
        Step size (the paper's η).
    mu : float
        Momentum in [0, 1) (the paper's β and μ).
    nesterov : bool
        QG-DSGDm-N of the paper.
    """

    lr: float
    mu: float
    nesterov: bool = False

    name: ClassVar[str] = "quasi-global-momentum"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "doubly_stochastic"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        momentum("mu", self.mu)

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0 without momentum."""
        return State(x=x0.clone(), m=torch.zeros_like(x0))

    async def step(self, w: Worker, s: State) -> None:
        """Descend, mix, and see which way the model went."""
        g = await w.gradient(s.x, w.sample())
        y = s.x.clone()
        momentum_step(y, s.m.clone(), g, w.lr, self.mu, self.nesterov)
        y = mixed(w.mixing(w.step).in_weights, await w.neighbor_allgather(y))
        s.m.mul_(self.mu).add_((1 - self.mu) * direction(s.x, y, w.lr))
        s.x = y
        w.record(tau=0)
