"""Collectives of vectors on a device that is not there: the CPU's results, in whatever pace."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.transport.lane import PASSED
from mpimomentum.transport.line import Line
from mpimomentum.transport.staging import DIRECT, IPC
from tests.pretend_lane import PretendLane

pytestmark = pytest.mark.mpi

PIECE = 1 << 10  # bytes
DTYPES = (torch.float32, torch.float64, torch.int64, torch.bfloat16)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch) -> None:
    monkeypatch.setattr(Line.__init__, "__defaults__", (PIECE, 3))


def passing(kinds: Any) -> dict[str, str]:
    return dict.fromkeys(kinds, "")


def on_device(make_worker: Callable[..., Any], seed: int, staging: str = "pinned") -> Any:
    make_lane = lambda device: PretendLane(seed)  # noqa: E731
    return make_worker("ring", make_lane=make_lane, staging=staging, probe=passing)


def vector(rank: int, length: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(100 * seed + rank)
    return (torch.randn(length, generator=generator, dtype=torch.float64) * 50).to(dtype)


def made(w: Any, values: Any) -> Any:
    """Return a vector of the device that has these values once the lane has come so far."""
    v = torch.full_like(values, 77)
    w.lane.begin(lambda: v.copy_(values))
    return v


LENGTHS = (1, 255, 256, 257, 5 * 256 + 3)


async def everything(w: Any, make: Callable[[Any], Any]) -> list[Any]:
    """Return what all collectives give for vectors of `make`, several under way at a time."""
    found: list[Any] = []
    for seed, (length, dtype) in enumerate(itertools.product(LENGTHS, DTYPES)):
        v = vector(w.rank, length, dtype, seed)
        first, second = w.allreduce(make(v)), w.allgather(make(v))
        rows = vector(w.rank, w.size * length, torch.uint8, seed).view(w.size, -1)
        third, fourth = w.alltoall(make(rows)), w.neighbor_allgather(make(v))
        found += [await fourth, await third, await second, await first]
        root = seed % w.size
        found.append(await w.broadcast(make(v), root))
        if v.dtype in (torch.float32, torch.float64):
            g = make(v)
            found.append(await w.collectives.mean_of_gradients(g, out=g))
        part = await w.gather(make(v[: length // 2 + w.rank % 2]))
        found += part or []
        counts = await w.vote(torch.tensor([seed, w.rank]))
        found.append(counts)
    await w.collectives.barrier()
    return found


def results(w: Any, make: Callable[[Any], Any]) -> list[Any]:
    found: list[Any] = []

    async def body() -> None:
        # copied at once: a result that is not there yet would differ
        for item in await everything(w, make):
            parts = item.values() if isinstance(item, dict) else (item,)
            found.extend(part.clone() for part in parts)
        await w.release()

    w.run(body())
    return found


def same(mine: list[Any], others: list[Any]) -> bool:
    return len(mine) == len(others) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(mine, others, strict=True)
    )


def alike(mine: list[Any], others: list[Any]) -> bool:
    """As same(), but for the rounding of sums in another order."""
    for a, b in zip(mine, others, strict=True):
        rtol = 2e-2 if a.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-3)
    return True


@pytest.mark.parametrize("staging", ["pinned", "direct"])
def test_results_and_traffic_are_those_of_the_cpu(make_worker, nodes, staging) -> None:
    plain = make_worker("ring")
    expected = results(plain, lambda v: v.clone())
    w = on_device(make_worker, seed=11 * plain.rank, staging=staging)
    assert w.staging.sums == staging
    found = results(w, partial(made, w))
    in_order = nodes == "one node" and staging == "pinned"
    assert (same if in_order else alike)(found, expected)
    assert w.collectives.traffic == plain.collectives.traffic


def test_a_way_that_does_not_wait_for_the_device_is_caught(make_worker, monkeypatch) -> None:
    w = on_device(make_worker, seed=1)
    monkeypatch.setattr(PretendLane, "mark", lambda self: PASSED)
    wrong: list[bool] = []

    async def body() -> None:
        for seed in range(8):
            v = vector(w.rank, 300, seed=seed)
            rows = await w.allgather(made(w, v))
            wrong.append(not torch.equal(rows[w.rank], v))
        await w.release()

    w.run(body())
    assert any(wrong)


class Log(PretendLane):
    """Writes down when pieces come down, are begun, and go up."""

    def __init__(self) -> None:
        super().__init__(seed=1, laziest=0)
        self.said: list[str] = []

    def begin(self, work: Callable[[], Any]) -> None:
        super().begin(work)
        self.said.append(f"{'down' if 'source' in work.__code__.co_varnames else 'up'}")


def test_the_next_pieces_come_down_while_one_is_summed(make_worker) -> None:
    w = make_worker("ring", make_lane=lambda device: Log(), staging="pinned")
    pieces = 7
    sum_piece = w.collectives._host.sum_piece

    def logged(piece: Any, gradients: bool) -> Any:
        w.lane.said.append("sum")
        return sum_piece(piece, gradients)

    w.collectives._host.sum_piece = logged

    async def body() -> None:
        v = torch.ones(pieces * PIECE // 4)
        total = await w.allreduce(v)
        assert (total == w.size).all()
        await w.release()

    w.run(body())
    said = w.lane.said
    assert (said.count("down"), said.count("sum"), said.count("up")) == (pieces,) * 3
    for k in range(pieces - 1):  # piece k + 1 begins to come down before the sum of k is over
        down = [i for i, text in enumerate(said) if text == "down"][k + 1]
        up = [i for i, text in enumerate(said) if text == "up"][k]
        assert down < up or k + 1 >= 3, said
    down, up = ([i for i, text in enumerate(said) if text == kind] for kind in ("down", "up"))
    for k in range(3, pieces):  # three buffers: the next waits for one that has gone up
        assert up[k - 3] < down[k]


def test_what_is_not_finite_does_not_leave_a_device_either(make_worker) -> None:
    for staging in ("pinned", "direct"):
        w = on_device(make_worker, seed=5, staging=staging)

        async def body(w=w) -> None:
            w.bind(mm.Quadratic(b=torch.zeros(4)), lr=0.1)
            w.guard = mm.non_finite.Guard(w, "abort")
            bad = torch.ones(700)
            bad[600] = torch.inf
            for call in (w.allreduce, w.allgather, w.neighbor_allgather):
                with pytest.raises(mm.non_finite.NonFinite, match="is not finite: it is not sent"):
                    await call(made(w, bad))
            await w.collectives.barrier()

        w.run(body())


def test_ranks_that_want_different_ways_are_told(make_worker) -> None:
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    with pytest.raises(ValueError, match="staging=pinned on rank 0, auto on rank 1"):
        on_device(make_worker, 0, staging="auto" if rank else "pinned")


def test_what_one_node_has_found_holds_for_all(make_worker, nodes) -> None:
    from mpi4py import MPI

    last = MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1

    def probe(kinds: Any) -> dict[str, str]:
        return passing(kinds) | ({"sums": "died of SIGSEGV"} if last and "sums" in kinds else {})

    w = make_worker("ring", make_lane=lambda device: PretendLane(0), probe=probe)
    if nodes == "one node":
        assert (w.staging.windows, w.staging.sums) == (IPC, "pinned")
    else:
        ways = {kind: getattr(w.staging, kind) for kind in DIRECT}
        assert ways == {"messages": "direct", "collectives": "direct", "sums": "pinned"}
        assert f"sums: died of SIGSEGV (node {w.size - 1})" in w.staging.reason


def test_a_probe_that_fails_is_an_answer(make_worker) -> None:
    def probe(kinds: Any) -> dict[str, str]:
        raise OSError("no processes")

    w = make_worker("ring", make_lane=lambda device: PretendLane(0), probe=probe)
    assert w.staging.windows == "pinned"
    assert "the probe failed: OSError: no processes" in w.staging.reason
