"""Time split, tallies and bytes on ranks: the parts are the whole, and the whole is the run's."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.measures import Histogram

pytestmark = pytest.mark.mpi

STEPS, COMPUTE_S = 6, 0.01
ALGORITHMS = [mm.AllReduceSGD(lr=0.1), mm.ADPSGD(lr=0.1), mm.AsyncServer(lr=0.1, dedicated=True)]


class Slow:
    """A gradient that takes its time, on rank 0 three times as long."""

    def __init__(self, rank: int, size: int) -> None:
        self.dim = 1000
        self.seconds = COMPUTE_S * (3 if rank == 0 else 1)

    def initial(self) -> torch.Tensor:
        return torch.zeros(self.dim)

    def sample(self, rng: Any, indices: Any = None) -> None:
        return None

    def gradient(self, x: torch.Tensor, batch: None) -> torch.Tensor:
        time.sleep(self.seconds)
        return x - 1

    def loss(self, x: torch.Tensor) -> float:
        return 0.0


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_the_parts_are_the_run(make_worker, algorithm) -> None:
    w = make_worker("complete")
    began_s = time.monotonic()
    run = mm.run(algorithm, Slow, steps=STEPS, worker=w)
    took_s = time.monotonic() - began_s
    assert len(run.time_split) == w.size
    for rank, seconds in enumerate(run.time_split):
        *parts, hidden = asdict(seconds).values()
        assert min(parts) >= 0
        assert 0 <= hidden <= seconds.compute
        assert sum(parts) <= run.time_s + 1e-3
        if rank == w.rank:
            assert sum(parts) <= took_s
        if run.updates[rank]:  # sleeps at least as long as it is told to
            assert seconds.compute >= STEPS * COMPUTE_S
        else:
            assert seconds.compute == 0
            assert seconds.wait == 0  # it has no step to make
        assert seconds.gossip > 0
    assert max(sum(list(asdict(s).values())[:4]) for s in run.time_split) == pytest.approx(
        run.time_s, abs=1e-3
    )


def test_who_waits_for_a_slow_rank_waits_and_the_slow_one_computes(make_worker) -> None:
    w = make_worker("complete")
    run = mm.run(mm.AllReduceSGD(lr=0.1), Slow, steps=STEPS, worker=w)
    slow, *fast = run.time_split
    for seconds in fast:
        assert seconds.compute < slow.compute
        assert seconds.wait > slow.wait


def test_ranks_that_are_through_are_idle_and_do_not_wait(make_worker) -> None:
    w = make_worker("complete")
    run = mm.run(mm.ADPSGD(lr=0.1), Slow, steps=STEPS, worker=w)
    slow, *fast = run.time_split
    for seconds in fast:
        assert seconds.idle > slow.idle


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_tallies_and_bytes_of_all_ranks_come_to_rank_0(make_worker, algorithm) -> None:
    w = make_worker("complete")
    run = mm.run(algorithm, Slow, steps=STEPS, worker=w)
    assert sum(run.bytes_per_rank) == run.bytes_sent
    assert w.take_record is None
    tallies = run.tallies if w.rank == 0 else []
    for rank, tally in enumerate(tallies):
        own = [r for r in run.records if r["rank"] == rank]
        assert tally.records == len(own)
        taus, counts = np.unique([r["tau"] for r in own], return_counts=True)
        assert tally.staleness.counts == dict(zip(taus.tolist(), counts.tolist(), strict=True))
        for peer, them in tally.peers.items():
            with_it = [r for r in own if r.get("peer", r.get("source")) == peer]
            assert them.exchanges == len(with_it)
            assert them.staleness.count == len(with_it)


def test_taken_records_are_not_kept_and_count_all_the_same(make_worker) -> None:
    w = make_worker("complete")
    taken: list[dict[str, Any]] = []
    run = mm.run(mm.ADPSGD(lr=0.1), Slow, steps=STEPS, worker=w, take_record=taken.append)
    assert run.records == w.records == []
    assert len(taken) == STEPS
    assert [r["time_s"] for r in taken] == sorted(r["time_s"] for r in taken)
    if w.rank == 0:
        assert Histogram.merged(t.staleness for t in run.tallies).count == w.size * STEPS
    assert len(mm.run(mm.ADPSGD(lr=0.1), Slow, steps=1, worker=w).records) >= 1
