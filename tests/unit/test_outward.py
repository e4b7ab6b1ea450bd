"""A device's vector comes to the host piece by piece, the next while one is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpimomentum.transport.outward import to_host
from mpimomentum.transport.progress import Engine
from tests.pretend_lane import PretendLane


class Watched(PretendLane):
    """A lane that tells what is begun and done, in order."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.log: list[tuple[str, int]] = []
        self.copies = 0

    def begin(self, work: Any) -> None:
        """Log the begin and the end of a copy."""
        k = self.copies
        self.copies += 1
        self.log.append(("begun", k))

        def logged() -> None:
            work()
            self.log.append(("copied", k))

        super().begin(logged)


@pytest.mark.parametrize("seed", range(5))
def test_the_next_copies_are_begun_before_one_piece_is_summed(seed: int) -> None:
    lane, engine = Watched(seed), Engine()
    v, total, ahead = torch.arange(1000.0), torch.zeros(1000), 3

    async def sum_up() -> None:
        k = 0
        async for piece, host in to_host(lane, v, piece_bytes=4 * 64, under_way=ahead):
            lane.log.append(("sum", k))
            total[piece] += host
            k += 1

    task = engine.spawn(sum_up(), "a sum")
    while not task.done:
        engine.poll()
    assert torch.equal(total, v)
    pieces = -(-1000 // 64)
    assert [k for what, k in lane.log if what == "sum"] == list(range(pieces))
    for k in range(pieces):
        summed = lane.log.index(("sum", k))
        assert lane.log.index(("copied", k)) < summed
        for later in range(k + 1, min(k + ahead, pieces)):  # the bus has work meanwhile
            assert lane.log.index(("begun", later)) < summed
        if k + ahead < pieces:  # into the memory that this one was in
            assert summed < lane.log.index(("begun", k + ahead))


def test_nothing_is_copied_of_nothing() -> None:
    lane = PretendLane()

    async def none() -> list[Any]:
        return [piece async for piece in to_host(lane, torch.empty(0))]

    task = Engine().spawn(none(), "nothing")
    assert task.result() == []
