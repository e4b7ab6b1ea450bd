"""Gossip in fewer bytes: conserves the sum, comes together, and takes the bytes it says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.worker import Worker
from tests.compressed import descended, drawn, with_wire

DIM, LR = 2500, 0.5
GOSSIP = {
    "cta": mm.DPSGD(lr=LR),
    "atc": mm.DPSGD(lr=LR, variant="atc"),
    "momentum": mm.DecentralizedMomentum(lr=LR, mu=0.0),
    "paired": mm.ADPSGD(lr=LR, variant="paired"),
    "paired, local steps": mm.ADPSGD(lr=LR, variant="paired", local_steps=3),
}
FORMATS = ("bf16", "int8")
UNEVEN = mm.Clock(slow={0: 3}, jitter=0.5, latency_s=0.1, bandwidth_Bps=1e6)


@pytest.fixture(params=GOSSIP.values(), ids=GOSSIP)
def algorithm(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_the_sum_is_conserved(algorithm: Any) -> None:
    """The mean is where the gradients alone bring it, whatever the formats leave out."""
    for wire in FORMATS:
        a = with_wire(algorithm, wire)
        run = mm.simulate(a, drawn(DIM, 20), size=6, steps=60, clock=UNEVEN, topology="ring")
        wanted = descended(run, LR, DIM, 20)
        assert float(wanted.abs().max()) > 100
        torch.testing.assert_close(torch.as_tensor(run.mean), wanted, rtol=0, atol=1e-9)


def test_models_come_together_as_fast_as_without(algorithm: Any) -> None:
    """Also where a chunk holds numbers of very different sizes."""

    def left(wire: str, steps: int) -> float:
        a = with_wire(algorithm, wire)
        return mm.simulate(
            a, drawn(DIM, 1), size=6, steps=steps, topology="ring"
        ).consensus_distance

    apart = left("float32", 1)
    for wire in FORMATS:
        for steps in (30, 60):
            assert left(wire, steps) <= 1.5 * left("float32", steps) + 1e-12 * apart
        assert left(wire, 60) < 1e-2 * apart


def test_bytes_are_those_of_the_format(algorithm: Any) -> None:
    def sent(wire: str) -> int:
        a = with_wire(algorithm, wire)
        objective = drawn(4096, 20, torch.float32)
        return mm.simulate(a, objective, size=4, steps=40, topology="ring").bytes_sent

    whole = sent("float32")
    assert sent("bf16") == whole / 2
    assert sent("int8") == whole * mm.wire.nbytes("int8", 4096) / (4 * 4096)
    assert whole / sent("int8") == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("name", ["cta", "paired"])
def test_a_slow_link_is_less_in_the_way(name: str) -> None:
    """Virtual time follows the bytes."""
    slow = mm.Clock(compute_s=0.1, bandwidth_Bps=4 * 4096)  # a second for a model

    def time_s(wire: str) -> float:
        a = with_wire(GOSSIP[name], wire)
        objective = drawn(4096, 20, torch.float32)
        return mm.simulate(a, objective, size=4, steps=30, clock=slow, topology="ring").time_s

    whole = time_s("float32")
    assert time_s("bf16") < 0.6 * whole
    assert time_s("int8") < 0.35 * whole


@dataclasses.dataclass(frozen=True)
class Watched(mm.DPSGD):
    """Keeps what the ranks hold at the end."""

    states = {}  # noqa: RUF012  # rank -> State

    async def finish(self, w: Worker, s: Any) -> None:
        self.states[w.rank] = s


@dataclasses.dataclass(frozen=True)
class WatchedPairs(mm.ADPSGD):
    """The same."""

    states = {}  # noqa: RUF012

    async def finish(self, w: Worker, s: Any) -> None:
        self.states[w.rank] = s


@pytest.mark.parametrize("wire", FORMATS)
def test_all_who_hold_a_replica_have_the_same_bits(wire: Any) -> None:
    n = 6
    mm.simulate(Watched(lr=LR, wire=wire), drawn(DIM, 20), size=n, steps=33, clock=UNEVEN)
    for rank, state in Watched.states.items():
        for other in ((rank - 1) % n, (rank + 1) % n):
            here, there = (sorted([(r - 1) % n, r, (r + 1) % n]) for r in (rank, other))
            mine = state.replicas[here.index(other)]
            assert torch.equal(mine, Watched.states[other].replicas[there.index(other)])
            assert float(mine.abs().max()) > 0

    pairs = WatchedPairs(lr=LR, variant="paired", wire=wire)
    mm.simulate(pairs, drawn(DIM, 20), size=n, steps=33, clock=UNEVEN, topology="ring")
    for rank, state in WatchedPairs.states.items():
        for other in ((rank - 1) % n, (rank + 1) % n):
            here, there = (sorted([(r - 1) % n, (r + 1) % n]) for r in (rank, other))
            mine = state.replicas[here.index(other)]
            assert torch.equal(mine, WatchedPairs.states[other].replicas[there.index(rank)])


@pytest.mark.parametrize("wire", FORMATS)
@pytest.mark.parametrize(
    "a",
    [
        mm.DPSGD(lr=0.1),
        mm.DPSGD(lr=0.1, variant="atc"),
        mm.DecentralizedMomentum(lr=0.02, mu=0.8),
    ],
    ids=["cta", "atc", "momentum"],
)
def test_the_minimum_is_found_as_without(a: Any, wire: str) -> None:
    """And so is the consensus distance that is left by the ranks' different data."""

    def objective(rank: int, size: int) -> mm.Quadratic:
        draw = torch.Generator().manual_seed(rank)
        return mm.Quadratic(b=torch.randn(3000, generator=draw, dtype=torch.float64))

    runs = [
        mm.simulate(with_wire(a, w), objective, size=5, steps=250, topology="ring")
        for w in ("float32", wire)
    ]
    whole, few = (torch.as_tensor(run.mean) for run in runs)
    torch.testing.assert_close(few, whole, rtol=0, atol=1e-9)
    assert runs[1].consensus_distance == pytest.approx(runs[0].consensus_distance, rel=1e-3)


def test_a_graph_that_changes_is_refused() -> None:
    with pytest.raises(ValueError, match="replicas of each other, so d-psgd needs the same"):
        mm.simulate(mm.DPSGD(lr=0.1, wire="int8"), drawn(5, 1), size=4, steps=1,
                    topology="one-peer-exponential")  # fmt: skip


@pytest.mark.parametrize("a", [mm.DPSGD(lr=0.1), mm.ADPSGD(lr=0.1, variant="paired")])
def test_one_signed_bit_is_refused(a: Any) -> None:
    with pytest.raises(ValueError, match="'int8', or for a bit a coordinate signum"):
        with_wire(a, "sign")


def test_one_sided_averages_are_refused() -> None:
    with pytest.raises(ValueError, match="variant='lockfree' reads a neighbour's whole model"):
        mm.ADPSGD(lr=0.1, wire="int8")
