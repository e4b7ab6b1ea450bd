"""AD-PSGD: asynchronous decentralized parallel SGD, with optional local momentum.

Each worker, with no barrier::

    read x_hat = x_i;  compute G_i(x_hat)
    meanwhile average with one random neighbour j:  x_i, x_j <- (x_i + x_j)/2
    m_i <- mu m_i + G_i(x_hat);  x_i <- x_i - lr m_i        (on the possibly changed x_i)

The average is the paper's (``paired``, also in fewer bytes: ``wire``) or never waits
(``lockfree``), see ``pair_exchange.py``. tau is the paper's: updates made by *all* workers between
the read of x_hat and its use; n - 1 in the mean. ``mu="auto"`` goes by it: ``auto_momentum.py``.

Deviation: the paper has no momentum (mu = 0) and begins an average at every step, not every
``local_steps``-th, the k-th on the graph of step k. ``reweight`` (ours) scales G_i by 1/(n p_i),
p_i its share of all updates: else fast data count more. With a worker s times slower, mind s lr.

References
----------
X. Lian, W. Zhang, C. Zhang, J. Liu, "Asynchronous decentralized parallel stochastic gradient
descent", ICML 2018, Algorithm 1 and its supplement on deadlock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mpimomentum.algorithms import auto_momentum, paired, secant
from mpimomentum.algorithms.pair_exchange import State, average, check, start
from mpimomentum.codecs import mix
from mpimomentum.codecs.wire import Wire
from mpimomentum.worker import Requires, Vector, Worker


@dataclass(frozen=True)
class ADPSGD:
    """Asynchronous decentralized parallel SGD.

    Parameters
    ----------
    lr : float
        Step size (the paper's γ).
    mu : float or "auto"
        Local heavy-ball momentum in [0, 1).
    variant : {"lockfree", "paired"}
    reweight : bool
        Undo the bias towards fast workers' data.
    local_steps : int
        Steps from one average begun here to the next.
    wire : {"float32", "bf16", "int8"}
        How vectors travel.
    mu_max : float
        Most that "auto" chooses.
    auto_lr : bool
        With "auto": shorten the step where even without momentum it would not be stable.
    """

    lr: float
    mu: auto_momentum.Mu = 0.0
    variant: Literal["lockfree", "paired"] = "lockfree"
    reweight: bool = False
    local_steps: int = 1
    wire: Wire = "float32"
    mu_max: float = auto_momentum.MU_MAX
    auto_lr: bool = False

    name: ClassVar[str] = "ad-psgd"
    synchronous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self)

    @property
    def requires(self) -> Requires:
        """A bipartite graph if paired; else any: an average has no direction and no weight."""
        return "bipartite" if self.variant == "paired" else "none"

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0 without momentum."""
        return start(self, w, x0)

    async def step(self, w: Worker, s: State) -> None:
        """Gossip while the gradient at the old model is computed, then apply it to the new one."""
        began = await s.updates.fetch_add(0)
        s.x.read(out=s.x_hat)
        mixes = s.mixes
        gradient = w.gradient(s.x_hat, w.sample())
        peer = await average(self, w, s)
        g = await gradient
        ticket = await s.updates.fetch_add(1)
        lr = w.lr * ((ticket + 1) / (w.size * (w.step + 1)) if self.reweight else 1)  # 1/(n p_i)
        lr, mu, why = await secant.local(self, w, s, g, lr, ticket - began)
        for x, now in s.x.writing():
            mix.heavy_ball(x, s.m[now], g[now], mix.part(lr, now), mu)
        w.record(tau=ticket - began, mixes=s.mixes - mixes, peer=peer, **why)

    async def serve(self, w: Worker, s: State) -> None:
        """Answer active workers (paired)."""
        while self.variant == "paired" and not w.active:
            await paired.answer(self, w, s)
