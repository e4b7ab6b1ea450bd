"""AD-PSGD's State, and its averages of two models: the paper's, and one without waiting.

``paired``: an exchange is atomic, both ends leave with the mean. The graph is bipartite; *active*
workers begin exchanges, *passive* ones only answer, so that no wait-cycle can form (``paired.py``).
``lockfree``: one-sided, through windows that conserve the sum; a busy peer is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mpimomentum.algorithms import auto_momentum, paired
from mpimomentum.algorithms.checks import at_least_one, not_negative, one_of
from mpimomentum.algorithms.secant import Secant
from mpimomentum.worker import Counter, Fresh, Mailbox, Mean, Scaled, Vector, Window, Worker

if TYPE_CHECKING:
    from mpimomentum.algorithms.ad_psgd import ADPSGD


@dataclass
class State:
    """What one rank keeps."""

    x: Mean[Window]  # (d,) this rank's iterate, which others average with
    x_hat: Fresh[Vector]  # (d,) the model that the gradient is taken at
    m: Mean[Vector]  # (d,) local momentum
    updates: Scaled[Counter]  # gradient updates of all workers
    requests: Mailbox  # models from active workers (paired)
    replies: Mailbox  # means from passive workers (paired)
    secant: Fresh[Secant | None]  # with mu="auto"
    replicas: Fresh[Vector | None]  # (k, d) of the active end of each edge, if compressed
    exchanges: Fresh[int] = 0  # averages so far (paired; a window counts its own)

    @property
    def mixes(self) -> int:
        """Averages with this rank's model so far, whoever began them."""
        return self.x.mixes + self.exchanges


def check(a: ADPSGD) -> None:
    """Refuse hyper-parameters that cannot be."""
    not_negative("lr", a.lr)
    auto_momentum.check(a)
    one_of("variant", a.variant, ("lockfree", "paired"))
    at_least_one("local_steps", a.local_steps)
    paired.check(a)


def start(a: ADPSGD, w: Worker, x0: Vector) -> State:
    """Make the windows, mailboxes and counters. Collective."""
    return State(
        x=w.window("x", x0),
        x_hat=x0.clone(),
        m=torch.zeros_like(x0),
        updates=w.counter("updates"),
        requests=w.mailbox("requests"),
        replies=w.mailbox("replies"),
        secant=Secant.start(x0) if a.mu == "auto" else None,
        replicas=paired.start(a, w, x0),
    )


def neighbors(w: Worker, t: int) -> list[int]:
    """Return the ranks joined to this one by the graph of step `t`, ascending."""
    edges = w.mixing(t)
    return sorted((edges.in_weights.keys() | edges.out_weights.keys()) - {w.rank})


async def average(a: ADPSGD, w: Worker, s: State) -> int:
    """Average with a neighbour if that is due at this step; -1 if not, or nobody was free."""
    k, left = divmod(w.step + 1, a.local_steps)
    begin = average_with_someone if a.variant == "lockfree" else ask
    return -1 if left else await begin(a, w, s, k - 1)


async def average_with_someone(_: ADPSGD, w: Worker, s: State, t: int) -> int:
    """Average with the first neighbour of step `t`, in random order, that is free, or -1."""
    for j in w.rng.permutation(neighbors(w, t)).tolist():
        if await s.x.average(j):
            return int(j)
    return -1  # all busy: never wait


async def ask(a: ADPSGD, w: Worker, s: State, t: int) -> int:
    """Average with a passive neighbour of step `t`; -1 if there is none, or this one is passive."""
    passive = neighbors(w, t) if w.active else []
    if not passive:
        return -1
    j = int(w.rng.choice(passive))
    await paired.ask(a, w, s, j)
    s.exchanges += 1
    return j
