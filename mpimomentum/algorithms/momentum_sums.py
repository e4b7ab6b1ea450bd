"""Server-side heavy ball without a server: x_K = A_K + mu^K B_K, and both are sums.

Heavy ball, x_{k+1} = x_k - lr g_k + mu (x_k - x_{k-1}) from x_{-1} = x_0, is::

    A_K = x_0 - 1/(1 - mu) sum over j < K of lr g_j
    B_K =       1/(1 - mu) sum over j < K of lr g_j mu^-j

A worker needs only a ticket j and atomic sums: once all are in, x is exactly that of heavy ball in
the order of the tickets, in whatever order and however late they came. B is kept by epochs of
tickets (``epochs.py``). A model read meanwhile lacks what is on its way, and of what is half in it
may hold the part in A alone, an error of lr g / (1 - mu) at most: a worker's gradient is taken
there, as a stale one would be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mpimomentum.algorithms.epochs import Epochs
from mpimomentum.codecs import mix
from mpimomentum.worker import Counter, Sums, Vector, Worker

if TYPE_CHECKING:
    from mpimomentum.algorithms.async_server import AsyncServer


@dataclass
class State:
    """What one rank keeps."""

    no_resizing: ClassVar[str] = (
        "each rank has a shard of the sums, and their epochs are as long as it needs"
    )

    x: Vector  # (d,) the model as last read
    version: int  # tickets drawn by then
    tickets: Counter
    sums: Sums  # (1 + E, d): A, then the slots of B
    cleared: Counter  # marks of the epochs whose slots were made ready for them


def init(a: AsyncServer, w: Worker, x0: Vector) -> State:
    """Share out A = x0, B = 0 and no tickets."""
    sums = w.sums("sums", x0, 1 + _epochs(a, w).slots)
    return State(x0.clone(), 0, w.counter("tickets"), sums, w.counter("cleared"))


def _epochs(a: AsyncServer, w: Worker) -> Epochs:
    assert a.mu != "auto"  # refused
    return Epochs.of(a.mu, w.size)


async def step(a: AsyncServer, w: Worker, s: State) -> None:
    """Compute, draw a ticket, add, read."""
    g = await w.gradient(s.x, w.sample())
    update = w.lr * g  # here, not when it is read: lr may change
    ticket = await s.tickets.fetch_add()
    w.record(tau=ticket - s.version, ticket=ticket)
    await _add(_epochs(a, w), s, ticket, update)
    await finish(a, w, s)


async def _add(epochs: Epochs, s: State, ticket: int, update: Vector) -> None:
    """Add to A and, unless that is negligible by now, to the ticket's epoch of B."""
    epoch, coming = epochs.of_ticket(ticket), epochs.begins_with(ticket)
    in_time = True
    if coming is not None:
        slot = 1 + epochs.slot(coming)
        await s.sums.add((await s.sums.read([slot]))[0], {slot: -1.0})
        await s.cleared.fetch_add(epochs.mark(coming))
    factors = {0: -1 / (1 - epochs.mu)}
    if await s.tickets.fetch_add(0) - ticket < epochs.horizon:
        factors[1 + epochs.slot(epoch)] = epochs.inside(ticket)
        in_time = epochs.ready(epoch, await s.cleared.fetch_add(0))
    await s.sums.add(update, factors)
    if len(factors) > 1:
        in_time &= not epochs.cleared(epoch, await s.tickets.fetch_add(0))
    if not in_time:
        raise RuntimeError(
            f"ticket {ticket}: this rank was held up while it added a gradient, until others had "
            "its epoch's slot; the sums are spoilt. Start no more ranks than there are cores, or "
            "use mode='server'"
        )


async def finish(a: AsyncServer, w: Worker, s: State) -> None:
    """Read the model."""
    epochs = _epochs(a, w)
    tickets = await s.tickets.fetch_add(0)
    while True:
        marks = await s.cleared.fetch_add(0)  # a slot that is not ready yet has another epoch's
        live = [e for e in epochs.live(tickets) if epochs.ready(e, marks)]
        rows = await s.sums.read([0, *(1 + epochs.slot(e) for e in live)])
        # only now: what is in the sums, but not in K, would weigh mu to a negative power
        tickets = await s.tickets.fetch_add(0)
        if not any(epochs.cleared(e, tickets) for e in live):
            break  # else another epoch's gradients may have been read as theirs
    mix.mix(list(rows), [1.0, *(epochs.outside(e, tickets) for e in live)], out=s.x)
    s.version = tickets
