"""AD-PSGD's State, and its averages of two models: the paper's, and one without waiting.

``paired``: an exchange is atomic, both ends leave with the mean. The graph is bipartite; *active*
workers begin exchanges, *passive* ones only answer, so that no wait-cycle can form.
``lockfree``: one-sided, through windows that conserve the sum; a busy peer is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

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
    exchanges: Fresh[int] = 0  # averages so far (paired; a window counts its own)

    @property
    def mixes(self) -> int:
        """Averages with this rank's model so far, whoever began them."""
        return self.x.mixes + self.exchanges


def start(w: Worker, x0: Vector, auto: bool) -> State:
    """Make the windows, mailboxes and counters. Collective."""
    return State(
        x=w.window("x", x0),
        x_hat=x0.clone(),
        m=torch.zeros_like(x0),
        updates=w.counter("updates"),
        requests=w.mailbox("requests"),
        replies=w.mailbox("replies"),
        secant=Secant.start(x0) if auto else None,
    )


def neighbors(w: Worker, t: int) -> list[int]:
    """Return the ranks joined to this one by the graph of step `t`, ascending."""
    edges = w.mixing(t)
    return sorted((edges.in_weights.keys() | edges.out_weights.keys()) - {w.rank})


async def average(a: ADPSGD, w: Worker, s: State) -> int:
    """Average with a neighbour if that is due at this step; -1 if not, or nobody was free."""
    k, left = divmod(w.step + 1, a.local_steps)
    if left:
        return -1
    return await (average_with_someone if a.variant == "lockfree" else ask)(w, s, k - 1)


async def average_with_someone(w: Worker, s: State, t: int) -> int:
    """Average with the first neighbour of step `t`, in random order, that is free, or -1."""
    for j in w.rng.permutation(neighbors(w, t)).tolist():
        if await s.x.average(j):
            return int(j)
    return -1  # all busy: never wait


async def ask(w: Worker, s: State, t: int) -> int:
    """Send the model to a passive neighbour of step `t` and take over the mean it answers with."""
    passive = neighbors(w, t) if w.active else []
    if not passive:
        return -1
    j = int(w.rng.choice(passive))
    mine = s.x.read()
    await s.requests.send(j, mine)
    _, _, mean = await s.replies.recv()
    await s.x.add(w.rank, mean.sub_(mine))
    s.exchanges += 1
    return j


async def answer(w: Worker, s: State) -> None:
    """Answer the next active worker: both ends leave with the mean."""
    source, _, theirs = await s.requests.recv()
    await s.x.add(w.rank, (theirs - s.x.read()).mul_(0.5))
    s.exchanges += 1
    await s.replies.send(source, s.x.read())
