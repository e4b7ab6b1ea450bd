"""Signum and signSGD with majority vote: one bit a coordinate each way; with error feedback, too.

With n workers that hold the same x, beta = 0 being signSGD::

    m_i <- beta m_i + (1 - beta) G_i(x)
    x   <- x - lr (sign(sum_i sign(m_i)) + weight_decay x)

The vote is sharded: a rank sends each other rank the signs of that rank's slice of the coordinates,
counts the votes on its own slice, and sends the majority to all. So it sends 2(n-1)/n bits a
coordinate, whatever n is.

``error_feedback`` (EF-signSGD) sends signs with a scale, the mean of |p|, and adds what that leaves
out to the next step, at the workers and again where the slices are averaged::

    p_i <- lr G_i(x) + e_i;              D_i = scale(p_i) sign(p_i);   e_i <- p_i - D_i
    q   <- (1/n) sum_i D_i + e;          D   = scale(q) sign(q);       e   <- q - D
    x   <- x - D - lr weight_decay x

Deviation: the papers take sign(0) = 0; one bit cannot say that, so zeros and ties count as +, and
a coordinate whose gradient is always 0 drifts. With error feedback and beta > 0, m_i takes the
place of G_i (Zheng et al. use heavy ball, and blocks where ``scale="layer"`` has layers); beta = 0
is the paper's. With it weights are decayed after the compression, as after the vote.

References
----------
J. Bernstein, J. Zhao, K. Azizzadenesheli, A. Anandkumar, "signSGD with majority vote is
communication efficient and fault tolerant", ICLR 2019, Algorithm 1.

S. P. Karimireddy, Q. Rebjock, S. Stich, M. Jaggi, "Error feedback fixes signSGD and other gradient
compression schemes", ICML 2019, Algorithm 1.

S. Zheng, Z. Huang, J. Kwok, "Communication-efficient distributed blockwise momentum SGD with
error-feedback", NeurIPS 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mpimomentum.algorithms.adversaries import check_ranks, disturb, parse
from mpimomentum.algorithms.checks import momentum, not_negative, one_of
from mpimomentum.codecs import sign
from mpimomentum.worker import Requires, Vector, Worker

AGREEMENT_EVERY = 64  # steps: counting takes as long as a step without its gradient


@dataclass
class State:
    """What one rank keeps; d = 0 for what is not in use."""

    x: Vector  # (d,) iterate, the same on all ranks
    m: Vector  # (d,) this rank's momentum (beta > 0)
    ends: Vector  # (segments,) int64, where each part of x with a scale of its own ends
    p: Vector  # (d,) compressed last; with its scale, this rank's error (error feedback)
    p_scale: Vector  # (segments,)
    q: Vector  # (slice,) the same of the mean on this rank's slice
    q_scale: Vector  # (segments,) the same on all ranks


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

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0 without momentum and without errors."""
        sizes = w.layer_sizes if self.scale == "layer" else (len(x0),)
        ends = torch.tensor([n for n in sizes if n]).cumsum(0)
        none, scale = x0[:0], x0.new_zeros(len(ends) if self.error_feedback else 0)
        shard = x0[_slice(w, len(x0))] if self.error_feedback else none
        return State(
            x=x0.clone(),
            m=torch.zeros_like(x0 if self.beta else none),
            ends=ends,
            p=torch.zeros_like(x0 if self.error_feedback else none),
            p_scale=scale,
            q=torch.zeros_like(shard),
            q_scale=scale.clone(),
        )

    async def step(self, w: Worker, s: State) -> None:
        """Send signs, slice by slice; then descend along what comes back."""
        g = await w.gradient(s.x, w.sample())
        slices = s.x.new_zeros((w.size, _bytes(len(s.x), 8 * w.size)), dtype=torch.uint8)
        bits = slices.view(-1)[: _bytes(len(s.x))]
        if self.beta:
            sign.signum(s.m, g, self.beta, out=bits)
            g = s.m
        if self.error_feedback:
            await self._step_by_mean(w, s, g, slices, bits)
            w.record(tau=0)
            return
        if not self.beta:
            sign.pack(g, out=bits)
        disturb(bits, len(s.x), parse(self.adversaries).get(w.rank), w.rng)
        votes = await w.alltoall(slices)
        majority = await w.allgather(sign.vote(votes))
        sign.apply(s.x, majority.view(-1)[: len(bits)], w.lr, w.weight_decay)
        w.record(tau=0, **_agreement(w, votes, len(s.x)))

    async def _step_by_mean(
        self, w: Worker, s: State, g: Vector, slices: Vector, bits: Vector
    ) -> None:
        """Compress what goes out, and the mean of what comes in on this rank's slice."""
        sizes = s.ends.diff(prepend=s.ends.new_zeros(1))
        _, l1 = sign.ef(s.p, g, w.lr, s.p_scale, s.ends, out=bits)
        s.p_scale = (l1 / sizes).to(s.x)
        sent, scales = w.alltoall(slices), w.allgather(s.p_scale)
        first, m = _slice(w, len(s.x)).start, len(s.q)
        signs, shares = (await sent)[:, : _bytes(m)], (await scales) / w.size
        mean = sign.decode(signs, shares, s.ends, torch.empty_like(s.q), first)
        mine = torch.zeros_like(slices[0])
        here = (s.ends - first).clamp(0, m)
        _, l1 = sign.ef(s.q, mean, 1.0, s.q_scale, here, out=mine[: _bytes(m)])
        sums, gathered = w.allgather(l1), w.allgather(mine)
        s.q_scale = (sum(await sums) / sizes).to(s.x)  # in order of rank: a layer may span slices
        everyones = (await gathered).view(-1)[: len(bits)]
        sign.descend(s.x, everyones, s.q_scale, s.ends, w.lr * w.weight_decay)


def _bytes(n: int, bits: int = 8) -> int:
    return -(-n // bits)


def _slice(w: Worker, dim: int) -> slice:
    """Return the coordinates that this rank votes on: whole bytes, as many for each rank."""
    width = 8 * _bytes(dim, 8 * w.size)
    return slice(min(w.rank * width, dim), min((w.rank + 1) * width, dim))


def _agreement(w: Worker, votes: Vector, dim: int) -> dict[str, float]:
    """Return, now and then, the share of votes on this rank's slice that are the majority's."""
    here = _slice(w, dim)
    if w.step % AGREEMENT_EVERY or here.start == here.stop:
        return {}
    lead = sign.margin(votes, 8 * votes.shape[1])[: here.stop - here.start]
    mean = int(lead.abs_().sum()) / len(lead)
    return {"agreement": (1 + mean / w.size) / 2}
