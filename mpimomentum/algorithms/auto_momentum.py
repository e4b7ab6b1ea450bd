"""Momentum that knows its staleness: ``mu="auto"`` of the asynchronous algorithms.

With curvature h along the way and staleness tau, heavy ball is stable up to a certain mu
(:mod:`mpimomentum.algorithms.stability`). Both are measured while training, and mu is chosen::

    mu = min(mu_max, largest mu that is stable at SAFETY lr h and tau);    without staleness mu_max

tau is the mean over about the last MEMORY updates, lr h a ratio of such means
(:mod:`mpimomentum.algorithms.secant`), the largest of the last 10 MEMORY updates or so. Assumed:
curvature and lr change slowly, and what is stiff takes part in the steps, as it does once it begins
to oscillate. Until there is a measurement mu is 0.

On a server that is all. In AD-PSGD momentum is local and a worker's own step is its unit of time,
in which all n together move the mean model by one step. If gossip mixed at once that would obey::

    (z - 1)(1 - mu z^-n) + lr h/n z^-tau = 0    (z: one update of anyone)

whose edge is that above, within some percent, at a delay of (tau - (n - 1)/2)/n. Gossip does not
mix at once, and a worker's gradient is fresh for its own model: AD-PSGD bears more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mpimomentum.algorithms.checks import momentum
from mpimomentum.algorithms.stability import largest_a, largest_mu
from mpimomentum.worker import Vector, Worker

if TYPE_CHECKING:
    from mpimomentum.algorithms.ad_psgd import ADPSGD
    from mpimomentum.algorithms.async_server import AsyncServer

SAFETY = 2.0
MEMORY = 100
MU_MAX = 0.9

Mu = float | Literal["auto"]


def check(a: ADPSGD | AsyncServer) -> None:
    """Refuse a momentum outside [0, 1), and what only "auto" has a use for."""
    momentum("mu_max", a.mu_max)
    if a.mu != "auto":
        momentum("mu", a.mu)
        if a.auto_lr or a.mu_max != MU_MAX:
            given = f"auto_lr={a.auto_lr}" if a.auto_lr else f"mu_max={a.mu_max}"
            raise ValueError(f"{given}: mu={a.mu} is fixed; leave it out, or choose mu='auto'")


@dataclass
class Edge:
    """Measured staleness and stiffness, and what they allow."""

    tau: float = 0.0  # mean staleness
    over: float = 0.0  # mean of u·lr(g - g')
    under: float = 0.0  # mean of u·(x - x')
    a: float = 0.0  # lr h; 0: not known yet
    seen: int = 0  # updates

    def see(self, tau: float, over: float, under: float) -> None:
        """Take an update's measurements in."""
        self.seen += 1
        share = max(1 / self.seen, 1 / MEMORY)
        self.tau += share * (tau - self.tau)
        self.over += share * (over - self.over)
        self.under += share * (under - self.under)
        now = self.over / self.under if self.under > 0 else 0.0
        self.a = max(now, self.a * (1 - 0.1 / MEMORY) if self.seen > MEMORY else 0.0)

    def mu(self, ceiling: float, scale: float = 1.0) -> float:
        """Return the momentum to use with `scale` times the step size."""
        if self.tau == 0:
            return ceiling
        return min(ceiling, largest_mu(SAFETY * scale * self.a, self.tau)) if self.a else 0.0

    def scale(self) -> float:
        """Return how much of the step size is stable without momentum."""
        return min(1.0, largest_a(0.0, self.tau) / (SAFETY * self.a)) if self.a else 1.0


async def served(
    a: AsyncServer, w: Worker, edge: Edge | None, tau: float, update: Vector
) -> tuple[float, dict[str, float]]:
    """Return the momentum of a server's update, and what to record of it."""
    if edge is None:
        assert a.mu != "auto"
        return a.mu, {}
    over, under = await w.numbers(update[-2:])
    edge.see(tau, over, under)
    mu = edge.mu(a.mu_max)
    return mu, {"mu": mu, "lr_h": edge.a}
