"""Windows that do not fit into shared memory are refused on all ranks alike, and nothing hangs."""

from __future__ import annotations

import pytest
import torch

from mpimomentum.transport import room

pytestmark = pytest.mark.mpi


def test_windows_without_room_are_refused_on_every_rank(make_worker, monkeypatch):
    w = make_worker()
    left = room.room_bytes()
    # one rank alone sees too little: its neighbours must hear of it
    monkeypatch.setattr(room, "room_bytes", lambda: 100_000 if w.rank == w.size - 1 else left)

    async def make(dim: int) -> None:
        w.window("x", torch.zeros(dim))

    if w.size == 1:
        w.run(make(1_000_000))  # a rank that is alone gets memory of its own
        return
    with pytest.raises(
        MemoryError, match=r"ranks 0 to \d+ need .* MB on their node, .* 0.1 MB left"
    ):
        w.run(make(1_000_000))


def test_ranks_that_have_a_node_each_share_none(make_worker, nodes, monkeypatch):
    w = make_worker()
    monkeypatch.setattr(room, "room_bytes", lambda: 0)

    async def make() -> None:
        w.window("x", torch.zeros(1000))
        await w.release()

    if nodes == "a node each" or w.size == 1:
        w.run(make())
    else:
        with pytest.raises(MemoryError):
            w.run(make())
