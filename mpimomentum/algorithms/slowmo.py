"""SlowMo: local SGD whose averages take a step of momentum of their own.

A round is I = local_steps steps of SGD with momentum on each rank by itself, from the x_0 that all
share; then, with the mean x_I of their models::

    u   <- slow_mu u + (x_0 - x_I) / lr
    x_0 <- x_0 - slow_lr lr u

At the end of a round the base's momenta are set to 0 (``reset``), stay as they are (``keep``), or
become their mean (``average``): the paper allows all three. slow_mu = 0 and slow_lr = 1 with
``average`` is ``local-momentum``; one local step with mu = 0 is synchronous heavy ball.

lr is that of a round's last step; where it is 0, u only forgets. The output is the mean of all
models, also after a number of steps that I does not divide.

References
----------
J. Wang, V. Tantia, N. Ballas, M. Rabbat, "SlowMo: improving communication-efficient distributed SGD
with slow momentum", ICLR 2020, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mpimomentum.algorithms.checks import at_least_one, momentum, not_negative, one_of
from mpimomentum.algorithms.momentum_step import direction, momentum_step
from mpimomentum.worker import Mean, Requires, Same, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Mean[Vector]  # (d,) this rank's iterate
    m: Mean[Vector]  # (d,) this rank's momentum
    start: Same[Vector]  # (d,) where the round began, the same on all ranks
    u: Same[Vector]  # (d,) slow momentum, the same on all ranks


@dataclass(frozen=True)
class SlowMo:
    """Local momentum SGD with slow momentum on its averages.

    Parameters
    ----------
    lr : float
        Step size of the base (the paper's γ).
    mu : float
        Momentum of the base in [0, 1).
    local_steps : int
        Steps from one average to the next (the paper's τ).
    slow_mu : float
        Slow momentum in [0, 1) (the paper's β).
    slow_lr : float
        Slow step size (the paper's α).
    buffers : {"average", "reset", "keep"}
        What becomes of the base's momenta at an average.
    nesterov : bool
        Nesterov momentum in the base.
    """

    lr: float
    mu: float
    local_steps: int
    slow_mu: float = 0.5
    slow_lr: float = 1.0
    buffers: Literal["average", "reset", "keep"] = "average"
    nesterov: bool = False

    name: ClassVar[str] = "slowmo"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "none"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        momentum("mu", self.mu)
        at_least_one("local_steps", self.local_steps)
        momentum("slow_mu", self.slow_mu)
        not_negative("slow_lr", self.slow_lr)
        one_of("buffers", self.buffers, ("average", "reset", "keep"))

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0 without momentum of either kind."""
        return State(x0.clone(), torch.zeros_like(x0), x0.clone(), torch.zeros_like(x0))

    async def step(self, w: Worker, s: State) -> None:
        """Take a step of the base; when it is time, average and take a slow step."""
        momentum_step(s.x, s.m, await w.gradient(s.x, w.sample()), w.lr, self.mu, self.nesterov)
        if (w.step + 1) % self.local_steps == 0:
            mean = await w.allreduce(s.x) / w.size
            if self.buffers != "keep":
                s.m = await w.allreduce(s.m) / w.size if self.buffers == "average" else 0 * s.m
            s.x = s.start - self.slow_lr * (s.start - mean + self.slow_mu * w.lr * s.u)
            s.u.mul_(self.slow_mu).add_(direction(s.start, mean, w.lr))
            s.start.copy_(s.x)
        w.record(tau=0)
