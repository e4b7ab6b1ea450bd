"""AD-PSGD: asynchronous decentralized parallel SGD, with optional local momentum.

Each worker, with no barrier::

    read x_hat = x_i;  compute G_i(x_hat)
    meanwhile average with one random neighbour j:  x_i, x_j <- (x_i + x_j)/2
    m_i <- mu m_i + G_i(x_hat);  x_i <- x_i - lr m_i        (on the possibly changed x_i)

The average is the paper's (``paired``) or never waits (``lockfree``), see
:mod:`mpimomentum.algorithms.pair_exchange`. The staleness tau of an update is the paper's: updates
made by *all* workers between the read of x_hat and its use; n - 1 in the mean while all n work.

Deviation: the paper has no momentum (mu = 0) and begins an average at every step; with
``local_steps`` = I a worker begins one during the gradient of every I-th of its steps, the k-th on
the graph of step k, and answers at any time. ``reweight`` (ours) scales G_i by 1/(n p_i), p_i the
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

from mpimomentum.algorithms.checks import at_least_one, momentum, not_negative, one_of
from mpimomentum.algorithms.pair_exchange import State, answer, ask, average_with_someone, start
from mpimomentum.codecs import mix
from mpimomentum.worker import Requires, Vector, Worker


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
    local_steps : int
        Steps from one average that this worker begins to the next.
    """

    lr: float
    mu: float = 0.0
    variant: Literal["lockfree", "paired"] = "lockfree"
    reweight: bool = False
    local_steps: int = 1

    name: ClassVar[str] = "ad-psgd"
    synchronous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        momentum("mu", self.mu)
        one_of("variant", self.variant, ("lockfree", "paired"))
        at_least_one("local_steps", self.local_steps)

    @property
    def requires(self) -> Requires:
        """A bipartite graph if paired; else any: an average has no direction and no weight."""
        return "bipartite" if self.variant == "paired" else "none"

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0 without momentum."""
        return start(w, x0)

    async def step(self, w: Worker, s: State) -> None:
        """Gossip while the gradient at the old model is computed, then apply it to the new one."""
        began = await s.updates.fetch_add(0)
        s.x.read(out=s.x_hat)
        mixes = s.mixes
        gradient = w.gradient(s.x_hat, w.sample())
        peer = -1
        if (w.step + 1) % self.local_steps == 0:
            gossip = average_with_someone if self.variant == "lockfree" else ask
            peer = await gossip(w, s, w.step // self.local_steps)
        g = await gradient
        ticket = await s.updates.fetch_add(1)
        lr = w.lr * ((ticket + 1) / (w.size * (w.step + 1)) if self.reweight else 1)  # 1/(n p_i)
        for x, now in s.x.writing():
            mix.heavy_ball(x, s.m[now], g[now], mix.part(lr, now), self.mu)
        w.record(tau=ticket - began, mixes=s.mixes - mixes, peer=peer)

    async def serve(self, w: Worker, s: State) -> None:
        """Answer active workers (paired)."""
        while self.variant == "paired" and not w.active:
            await answer(w, s)
