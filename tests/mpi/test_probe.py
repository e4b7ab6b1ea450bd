"""The consensus distance while a run goes on: right, and without a trace in the algorithm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import mpimomentum as mm
from mpimomentum.runtime.probe import ConsensusProbe, estimate, squared_distance
from mpimomentum.transport import MPIWorker
from mpimomentum.worker import Window

pytestmark = pytest.mark.mpi

DIM, STEPS = 1000, 30


def always(w: Any) -> ConsensusProbe:
    return ConsensusProbe(0, w.rank, every_s=0.0, share=math.inf)


def start_of(rank: int) -> torch.Tensor:
    return torch.randn(DIM, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


class Elsewhere(mm.Quadratic):
    """Every rank starts elsewhere and stays there, but for averages."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(b=start_of(rank), dtype=torch.float64)

    def initial(self) -> torch.Tensor:
        return self.b.clone()


@dataclass
class State:
    x: Window


@dataclass(frozen=True)
class Still:
    """Nobody moves; everyone holds a window."""

    lr: float = 0.0
    name: ClassVar[str] = "still"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Any] = "none"

    def init(self, w: Any, x0: torch.Tensor) -> State:
        return State(w.window("x", x0))

    async def step(self, w: Any, s: State) -> None:
        await w.allreduce(torch.zeros(1))


def test_all_pairs_together_give_the_distance(make_worker: Callable[..., MPIWorker]) -> None:
    w = make_worker()
    probe = always(w)
    run = mm.run(Still(), Elsewhere, steps=STEPS, worker=w, observe=probe.observe)
    pairs = {
        (i, j): estimate(float(squared_distance(start_of(i), start_of(j))), w.size)
        for i, j in itertools.permutations(range(w.size), 2)
    }
    mean_square = sum(e * e for e in pairs.values()) / len(pairs)
    assert math.sqrt(mean_square) == pytest.approx(run.consensus_distance, rel=1e-9)
    own = [pairs[w.rank, j] for j in range(w.size) if j != w.rank]
    seen = [r["consensus"] for r in w.records if "consensus" in r]
    assert seen
    for value in seen:
        assert any(value == pytest.approx(e, rel=1e-9) for e in own)
    assert probe.last == seen[-1]


def test_gossip_conserves_the_sum_and_contracts_beside_it(
    make_worker: Callable[..., MPIWorker],
) -> None:
    w = make_worker("complete")
    probe = always(w)
    run = mm.run(mm.ADPSGD(lr=0.0), Elsewhere, steps=STEPS, worker=w, observe=probe.observe)
    mean = sum(start_of(r) for r in range(w.size)) / w.size
    torch.testing.assert_close(run.mean, mean, rtol=0, atol=1e-12)
    at_start = math.sqrt(
        sum(float((start_of(r) - mean).square().sum()) for r in range(w.size)) / w.size
    )
    assert run.consensus_distance < 0.5 * at_start
    assert probe.last < 2 * at_start


def test_draws_and_the_order_of_sums_stay_the_same(make_worker: Callable[..., MPIWorker]) -> None:
    w = make_worker()
    with_probe = mm.run(mm.DPSGD(lr=0.1), Elsewhere, steps=5, worker=w, observe=always(w).observe)
    assert not any("consensus" in r for r in w.records)  # its model is no window
    without = mm.run(mm.DPSGD(lr=0.1), Elsewhere, steps=5, worker=w)
    assert torch.equal(with_probe.x, without.x)
    probe = always(w)
    state = w.rng.bit_generator.state
    mm.run(Still(), Elsewhere, steps=STEPS, worker=w, observe=probe.observe)
    assert w.rng.bit_generator.state["state"] == state["state"]
    assert math.isfinite(probe.last)


def test_it_keeps_to_its_interval(make_worker: Callable[..., MPIWorker]) -> None:
    w = make_worker()
    probe = ConsensusProbe(0, w.rank, every_s=1e6)
    mm.run(Still(), Elsewhere, steps=STEPS, worker=w, observe=probe.observe)
    assert math.isnan(probe.last)
    assert not w.records
