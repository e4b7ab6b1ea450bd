"""AD-PSGD: asynchronous decentralized parallel SGD, with optional local momentum.

Each worker, with no barrier::

    read x_hat = x_i;  compute G_i(x_hat)
    meanwhile average with one random neighbour j:  x_i, x_j <- (x_i + x_j)/2
    m_i <- mu m_i + G_i(x_hat);  x_i <- x_i - lr m_i        (on the possibly changed x_i)

``paired`` (the paper): the exchange is atomic, both ends finish equal. The graph is bipartite;
*active* workers begin exchanges, *passive* ones only answer, so that no wait-cycle can form.
``lockfree``: one-sided, through windows that conserve the sum; a busy peer is passed over.

The staleness tau of an update is the paper's: updates made by *all* workers between the read of
x_hat and its use, counted by a shared ticket counter. Its mean is n - 1 at any speeds, while
all workers work.

Deviation: the paper has no momentum (mu = 0). ``reweight`` (ours) scales G_i by 1/(n p_i), p_i the
worker's share of all updates so far: without it fast workers' data count more. A worker s times
slower than the mean takes steps s times as long: s lr must be small enough.

References
----------
X. Lian, W. Zhang, C. Zhang, J. Liu, "Asynchronous decentralized parallel stochastic gradient
descent", ICML 2018, Algorithm 1 and its supplement on deadlock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mpimomentum.algorithms.checks import momentum, not_negative, one_of
from mpimomentum.codecs import mix
from mpimomentum.worker import Counter, Mailbox, Requires, Vector, Window, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Window  # (d,) this rank's iterate, which others average with
    x_hat: Vector  # (d,) the model that the gradient is taken at
    m: Vector  # (d,) local momentum
    updates: Counter  # gradient updates of all workers
    requests: Mailbox  # models from active workers (paired)
    replies: Mailbox  # means from passive workers (paired)
    exchanges: int = 0  # averages so far (paired; a window counts its own)


@dataclass(frozen=True)
class ADPSGD:
    """Asynchronous decentralized parallel SGD.

    Parameters
    ----------
    lr : float
        Step size (the paper's γ).
    mu : float
        Local heavy-ball momentum in [0, 1).
    variant : {"lockfree", "paired"}
    reweight : bool
        Undo the bias towards fast workers' data.
    """

    lr: float
    mu: float = 0.0
    variant: Literal["lockfree", "paired"] = "lockfree"
    reweight: bool = False

    name: ClassVar[str] = "ad-psgd"
    synchronous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        momentum("mu", self.mu)
        one_of("variant", self.variant, ("lockfree", "paired"))

    @property
    def requires(self) -> Requires:
        """A bipartite graph if paired; else any: an average has no direction and no weight."""
        return "bipartite" if self.variant == "paired" else "none"

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0 without momentum."""
        return State(
            x=w.window("x", x0),
            x_hat=x0.clone(),
            m=torch.zeros_like(x0),
            updates=w.counter("updates"),
            requests=w.mailbox("requests"),
            replies=w.mailbox("replies"),
        )

    async def step(self, w: Worker, s: State) -> None:
        """Gossip while the gradient at the old model is computed, then apply it to the new one."""
        began = await s.updates.fetch_add(0)
        s.x.read(out=s.x_hat)
        mixes = s.x.mixes + s.exchanges
        gradient = w.gradient(s.x_hat, w.sample())
        if self.variant == "lockfree":
            peer = await self._average_with_someone(w, s)
        else:
            peer = await self._exchange(w, s)
        g = await gradient
        ticket = await s.updates.fetch_add(1)
        scale = (ticket + 1) / (w.size * (w.step + 1)) if self.reweight else 1.0  # 1/(n p_i)
        lr = scale * w.lr
        for x, now in s.x.writing():
            mix.heavy_ball(x, s.m[now], g[now], mix.part(lr, now), self.mu)
        w.record(tau=ticket - began, mixes=s.x.mixes + s.exchanges - mixes, peer=peer)

    async def serve(self, w: Worker, s: State) -> None:
        """Answer active workers (paired): both ends leave with the mean."""
        while self.variant == "paired" and not w.active:
            source, _, theirs = await s.requests.recv()
            await s.x.add(w.rank, (theirs - s.x.read()).mul_(0.5))
            s.exchanges += 1
            await s.replies.send(source, s.x.read())

    async def _average_with_someone(self, w: Worker, s: State) -> int:
        """Average with the first neighbour, in random order, that is free; -1 if none is."""
        for j in w.rng.permutation(w.neighbors).tolist():
            if await s.x.average(j):
                return int(j)
        return -1  # all busy: never wait

    async def _exchange(self, w: Worker, s: State) -> int:
        """Send the model to a random passive neighbour and take over the mean it answers with."""
        if not w.active or not w.neighbors:
            return -1
        j = int(w.rng.choice(w.neighbors))
        mine = s.x.read()
        await s.requests.send(j, mine)
        _, _, mean = await s.replies.recv()
        await s.x.add(w.rank, mean.sub_(mine))
        s.exchanges += 1
        return j
