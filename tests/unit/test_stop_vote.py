"""How often synchronous ranks vote on a stop, and how soon one is known."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest
import torch

from mpimomentum.runtime import stop_vote
from mpimomentum.worker import Handle


@pytest.mark.parametrize(("step_s", "interval"), [(0.01, 10), (0.0004, 250), (3.0, 1)])
def test_votes_come_every_tenth_of_a_second(
    monkeypatch: pytest.MonkeyPatch, step_s: float, interval: int
) -> None:
    votes: list[int] = []
    w = SimpleNamespace(rank=0, step=0)

    def vote(v: torch.Tensor) -> Handle[torch.Tensor]:
        votes.append(w.step)
        return Handle.completed(v)

    w.vote = vote
    clock = SimpleNamespace(monotonic=lambda: w.step * step_s)
    monkeypatch.setattr(stop_vote, "time", clock)

    async def run() -> int:
        voting = stop_vote.StopVote()
        for step in range(1, 5000):
            w.step = step
            if await voting.passed(w, stop=step >= 3000):
                return step
        return -1

    stopped = asyncio.run(run())
    assert 3000 < stopped <= 3000 + 2 * interval
    later = [b - a for a, b in itertools.pairwise(votes)][4:]
    assert all(abs(gap - interval) <= 1 for gap in later)
