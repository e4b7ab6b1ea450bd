"""Signum and signSGD with majority vote: one bit a coordinate each way; with error feedback, too.

With n workers that hold the same x, beta = 0 being signSGD::

    m_i <- beta m_i + (1 - beta) G_i(x)
    x   <- x - lr (sign(sum_i sign(m_i)) + weight_decay x)

The vote is sharded: a rank sends each other rank the signs of that rank's slice of the coordinates,
counts the votes on its own slice, and sends the majority to all. So it sends 2(n-1)/n bits a
coordinate, whatever n is.

``error_feedback`` takes the means of signs with a scale instead of a vote, and sends what they
leave out with the next step (:mod:`mpimomentum.algorithms.error_feedback`).

Deviation: the papers take sign(0) = 0; one bit cannot say that, so zeros and ties count as +, and
a coordinate whose gradient is always 0 drifts. With error feedback and beta > 0, m_i takes the
place of G_i; beta = 0 is the paper's.

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
from mpimomentum.algorithms.adversaries import check_ranks, disturb, parse
from mpimomentum.algorithms.checks import momentum, not_negative, one_of
from mpimomentum.algorithms.packed_slices import empty_slices, joined, own_slice
from mpimomentum.codecs import sign
from mpimomentum.worker import Requires, Vector, Worker

AGREEMENT_EVERY = 64  # steps: counting takes as long as a step without its gradient


@dataclass
class State:
    """What one rank keeps."""

    x: Vector  # (d,) iterate, the same on all ranks
    m: Vector  # (d,) momentum of this rank; empty if beta = 0


@dataclass(frozen=True)
class Signum:
    """Momentum SGD by majority vote of signs; signSGD is beta = 0.

    Parameters
    ----------
    lr : float
        Step size η: every coordinate moves by as much each step, so about a tenth of SGD's or less.
    beta : float
        Momentum β in [0, 1), a moving average.
    weight_decay : float
        λ, applied after the vote.
    error_feedback : bool
        Send signs with their mean size, and what they leave out with the next step: EF-signSGD,
        whose lr is that of SGD.
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
        if self.scale != "global" and not self.error_feedback:
            raise ValueError(f"scale={self.scale!r}: a vote has none; set error_feedback too")
        if parse(self.adversaries) and self.error_feedback:
            raise ValueError(
                f"adversaries={self.adversaries!r} with error_feedback: scaled signs are averaged, "
                "not voted on, so one rank can turn them; leave one of the two out"
            )

    def roles(self, size: int) -> tuple[range, range]:
        """All work; adversaries that are not there are refused."""
        check_ranks(self.adversaries, size)
        return range(size), range(size)

    def init(self, w: Worker, x0: Vector) -> State | ef.State:
        """Start at x0 without momentum."""
        m = torch.zeros_like(x0 if self.beta else x0[:0])
        if self.error_feedback:
            sizes = w.layer_sizes if self.scale == "layer" else (len(x0),)
            return ef.start(w, x0, m, sizes)
        return State(x=x0.clone(), m=m)

    async def step(self, w: Worker, s: State | ef.State) -> None:
        """Send signs, slice by slice; then descend along what comes back."""
        g = await w.gradient(s.x, w.sample())
        slices, bits = empty_slices(w, s.x)
        if self.beta:
            sign.signum(s.m, g, self.beta, out=bits)
        if isinstance(s, ef.State):
            await ef.descend(w, s, s.m if self.beta else g, slices)
            w.record(tau=0)
            return
        if not self.beta:
            sign.pack(g, out=bits)
        disturb(bits, len(s.x), parse(self.adversaries).get(w.rank), w.rng)
        votes = await w.alltoall(slices)
        majority = await w.allgather(sign.vote(votes))
        sign.apply(s.x, joined(majority, len(s.x)), w.lr, w.weight_decay)
        w.record(tau=0, **_agreement(w, votes, len(s.x)))


def _agreement(w: Worker, votes: Vector, dim: int) -> dict[str, float]:
    """Return, now and then, the share of votes on this rank's slice that are the majority's."""
    here = own_slice(w, dim)
    if w.step % AGREEMENT_EVERY or here.start == here.stop:
        return {}
    lead = sign.margin(votes, 8 * votes.shape[1])[: here.stop - here.start]
    mean = int(lead.abs_().sum()) / len(lead)
    return {"agreement": (1 + mean / w.size) / 2}
