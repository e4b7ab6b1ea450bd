"""Vectors in fewer bytes on real ranks: the simulator's bits, and sums that races do not touch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mpimomentum as mm
from tests.compressed import descended, drawn, with_wire
from tests.mpi.test_same_as_simulator import both, noisy

pytestmark = pytest.mark.mpi

DIM, LR, STEPS = 5000, 0.5, 40
PAIRED = mm.ADPSGD(lr=LR, variant="paired")


@pytest.mark.parametrize(("wire", "dtype"), [("bf16", torch.float32), ("int8", torch.float64)])
def test_the_sum_is_conserved_by_racing_pairs(make_worker, nodes, wire, dtype):
    w = make_worker("ring")
    run = mm.run(with_wire(PAIRED, wire), drawn(DIM, 20, dtype), steps=STEPS, worker=w)
    if w.rank == 0:
        mean, wanted = run.mean.double(), descended(run, LR, DIM, 20).double()
        size = float(wanted.abs().max())
        assert size > 100
        assert (
            float((mean - wanted).abs().max()) <= (1e-12 if dtype == torch.float64 else 3e-6) * size
        )


@pytest.mark.parametrize(
    "algorithm",
    [
        mm.DPSGD(lr=0.1, wire="bf16"),
        mm.DPSGD(lr=0.1, wire="int8", variant="atc"),
        mm.DecentralizedMomentum(lr=0.05, mu=0.7, wire="int8"),
    ],
    ids=["cta", "atc", "momentum"],
)
def test_bits_and_bytes_are_the_simulators(make_worker, nodes, algorithm: Any):
    w = make_worker("ring", seed=11)
    slow = mm.Clock(slow={1: 3.0}, jitter=0.3, latency_s=0.5, bandwidth_Bps=1e4, seed=7)
    real, virtual, run, simulated = both(algorithm, noisy(torch.float32, 2500), w, slow)
    assert torch.equal(real, virtual)
    if w.rank == 0:
        assert run.bytes_sent == simulated.bytes_sent


def test_a_servers_updates_and_what_is_kept_add_up(make_worker):
    """The model that all take over at the end, and what they keep, are all that was pushed."""
    w = make_worker("complete")
    kept = {}

    def observe(worker: Any, state: Any) -> None:
        kept["error"] = state.memory.error

    a = mm.AsyncServer(lr=LR, wire="int8", servers=2)
    run = mm.run(a, drawn(DIM, 20), steps=STEPS, worker=w, observe=observe)
    errors = w.run(everyones(w, kept["error"]))
    if w.rank == 0:
        pushed = descended(run, LR, DIM, 20) * w.size
        size = float(pushed.abs().max())
        assert float(errors.norm()) > 0
        assert float((run.mean - pushed - errors).abs().max()) <= 1e-12 * size


async def everyones(w: Any, v: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = await w.vote(v.clone())
    return total
