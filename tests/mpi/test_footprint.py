"""``list --memory`` says what real ranks hold."""

from __future__ import annotations

from typing import Any

import pytest
from mpi4py import MPI

import mpimomentum as mm
from mpimomentum.runtime import footprint

pytestmark = pytest.mark.mpi

CASES = dict(footprint.variants())


@pytest.fixture
def driver() -> str:
    return "thread"


@pytest.mark.parametrize("flags", CASES)
def test_the_virtual_clock_finds_what_ranks_hold(make_worker: Any, flags: str) -> None:
    algorithm = CASES[flags]
    worker = make_worker(footprint.graph(algorithm, MPI.COMM_WORLD.size))
    held, segments = footprint.Footprint(0, 0, 0), 0

    def look(w: Any, state: Any) -> None:
        nonlocal held, segments
        held = footprint.most(held, footprint.held(state))
        segments = sum(w._segment.x.numel() + w._segment.inbox.numel() for w in w._windows)

    mm.run(algorithm, footprint.tiny, steps=2, worker=worker, observe=look)
    assert footprint.of_ranks(algorithm, worker.size)[worker.rank] == held
    assert held.windows * footprint.DIM == segments
