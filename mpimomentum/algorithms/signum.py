"""Signum and signSGD with majority vote: one bit a coordinate each way; with error feedback, too.

With n workers that hold the same x, beta = 0 being signSGD::

    m_i <- beta m_i + (1 - beta) G_i(x)
    x   <- x - lr (sign(sum_i sign(m_i)) + weight_decay x)

References
----------
J. Bernstein, J. Zhao, K. Azizzadenesheli, A. Anandkumar, "signSGD with majority vote is
communication efficient and fault tolerant", ICLR 2019, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mpimomentum.algorithms import error_feedback as ef
from mpimomentum.algorithms import majority_vote as vote
from mpimomentum.algorithms.adversaries import check_ranks, disturb, parse
from mpimomentum.algorithms.checks import momentum, not_negative, one_of
from mpimomentum.algorithms.packed_slices import empty_slices
from mpimomentum.codecs import sign
from mpimomentum.worker import Mean, Requires, Same, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Same[Vector]  # (d,) iterate, the same on all ranks
    m: Mean[Vector]  # (d,) momentum of this rank; empty if beta = 0


@dataclass(frozen=True)
class Signum:
    """Momentum SGD by majority vote of signs; signSGD is beta = 0.

    Parameters
    ----------
    lr : float
        How far every coordinate moves each step; with error feedback, the step size of SGD.
    beta, weight_decay : float
        Momentum in [0, 1), a moving average, 0 for signSGD; λ, applied after the vote.
    error_feedback : bool
        Send signs with their mean size, and what they leave out with the next step.
    scale : {"global", "layer"}
        error_feedback: one mean size for the whole model, or one a parameter tensor.
    adversaries : str
        Ranks that send wrong signs on purpose, RANK:BEHAVIOUR,…: 2:invert,5:random.
    """

    lr: float
    beta: float = 0.9
    weight_decay: float = 0.0
    error_feedback: bool = False
    scale: Literal["global", "layer"] = "global"
    adversaries: str = ""

    name: ClassVar[str] = "signum"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "none"
    decoupled_weight_decay: ClassVar[bool] = True

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        momentum("beta", self.beta)
        not_negative("weight_decay", self.weight_decay)
        one_of("scale", self.scale, ("global", "layer"))
        ef.check(self.error_feedback, self.scale, parse(self.adversaries))

    def roles(self, size: int) -> tuple[range, range]:
        """All work; adversaries that are not there are refused."""
        check_ranks(self.adversaries, size)
        return range(size), range(size)

    def init(self, w: Worker, x0: Vector) -> State | ef.State:
        """Start at x0 without momentum."""
        m = torch.zeros_like(x0 if self.beta else x0[:0])
        if self.error_feedback:
            return ef.start(w, x0, m, w.layer_sizes if self.scale == "layer" else (len(x0),))
        return State(x=x0.clone(), m=m)

    async def step(self, w: Worker, s: State | ef.State) -> None:
        """Send signs, slice by slice; then descend along what comes back."""
        g = await w.gradient(s.x, w.sample())
        slices, bits = empty_slices(w, s.x)
        if self.beta:
            sign.signum(s.m, g, self.beta, out=bits)
        if isinstance(s, ef.State):
            await ef.descend(w, s, s.m if self.beta else g, slices)
            return w.record(tau=0)
        if not self.beta:
            sign.pack(g, out=bits)
        disturb(bits, len(s.x), parse(self.adversaries).get(w.rank), w.rng)
        votes = await vote.descend(w, s.x, slices)
        return w.record(tau=0, **await vote.agreement(w, votes, len(s.x)))
