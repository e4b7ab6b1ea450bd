"""SGP: stochastic gradient push, for directed graphs on which models alone would drift apart.

Each rank pushes shares of its vector v_i and of its weight w_i, v_i = x_0 and w_i = 1 at first; the
model is x_i = v_i / w_i, and the gradient is taken there::

    u_i <- mu u_i + G_i(x_i)
    atc (the paper):  v_i <- sum_j W_ij (v_j - lr u_j)
    cta:              v_i <- sum_j W_ij v_j - lr u_i
    w_i <- sum_j W_ij w_j;   x_i <- v_i / w_i

The columns of W sum to 1, so a rank need only divide what it gives away: the mean of the v_i makes
steps of SGD and the w_i sum to n. Where the rows do not sum to 1, w_i undoes that some ranks are
given more than others. With a doubly stochastic W all w_i are 1 and this is D-PSGD.
``nesterov`` descends along mu u + G in place of u.

cta sends the old v, so the exchange runs while the gradient is computed; weights always do.

Deviation: cta is ours. v_i is not kept: it is x_i w_i.

References
----------
M. Assran, N. Loizou, N. Ballas, M. Rabbat, "Stochastic gradient push for distributed deep
learning", ICML 2019, Algorithm 1 and, with momentum, the one in its supplement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from mpimomentum.algorithms.checks import momentum, not_negative, one_of
from mpimomentum.algorithms.gossip import mixed
from mpimomentum.algorithms.momentum_step import momentum_step
from mpimomentum.worker import Fresh, Mean, Requires, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Annotated[Vector, "mean by weight"]  # (d,) this rank's model
    u: Mean[Vector]  # (d,) local momentum
    weight: Fresh[Vector]  # (1,) float64: its push-sum weight


@dataclass(frozen=True)
class SGP:
    """Stochastic gradient push.

    Parameters
    ----------
    lr : float
        Step size (the paper's γ).
    mu : float
        Local momentum in [0, 1).
    variant : {"atc", "cta"}
    nesterov : bool
        The paper's form of momentum.
    """

    lr: float
    mu: float = 0.0
    variant: Literal["atc", "cta"] = "atc"
    nesterov: bool = False

    name: ClassVar[str] = "sgp"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "column_stochastic"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        momentum("mu", self.mu)
        one_of("variant", self.variant, ("atc", "cta"))

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0 with weight 1."""
        return State(x0.clone(), torch.zeros_like(x0), torch.ones(1, dtype=torch.float64))

    async def step(self, w: Worker, s: State) -> None:
        """Push shares of vector and weight along the edges of this step."""
        shares = w.mixing(w.step).in_weights
        gradient = w.gradient(s.x, w.sample())
        weights = w.neighbor_allgather(s.weight)
        v = s.x * float(s.weight)
        if self.variant == "cta":
            vectors = w.neighbor_allgather(v)
            g = await gradient
            v = mixed(shares, await vectors)
            momentum_step(v, s.u, g, w.lr, self.mu, self.nesterov)
        else:
            momentum_step(v, s.u, await gradient, w.lr, self.mu, self.nesterov)
            v = mixed(shares, await w.neighbor_allgather(v))
        s.weight = mixed(shares, await weights)
        s.x = v.div_(float(s.weight))
        w.record(tau=0)
