"""How stiff the way is, from gradients that are taken anyway, whatever their noise.

A worker compares each gradient g(x) with its last one g'(x'), of another mini-batch, along u::

    lr h = mean of u·lr(g - g') / mean of u·(x - x'),    u = x + lr g' - x'

u is how x came about without g' itself. The noise of neither gradient has a part in it, and so goes
out in the means: an instrumental variable. In |g - g'|/|x - x'| it would pass for curvature. What
differs between the workers' data goes out at once, both gradients being of one worker. Without
noise a single ratio is a quotient of the Hessian, uᵀHs / uᵀs: h itself where all curvatures are h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mpimomentum.algorithms.auto_momentum import Edge
from mpimomentum.worker import Vector, Worker

if TYPE_CHECKING:
    from mpimomentum.algorithms.ad_psgd import ADPSGD
    from mpimomentum.algorithms.async_server import AsyncServer
    from mpimomentum.algorithms.pair_exchange import State


@dataclass
class Secant:
    """What a worker keeps of its last gradient, to measure stiffness with the next."""

    x: Vector  # (d,) the model it was taken at
    g: Vector  # (d,) the gradient
    u: Vector  # (d,) how the model came about since, without it; 0 before there was one
    edge: Edge  # as this worker sees it
    tau: float = 0.0  # of its last update

    @classmethod
    def start(cls, x0: Vector) -> Secant:
        """Return that of a worker without a gradient yet."""
        return cls(x0.clone(), torch.zeros_like(x0), torch.zeros_like(x0), Edge())

    async def measure(
        self, w: Worker, x: Vector, g: Vector, lr: float | Vector, auto_lr: bool
    ) -> tuple[float, float, float]:
        """Return how much of lr to take, and with that u·lr(g - g') and u·(x - x')."""
        products = self.u @ (lr * (g - self.g)), self.u @ (x - self.x)
        over, under = await w.numbers(torch.stack(products))
        self.x.copy_(x)
        self.g.copy_(g)
        self.edge.see(self.tau, over, under)
        scale = self.edge.scale() if auto_lr else 1.0
        return scale, scale * over, under

    def moved(self, x: Vector, own: Vector, tau: float) -> None:
        """Take in the update: u is `x` + `own` from here.

        `x` is the model after it and `own` lr g; or `x` that before and `own` what momentum adds.
        """
        torch.add(x, own, out=self.u).sub_(self.x)
        self.tau = tau


async def measurements(
    a: AsyncServer, w: Worker, secant: Secant | None, x: Vector, g: Vector
) -> tuple[float, ...]:
    """Return what :meth:`Secant.measure` does, and without one that all of lr is taken."""
    return (1.0,) if secant is None else await secant.measure(w, x, g, w.lr, a.auto_lr)


async def local(
    a: ADPSGD, w: Worker, s: State, g: Vector, lr: float | Vector, tau: int
) -> tuple[float | Vector, float, dict[str, float]]:
    """Return the step size and the momentum of an AD-PSGD update, and what to record of them."""
    if s.secant is None:
        assert a.mu != "auto"
        return lr, a.mu, {}
    s.secant.tau = max(0.0, (tau - (w.size - 1) / 2) / w.size)
    scale, _, _ = await s.secant.measure(w, s.x_hat, g, lr, a.auto_lr)
    lr, mu = scale * lr, s.secant.edge.mu(a.mu_max, scale)
    s.secant.moved(s.x.read(), -mu * (lr * s.m), s.secant.tau)
    return lr, mu, {"mu": mu, "lr_h": scale * s.secant.edge.a}
