"""Whole runs whose vectors are on a device that is not there have the bits of the CPU's runs.

On :class:`tests.pretend_lane.PretendLane` what was begun is done late: whoever looks at a vector
of the device before its event has been passed finds what was there before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.host_copies import on_host
from mpimomentum.runtime.state import Copies, restore, snapshot
from mpimomentum.transport import MPIWorker
from tests.compressed import descended, drawn
from tests.contract.test_algorithms import TABLE, scattered
from tests.pretend_lane import PretendLane

pytestmark = pytest.mark.mpi

Make = Callable[..., MPIWorker]
SYNCHRONOUS = (
    "allreduce-sgd",
    "d-psgd cta",
    "d-psgd atc",
    "decentralized-momentum II",
    "local-momentum",
    "gradient-tracking",
    "sgp cta",
    "slowmo reset",
    "signum",
    "signsgd",
    "ef-signum by layer",
    "katyusha-x",
)
"""Rows of the contract's table of which a run repeats itself to the bit."""


def on_device(make_worker: Make, topology: str = "ring", staging: str = "pinned") -> MPIWorker:
    from mpi4py import MPI

    seed = MPI.COMM_WORLD.rank
    return make_worker(
        topology,
        make_lane=lambda device: PretendLane(seed),
        staging=staging,
        probe=lambda kinds: dict.fromkeys(kinds, ""),
    )


@pytest.fixture
def driver() -> str:
    return "thread"


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_a_run_has_the_bits_of_the_cpus(make_worker: Make, name: str) -> None:
    w = make_worker()
    expected = mm.run(TABLE[name], scattered, steps=9, worker=w)
    w.close()
    w = on_device(make_worker)
    found = mm.run(TABLE[name], scattered, steps=9, worker=w)
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.x, expected.x)
    assert found.consensus_distance == expected.consensus_distance


@pytest.mark.parametrize("staging", ["pinned", "ipc"])
def test_own_steps_that_come_between_conserve_the_sum_of_pairs(
    make_worker: Make, staging: str
) -> None:
    w = on_device(make_worker, staging=staging)
    paired = mm.ADPSGD(lr=0.5, variant="paired")
    run = mm.run(paired, drawn(1000, 20, torch.float64), steps=40, worker=w)
    if w.rank == 0:
        wanted = descended(run, 0.5, 1000, 20)
        size = float(wanted.abs().max())
        assert size > 100
        assert float((run.mean - wanted).abs().max()) <= 1e-12 * size


@dataclasses.dataclass
class State:
    """A vector and a window."""

    v: torch.Tensor
    x: Any


def test_copies_of_a_state_are_of_what_was_begun_before(make_worker: Make) -> None:
    w = on_device(make_worker)
    v = torch.arange(5.0)

    async def body() -> None:
        state = State(v.clone(), w.window("x", v))
        await w.start()
        copies = Copies(w.lane)
        for turn in (1.0, 2.0):
            w.lane.begin(lambda: state.v.add_(1.0))
            for x, _ in state.x.writing():
                x.add_(1.0)
            kept = await snapshot(state, copies)
            assert torch.equal(kept["v"], v + turn)
            assert torch.equal(kept["x"], v + turn)
        w.lane.begin(lambda: state.v.zero_())
        assert torch.equal(await on_host(w, state.v), torch.zeros(5))
        w.lane.begin(lambda: state.v.fill_(3.0))
        assert await w.numbers(state.v[:2]) == [3.0, 3.0]
        await restore(state, kept)
        kept = await snapshot(state, copies)
        assert torch.equal(kept["v"], v + 2.0)
        assert torch.equal(kept["x"], v + 2.0)
        await w.quiesce()
        await w.release()

    w.run(body())


@pytest.mark.parametrize("name", ["ad-psgd lockfree", "d-psgd cta"])
def test_a_run_saves_itself_and_goes_on_with_the_same_state(
    make_worker: Make, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    w = on_device(make_worker)
    out = Path(told(w, str(tmp_path_factory.mktemp("runs")))[0])
    checkpoints = mm.Checkpoints(out, every=4)
    first = mm.run(TABLE[name], scattered, steps=8, worker=w, checkpoints=checkpoints)
    assert len(checkpoints.held_up_s) >= 1  # as far as all ranks came to be asked
    again = mm.Checkpoints(out, every=4, resume="auto")
    second = mm.run(TABLE[name], scattered, steps=8, worker=w, checkpoints=again)
    assert torch.equal(second.mean, first.mean)  # nothing was left to do
