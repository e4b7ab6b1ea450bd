"""Katyusha X: SVRG with momentum between its epochs.

f is the mean of the losses of all ranks' samples, which need not be convex one by one, psi a
proximal term (prox.py). One step is one epoch of SVRG from the anchor x_{k+1}::

    g <- grad f(x_{k+1});  v <- x_{k+1}
    M times:  v <- prox(v - lr (g + mean over a mini-batch of (grad f_i(v) - grad f_i(x_{k+1}))))
    y_{k+1} <- v

M = 1, 2, … is geometrically distributed with mean m = inner_steps. The one more line is::

    x_{k+1} = (1.5 y_k + 0.5 x_k - (1-tau) y_{k-1}) / (1+tau),   tau = 0.5 sqrt(m lr sigma)
    x_{k+1} = ((3k+1) y_k + (k+1) x_k - (2k-2) y_{k-1}) / (2k+4),   if sigma is 0

from k = 0, y_{-1} = y_0 = x_0; docs/algorithms.md says why from 0. Both are written as y_k and what
is added to it, so that tau = 1/2 is plain SVRG bit by bit.

References
----------
Z. Allen-Zhu, "Katyusha X: practical momentum method for stochastic sum-of-nonconvex optimization",
ICML 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpimomentum.algorithms.checks import variance_reduced
from mpimomentum.algorithms.drawn_samples import DrawnSamples
from mpimomentum.algorithms.prox import parse
from mpimomentum.worker import Requires, Same, Vector, Worker


@dataclass
class State:
    """What one rank keeps, the same on all ranks; enough to go on within an epoch, too."""

    x: Same[Vector]  # (d,) y_k, the model
    anchor: Same[Vector]  # (d,) x_{k+1}
    v: Same[Vector]  # (d,) inner iterate
    g: Same[Vector]  # (d,) gradient of f at the anchor
    k: Same[int] = 0  # epochs made
    left: Same[int] = 0  # inner steps left of this one


@dataclass(frozen=True)
class KatyushaX:
    """Variance-reduced gradients, with momentum between epochs.

    Parameters
    ----------
    lr : float
        Step size η; min(1, √(b/m))/(2L) at most, L the smoothness of every sample's loss.
    inner_steps : int
        Mean number m of inner steps of an epoch; the paper's is the number of samples over b.
    batch : int
        Samples b of a mini-batch, drawn with replacement from those of all ranks.
    sigma : float
        Strong convexity σ of f + ψ, at most 1/(mη); 0 if it is not known.
    prox : str, optional
        ψ: l1:WEIGHT or l2:WEIGHT.
    """

    lr: float
    inner_steps: int
    batch: int = 1
    sigma: float = 0.0
    prox: str | None = None

    name: ClassVar[str] = "katyusha-x"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "none"
    finite_sum: ClassVar[bool] = True

    def __post_init__(self) -> None:
        variance_reduced(self.lr, self.inner_steps, self.batch, self.sigma)
        parse(self.prox)

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0, with no epoch begun."""
        return State(x=x0.clone(), anchor=x0.clone(), v=x0.clone(), g=torch.zeros_like(x0))

    async def step(self, w: Worker, s: State) -> None:
        """Make an epoch of SVRG, or what is left of it, and extrapolate."""
        data = await DrawnSamples.of(w)
        if s.left == 0:
            s.g = await w.allreduce(data.share * await w.full_gradient(s.anchor))
            s.v, s.left = s.anchor, int(w.shared_rng.geometric(1 / self.inner_steps))
        while s.left:
            change = await data.mean_change(w, s.v, s.anchor, self.batch)
            s.v = parse(self.prox)(s.v - w.lr * (s.g + change), w.lr)
            s.left -= 1
        y, s.x, s.k = s.x, s.v, s.k + 1
        tau = 0.5 * (self.inner_steps * w.lr * self.sigma) ** 0.5
        a, b, c = (0.5, 0.5 - tau, 1 + tau) if self.sigma else (s.k + 1, s.k - 3, 2 * s.k + 4)
        s.anchor = s.x + (a * (s.anchor - y) + b * (s.x - y)) / c
        w.record(tau=0)
