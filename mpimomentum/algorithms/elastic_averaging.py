"""EASGD: workers tied by springs to a center that they pull along; nobody waits for another worker.

The center is at rank 0. Every I = local_steps steps, while its gradient is computed, a worker reads
the center c and pulls at both ends of its spring, alpha = beta / n::

    x_i <- x_i - alpha (x_i - c);   c <- c + alpha (x_i - c)

and every step it takes, with G_i taken at the model before the pull::

    v_i <- mu v_i - lr G_i(x_i + mu v_i);   x_i <- x_i + v_i

What a worker loses the center gains, whoever else pulled meanwhile: without gradients, the sum of
the x_i and c is conserved. The answer is the center. mu > 0 is the paper's EAMSGD. tau of a step
that pulls = pulls of others since this worker last read the center, n - 1 in the mean; else 0. The
paper pulls at the first of I steps, this at the last.

References
----------
S. Zhang, A. Choromanska, Y. LeCun, "Deep learning with elastic averaging SGD", NeurIPS 2015,
Algorithms 1 and 2 (asynchronous EASGD and EAMSGD).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpimomentum.algorithms.checks import at_least_one, momentum, not_negative
from mpimomentum.worker import Fresh, Mean, Own, Requires, Same, Vector, Window, Worker

HOME = 0  # the center's rank


@dataclass
class State:
    """What one rank keeps."""

    x: Fresh[Vector]  # (d,) this rank's model
    v: Mean[Vector]  # (d,) its last step
    center: Own[Window]  # (d,) at rank 0, empty elsewhere
    seen: Same[int] = 0  # the center's version after the last pull, others' meanwhile left out


@dataclass(frozen=True)
class ElasticAveraging:
    """Asynchronous elastic averaging SGD.

    Parameters
    ----------
    lr : float
        Step size (the paper's η).
    local_steps : int
        Steps from one pull to the next (the paper's τ).
    beta : float
        Elasticity of all springs together, in (0, 1).
    mu : float
        Local Nesterov momentum in [0, 1) (the paper's δ).
    """

    lr: float
    local_steps: int
    beta: float = 0.9
    mu: float = 0.0

    name: ClassVar[str] = "elastic-averaging"
    synchronous: ClassVar[bool] = False
    requires: ClassVar[Requires] = "none"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        at_least_one("local_steps", self.local_steps)
        if not 0 < self.beta < 1:
            raise ValueError(f"beta={self.beta!r} must lie in (0, 1): the center overshoots above")
        momentum("mu", self.mu)

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0, the center too."""
        center = w.window("center", x0 if w.rank == HOME else x0[:0])
        return State(x0.clone(), torch.zeros_like(x0), center)

    async def step(self, w: Worker, s: State) -> None:
        """Pull at the spring while the gradient is computed, then take a step."""
        gradient = w.gradient(s.x + self.mu * s.v, w.sample())
        tau = 0
        if (w.step + 1) % self.local_steps == 0:
            center, version = await s.center.get(HOME)
            tau, s.seen = version - s.seen, version + 1
            pull = (self.beta / w.size) * (s.x - center)
            s.x.sub_(pull)  # and at once the other end: a checkpoint comes between awaits only
            await s.center.add(HOME, pull)
        s.v.mul_(self.mu).sub_(w.lr * await gradient)
        s.x.add_(s.v)
        w.record(tau=tau)

    async def finish(self, w: Worker, s: State) -> None:
        """Take over the center."""
        center, _ = await s.center.get(HOME)
        s.x.copy_(center)
