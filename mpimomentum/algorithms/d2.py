"""D²: decentralized SGD whose fixed point does not depend on how the data are spread.

With z_0 = x_0 - lr G_0, and from then on::

    z_t     = 2 x_t - x_{t-1} - lr_t G_t + lr_{t-1} G_{t-1}
    x_{t+1} = sum_j W_ij z_t^j

G_{t-1} is the stored gradient of the step before, with the step size it was taken with. The mean
over the ranks makes plain SGD steps, mean(x_{t+1}) = mean(x_t) - lr_t mean(G_t), while what differs
between the ranks' gradients cancels instead of adding up. W must be symmetric with its smallest
eigenvalue above -1/3, strictly: an even ring with weights 1/3 is not; (W + I)/2 always is.

What a checkpoint keeps, x_{t-1} and lr_{t-1} G_{t-1} included, goes on as if nothing had happened;
a model that is set from outside begins anew with the first step.

References
----------
H. Tang, X. Lian, M. Yan, C. Zhang, J. Liu, "D²: decentralized training over decentralized data",
ICML 2018, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpimomentum.algorithms.checks import not_negative
from mpimomentum.algorithms.gossip import mixed
from mpimomentum.codecs import mix
from mpimomentum.worker import Requires, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    no_resizing: ClassVar[str] = (
        "each rank corrects itself by its own last two iterates and gradients"
    )

    x: Vector  # (d,) this rank's iterate
    x_before: Vector  # (d,) of the step before; x_0 at first
    descent: Vector  # (d,) lr times the gradient of the step before; 0 at first


@dataclass(frozen=True)
class D2:
    """Decentralized SGD with variance reduction between ranks.

    Parameters
    ----------
    lr : float
        Step size (the paper's γ).
    """

    lr: float

    name: ClassVar[str] = "d2"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "above_minus_third"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0, as if it had been there before and the gradient 0."""
        return State(x=x0.clone(), x_before=x0.clone(), descent=torch.zeros_like(x0))

    async def step(self, w: Worker, s: State) -> None:
        """Extrapolate, correct by the two last gradients, and mix."""
        g = await w.gradient(s.x, w.sample())
        descent = w.lr * g
        z = mix.mix([s.x, s.x_before, descent, s.descent], [2, -1, -1, 1])
        s.x_before, s.descent = s.x, descent
        s.x = mixed(w.mixing(w.step).in_weights, await w.neighbor_allgather(z))
        w.record(tau=0)
