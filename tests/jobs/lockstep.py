"""Averages in lock-step: all ranks begin at once, and nobody goes on before all have tried.

usage: mpirun -n N python lockstep.py ROUNDS [swap]

Every rank of a ring wants a random neighbour at the same time as all others. Conservation alone
would not notice two ranks that merely swap their values, so this prints the contraction. ``swap``
leaves the own word unclaimed.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

import mpimomentum as mm
from mpimomentum.transport import worker as mpi_worker
from mpimomentum.transport.segment import MIXES
from mpimomentum.transport.window import InboxWindow, Word
from mpimomentum.worker import Vector


class Meeting(InboxWindow):
    """Holders of claims wait until every rank has made its attempt of this round."""

    attempts_of_all: Any = None  # a worker.Counter
    round = 0

    def meet(self) -> None:
        self.attempts_of_all.fetch_add(1)

    def all_met(self, times: int) -> None:
        while self.attempts_of_all.fetch_add(0).result() < times * self.size * self.round:
            os.sched_yield()

    def _claim_both(self, peer: int) -> int | None:
        claim = super()._claim_both(peer)
        self.meet()
        return claim

    def _exchange_direct(self, x_peer: Vector, inbox_peer: Vector) -> bool:
        self.all_met(1)
        return super()._exchange_direct(x_peer, inbox_peer)


class Swap(Meeting):
    """The own word not claimed: both ends of an edge read before either writes."""

    def _claim_both(self, peer: int) -> int | None:
        self._generation += 1
        claim = Word.CLAIMED.by(self.rank, self._generation)
        got = self._memory.compare_and_swap(peer, Word.FREE, claim) == Word.FREE
        self.meet()
        if not got:
            self.meet()
        return claim if got else None

    def _exchange_direct(self, x_peer: Vector, inbox_peer: Vector) -> bool:
        x = self._segment.x
        self.all_met(1)
        difference = x - x_peer
        self.meet()
        self.all_met(2)
        for piece in self._segment.writing(MIXES):
            x[piece].sub_(difference[piece], alpha=0.5)
        inbox_peer.copy_(difference)
        return True


async def lockstep(w: mpi_worker.MPIWorker, rounds: int) -> dict[str, float]:
    window: Any = w.window("x", torch.tensor([(-1.0) ** w.rank, float(w.rank)]))
    window.attempts_of_all = w.counter("attempts")
    await w.start()
    succeeded = 0
    fewest = w.size
    for k in range(rounds):
        window.round = k + 1
        won = await window.average(int(w.rng.choice(w.neighbors)))
        total = await w.allreduce(torch.tensor([int(won)]))
        window.drain()
        await w.collectives.barrier()  # all have applied what they were sent
        fewest = min(fewest, int(total))
        succeeded += int(total)
    x = window.read()
    rows = await w.allgather(x)
    await w.quiesce()
    await w.release()
    return {
        "succeeded": succeeded,
        "fewest": fewest,
        "spread": float(rows.std(dim=0).max()),
        "sums": rows.sum(dim=0).tolist(),
    }


def main() -> None:
    mpi_worker.InboxWindow = Swap if "swap" in sys.argv else Meeting
    w = mm.init()
    result = w.run(lockstep(w, int(sys.argv[1])))
    if w.rank == 0:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
