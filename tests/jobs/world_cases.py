"""Tests that go wrong on purpose: tests/crash/test_a_world_reports.py runs them by name."""

from __future__ import annotations

import threading

import pytest
import torch

pytestmark = pytest.mark.mpi


@pytest.fixture
def driver() -> str:
    return "thread"


def test_one_rank_fails(make_worker) -> None:
    w = make_worker()

    async def body() -> None:
        assert w.rank != 1, "rank 1 is wrong here"
        await w.allreduce(torch.zeros(1))

    w.run(body())


@pytest.mark.timeout(5)
def test_one_rank_hangs(make_worker) -> None:
    w = make_worker()

    async def body() -> None:
        if w.rank != 1:
            await w.allreduce(torch.zeros(1))

    w.run(body())
    while w.rank == 1:  # elsewhere, and not coming back
        threading.Event().wait(1.0)
