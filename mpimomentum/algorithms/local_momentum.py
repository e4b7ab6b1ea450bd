"""PR-SGD-Momentum: momentum SGD on each rank by itself; all average now and then.

Every step, on each rank::

    u_i <- mu u_i + G_i(x_i)
    x_i <- x_i - lr u_i                     option I, heavy ball
    x_i <- x_i - lr (mu u_i + G_i(x_i))     option II, nesterov

and after every I = local_steps of them u_i and x_i become the mean over all ranks. Momentum is
averaged, not set to 0. I = 1 is synchronous momentum SGD. With data that differ between the ranks a
longer I has a bias; with equal distributions n ranks reduce the variance n times for every I.

The output is the mean of all models, also after a number of steps that I does not divide.

References
----------
H. Yu, R. Jin, S. Yang, "On the linear speedup analysis of communication efficient momentum SGD for
distributed non-convex optimization", ICML 2019, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpimomentum.algorithms.checks import at_least_one, momentum, not_negative
from mpimomentum.algorithms.momentum_step import momentum_step
from mpimomentum.worker import Mean, Requires, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Mean[Vector]  # (d,) this rank's iterate
    u: Mean[Vector]  # (d,) this rank's momentum


@dataclass(frozen=True)
class LocalMomentum:
    """Local momentum SGD with periodic averaging of models and momenta.

    Parameters
    ----------
    lr : float
        Step size (the paper's γ).
    mu : float
        Momentum in [0, 1) (the paper's β).
    local_steps : int
        Steps from one average to the next (the paper's I).
    nesterov : bool
        Option II of the paper.
    """

    lr: float
    mu: float
    local_steps: int
    nesterov: bool = False

    name: ClassVar[str] = "local-momentum"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "none"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        momentum("mu", self.mu)
        at_least_one("local_steps", self.local_steps)

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0 without momentum."""
        return State(x=x0.clone(), u=torch.zeros_like(x0))

    async def step(self, w: Worker, s: State) -> None:
        """Take a momentum step; average when it is time."""
        g = await w.gradient(s.x, w.sample())
        momentum_step(s.x, s.u, g, w.lr, self.mu, self.nesterov)
        if (w.step + 1) % self.local_steps == 0:
            models, momenta = w.allreduce(s.x), w.allreduce(s.u)
            s.x, s.u = await models / w.size, await momenta / w.size
        w.record(tau=0)
