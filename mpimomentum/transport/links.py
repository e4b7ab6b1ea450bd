"""How long a message takes between any two ranks, measured through mailboxes.

Pairs are measured in rounds of disjoint ones, all pairs of a round at once: n − 1 rounds for n
ranks, not n²/2 measurements one after the other. So the network carries n/2 exchanges meanwhile, as
it does while ranks gossip.
"""

from __future__ import annotations

import time

import torch

from mpimomentum.topology.round_robin import round_robin
from mpimomentum.transport.mailbox import PointToPoint
from mpimomentum.transport.worker import MPIWorker

SIZES = (8, 1 << 16, 1 << 20)
"""Bytes of the messages."""

REPEATS = (8, 4, 3)
"""Round trips of each size; the fastest counts."""


async def measure(w: MPIWorker) -> torch.Tensor:
    """Measure every pair. Collective.

    Returns
    -------
    Tensor, shape (n, n, 3), float64
        Seconds one way of a message of each of :data:`SIZES`; NaN on the diagonal.
    """
    mailbox = w.mailbox("links")
    mine = torch.full((w.size, len(SIZES)), torch.nan, dtype=torch.float64)
    for partners in round_robin(w.size):
        await w.collectives.barrier()
        partner = partners[w.rank]
        if partner is not None:
            for k, (size, repeats) in enumerate(zip(SIZES, REPEATS, strict=True)):
                mine[partner, k] = await _one_way_s(w, mailbox, partner, size, repeats)
    table = (await w.collectives.allgather(mine.flatten())).view(w.size, w.size, len(SIZES))
    upper = torch.ones(w.size, w.size, dtype=torch.bool).triu(1)[:, :, None]
    table = torch.where(upper, table, table.transpose(0, 1))  # who began has the time
    await w.release()
    return table


async def _one_way_s(
    w: MPIWorker, mailbox: PointToPoint, partner: int, nbytes: int, repeats: int
) -> float:
    """Return half of the fastest round trip, on the lower rank of a pair."""
    v = torch.zeros(nbytes // 4)
    fastest_s = float("inf")
    for _ in range(repeats):
        began_s = time.perf_counter()
        if w.rank < partner:
            await mailbox.send(partner, v)
        _, _, v = await mailbox.recv()
        if w.rank > partner:
            await mailbox.send(partner, v)
        fastest_s = min(fastest_s, time.perf_counter() - began_s)
    return fastest_s / 2
