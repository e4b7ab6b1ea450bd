"""Where the order of every sum is fixed, MPI ranks and virtual workers make the same bits.

The same file, the same random streams, the same rounding: every iterate of every step is compared,
with noise in the gradients. Between nodes AllReduce adds in MPI's order and agrees to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mpimomentum as mm

STEPS = 25
SEED = 11
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def noisy(dtype: torch.dtype, dim: int = 1003) -> Callable[[int, int], mm.Quadratic]:
    def f(rank: int, size: int) -> mm.Quadratic:
        draw = torch.Generator().manual_seed(100 + rank)
        b = torch.randn(dim, generator=draw, dtype=torch.float64)
        h = torch.rand(dim, generator=draw, dtype=torch.float64) + 0.5
        return mm.Quadratic(b=b, h=h, noise=0.3, dtype=dtype)

    return f


def both(
    algorithm: Any,
    objective: Callable[[int, int], mm.Quadratic],
    w: Any,
    clock: mm.Clock | None = None,
    steps: int = STEPS,
) -> tuple[torch.Tensor, torch.Tensor, mm.Run, mm.Run]:
    """Iterates of this rank after each step, (steps, d), on MPI and in the simulator; the runs."""
    real: list[torch.Tensor] = []
    virtual: list[torch.Tensor] = []

    def model(state: Any) -> torch.Tensor:
        return state.x.clone() if isinstance(state.x, torch.Tensor) else state.x.read()

    def observe_virtual(worker: Any, state: Any) -> None:
        if worker.rank == w.rank:
            virtual.append(model(state))

    run = mm.run(
        algorithm, objective, steps=steps, worker=w, observe=lambda _, s: real.append(model(s))
    )
    simulated = mm.simulate(
        algorithm, objective, w.size, steps=steps, topology=w.topology, seed=w.seed,
        clock=clock or mm.Clock(), observe=observe_virtual,
    )  # fmt: skip
    assert len(real) == len(virtual)
    empty = torch.empty(0)
    return (
        torch.stack(real) if real else empty,
        torch.stack(virtual) if virtual else empty,
        run,
        simulated,
    )


def without_times(run: mm.Run, rank: int) -> list[dict[str, Any]]:
    rows = [{k: v for k, v in row.items() if k != "time_s"} for row in run.records]
    return [row for row in rows if row["rank"] == rank]


@pytest.mark.mpi
@DTYPES
@pytest.mark.parametrize("variant", ["cta", "atc"])
@pytest.mark.parametrize(
    "graph", ["ring", "complete", "star", "exponential", "one-peer-exponential", "random-matching"]
)
def test_d_psgd_is_bit_identical(make_worker, nodes, graph, variant, dtype):
    w = make_worker(graph, seed=SEED)
    # neither slow ranks nor slow messages may change a bit
    clock = mm.Clock(jitter=0.5, slow={0: 3.0}, latency_s=0.7)
    real, virtual, run, simulated = both(mm.DPSGD(lr=0.1, variant=variant), noisy(dtype), w, clock)
    assert real.dtype == dtype
    assert real.shape == (STEPS, 1003)
    assert torch.equal(real, virtual)
    assert without_times(run, w.rank) == without_times(simulated, w.rank)
    assert run.bytes_per_rank == simulated.bytes_per_rank
    if w.rank == 0:
        assert torch.equal(run.x, simulated.x)


@pytest.mark.mpi
@pytest.mark.parametrize("dim", [1, 2, 300_001])
def test_d_psgd_is_bit_identical_at_any_length(make_worker, dim):
    w = make_worker("ring", seed=SEED)
    real, virtual, *_ = both(mm.DPSGD(lr=0.1), noisy(torch.float32, dim), w, steps=5)
    assert torch.equal(real, virtual)


@pytest.mark.mpi
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 3e-5), (torch.float64, 1e-13)])
def test_allreduce_sgd_is_bit_identical_on_a_node(make_worker, nodes, dtype, rounding):
    w = make_worker(seed=SEED)
    real, virtual, run, simulated = both(mm.AllReduceSGD(lr=0.1, mu=0.9), noisy(dtype), w)
    if nodes == "one node":
        assert torch.equal(real, virtual)
        assert without_times(run, w.rank) == without_times(simulated, w.rank)
        assert run.consensus_distance == 0.0
        assert run.bytes_per_rank == simulated.bytes_per_rank
    else:
        torch.testing.assert_close(real, virtual, rtol=0, atol=rounding)


@pytest.mark.mpi
@pytest.mark.parametrize("dim", [1, 2, 300_001])
def test_allreduce_sgd_is_bit_identical_at_any_length(make_worker, dim):
    w = make_worker(seed=SEED)
    algorithm = mm.AllReduceSGD(lr=0.1, mu=0.9)
    real, virtual, *_ = both(algorithm, noisy(torch.float32, dim), w, steps=5)
    assert torch.equal(real, virtual)


@pytest.mark.mpi
@DTYPES
def test_server_with_one_worker_is_bit_identical(make_worker, nodes, dtype):
    """All ranks but the last serve a shard: gradients come in one order only."""
    w = make_worker(seed=SEED)
    algorithm = mm.AsyncServer(lr=0.05, mu=0.8, servers=w.size - 1, dedicated=True)
    real, virtual, run, simulated = both(algorithm, noisy(dtype), w)
    assert len(real) == (STEPS if w.rank == w.size - 1 else 0)
    assert torch.equal(real, virtual)
    assert without_times(run, w.rank) == without_times(simulated, w.rank)
    assert run.bytes_per_rank == simulated.bytes_per_rank
    if w.rank == 0:
        assert torch.equal(run.x, simulated.x)


@pytest.mark.mpi
def test_another_seed_makes_other_bits(make_worker):
    """So that equality above means something."""
    w = make_worker("ring", seed=SEED)
    real, virtual, run, _ = both(mm.DPSGD(lr=0.1), noisy(torch.float64), w)
    other = mm.simulate(
        mm.DPSGD(lr=0.1), noisy(torch.float64), w.size, steps=STEPS, topology="ring", seed=SEED + 1
    )
    assert torch.equal(real, virtual)
    assert not torch.equal(run.mean, other.mean)


@pytest.mark.mpi
@DTYPES
@pytest.mark.parametrize(
    "algorithm",
    [
        mm.AllReduceSGD(lr=0.1, mu=0.9),
        mm.DPSGD(lr=0.1),
        mm.DPSGD(lr=0.1, variant="atc"),
        mm.ADPSGD(lr=0.1, mu=0.5),
        mm.ADPSGD(lr=0.1, reweight=True),
        mm.ADPSGD(lr=0.1, mu=0.9, variant="paired"),
        mm.AsyncServer(lr=0.1, mu=0.9),
        mm.SGP(lr=0.1, mu=0.5),
        mm.SlowMo(lr=0.1, mu=0.5, local_steps=3),
        mm.QuasiGlobalMomentum(lr=0.1, mu=0.5),
        mm.ElasticAveraging(lr=0.1, mu=0.5, local_steps=2),
        mm.Signum(lr=0.1),
        mm.Signum(lr=0.1, error_feedback=True),
    ],
    ids=repr,
)
def test_everything_is_bit_identical_on_one_rank(make_worker, algorithm, dtype):
    """With one worker every order is fixed; tests/laws/test_one_rank.py makes such a world."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.size > 1:
        pytest.skip("for a world of one rank")
    w = make_worker(seed=SEED)
    real, virtual, run, simulated = both(algorithm, noisy(dtype), w)
    assert torch.equal(real, virtual)
    assert torch.equal(run.x, simulated.x)
    assert without_times(run, 0) == without_times(simulated, 0)
