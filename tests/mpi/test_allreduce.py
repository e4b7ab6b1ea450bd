"""Sums over ranks: the same bits on all of them, in ascending order of rank on one node."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.transport.progress import NextPoll
from mpimomentum.transport.shared_allreduce import CHUNK_BYTES, SLOTS, SharedAllreduce
from mpimomentum.worker import Handle

pytestmark = pytest.mark.mpi

CHUNK = CHUNK_BYTES // 4  # float32
LENGTHS = [1, 2, 15, 16, 17, 63, 1003, CHUNK - 1, CHUNK + 1, (SLOTS + 1) * CHUNK + 5]


def vector(rank: int, length: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(100 * seed + rank)
    return torch.randn(length, generator=generator, dtype=torch.float64).to(dtype)


def in_order(size: int, length: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    total = vector(0, length, dtype, seed)
    for rank in range(1, size):
        total = total + vector(rank, length, dtype, seed)
    return total


def run(w: Any, body: Any) -> None:
    """Run a coroutine on all ranks and check that it came to its end."""
    came = []

    async def whole() -> None:
        await body()
        await w.release()
        came.append(w.rank)

    w.run(whole())
    assert came == [w.rank]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sum_is_in_ascending_order_of_rank(make_worker, dtype):
    w = make_worker()

    async def body():
        for length in LENGTHS:
            v = vector(w.rank, length, dtype)
            given = v.clone()
            total = await w.allreduce(v)
            assert torch.equal(total, in_order(w.size, length, dtype)), length
            assert torch.equal(v, given)
            assert total.data_ptr() != v.data_ptr()

    run(w, body)


def test_the_mean_does_not_depend_on_the_cut_and_is_made_in_place(make_worker, nodes):
    w = make_worker()
    length = 3 * CHUNK + 11
    whole = in_order(w.size, length) / w.size

    async def body():
        for cuts in ([], [1], [CHUNK], [7, 8, CHUNK + 3, 2 * CHUNK + 17, length - 1]):
            v = vector(w.rank, length)
            bounds = [0, *cuts, length]
            parts = [v[a:b] for a, b in itertools.pairwise(bounds)]
            means = [w.collectives.mean_of_gradients(part, out=part) for part in reversed(parts)]
            for mean in means:
                await mean
            if nodes == "one node":
                assert torch.equal(v, whole), cuts
            else:  # MPI's order
                torch.testing.assert_close(v, whole, rtol=0, atol=1e-6)

    run(w, body)


def test_gradients_may_come_between_any_allreduces(make_worker, nodes):
    """Each rank begins a mean at another moment of its sequence of allreduces."""
    w = make_worker()
    length = CHUNK + 3

    async def body():
        sums: list[Handle[Any]] = []
        for k in range(2 * w.size):
            if k == w.rank:
                v = vector(w.rank, length, seed=99)
                mean = w.collectives.mean_of_gradients(v, out=v)
            sums.append(w.allreduce(vector(w.rank, 50 + k, seed=k)))
        for k, handle in reversed(list(enumerate(sums))):
            expected = in_order(w.size, 50 + k, seed=k)
            torch.testing.assert_close(await handle, expected, rtol=0, atol=1e-5)
        expected = in_order(w.size, length, seed=99) / w.size
        torch.testing.assert_close(await mean, expected, rtol=0, atol=1e-6)

    run(w, body)


def test_rings_go_round_whoever_is_late(make_worker):
    """Small slots, many vectors, ranks that stumble at random: every bit is right."""
    w = make_worker()

    async def body():
        sums = SharedAllreduce(w.env, "a test", chunk_bytes=128)
        w._engine.pollers.append(sums.poll)
        lengths = torch.randint(1, 400, (300,), generator=torch.Generator().manual_seed(5)).tolist()
        waiting: list[tuple[int, int, Handle[Any]]] = []
        for seed, length in enumerate(lengths):
            dtype = (torch.float32, torch.float64)[seed % 2]
            v = vector(w.rank, length, dtype, seed)
            waiting.append((seed, length, sums.start(v, torch.empty_like(v))))
            for _ in range(int(w.rng.integers(3))):
                await NextPoll("nothing")
            while len(waiting) > w.rng.integers(6):
                seed, length, handle = waiting.pop(0)
                dtype = (torch.float32, torch.float64)[seed % 2]
                assert torch.equal(await handle, in_order(w.size, length, dtype, seed)), seed
        for seed, length, handle in waiting:
            dtype = (torch.float32, torch.float64)[seed % 2]
            assert torch.equal(await handle, in_order(w.size, length, dtype, seed)), seed
        await w.collectives.barrier()
        w._engine.pollers.remove(sums.poll)
        sums.close()

    run(w, body)


def test_a_sum_under_way_says_who_is_late(make_worker):
    w = make_worker()

    async def body():
        started = w.rank != w.size - 1
        v = torch.ones(3)
        total = w.allreduce(v) if started else None
        await w.collectives.barrier()
        if started:
            last = w.size - 1
            assert total.what == f"rank {last} to bring its part of the allreduce"
        await w.collectives.barrier()
        total = total or w.allreduce(v)
        assert (await total).tolist() == [w.size] * 3

    run(w, body)


def test_which_way_sums_go_can_be_asked(make_worker, nodes):
    w = make_worker()
    shared = "through the node's shared memory, in ascending order of rank"
    expected = shared if nodes == "one node" and w.size > 1 else "MPI's allreduce"
    assert w.collectives.allreduce_path == expected


class InParts(mm.Quadratic):
    """Hands its gradient over in three parts, the last first, as backward would."""

    def gradient_in_parts(self, x: Any, batch: Any, emit: Any) -> Any:
        g = self._kept = self.gradient(x, batch).clone()
        for a, b in ((700, 1003), (1, 700), (0, 1)):
            emit(g[a:b])
        return g


def quadratic(kind: type[mm.Quadratic], rank: int, scale: float = 1.0) -> mm.Quadratic:
    b = vector(rank, 1003, torch.float64)
    return kind(b=b, h=scale * (vector(rank, 1003, torch.float64, 7).abs() + 0.5))


@pytest.mark.parametrize("kind", [mm.Quadratic, InParts])
def test_the_mean_gradient_is_that_of_the_mean_objective(make_worker, nodes, kind):
    w = make_worker()
    x = vector(0, 1003, torch.float64, 3)
    gradients = [quadratic(mm.Quadratic, r).full_gradient(x) for r in range(w.size)]
    total = gradients[0]
    for g in gradients[1:]:
        total = total + g

    async def body():
        w.bind(quadratic(kind, w.rank), lr=0.1)
        for _ in range(3):
            mean = await w.mean_gradient(x, w.sample())
            if nodes == "one node":
                assert torch.equal(mean, total / w.size)
            else:
                torch.testing.assert_close(mean, total / w.size, rtol=1e-13, atol=1e-13)
        w.bind(quadratic(kind, w.rank, scale=2.0), lr=0.1)  # linear in the objective
        doubled = (await w.mean_gradient(x, w.sample())).clone()
        torch.testing.assert_close(doubled, 2 * total / w.size, rtol=1e-13, atol=1e-13)

    run(w, body)


def test_a_gradient_that_all_ranks_refuse_alike_is_raised_where_it_is_awaited(make_worker):
    w = make_worker()

    class Refusing(mm.Quadratic):
        def gradient_in_parts(self, x: Any, batch: Any, emit: Any) -> Any:
            emit(torch.ones(4))
            raise ArithmeticError("not this x")

    async def body():
        w.bind(Refusing(b=torch.zeros(4)), lr=0.1)
        with pytest.raises(ArithmeticError, match="not this x"):
            await w.mean_gradient(torch.zeros(4), w.sample())
        assert (await w.allreduce(torch.ones(2))).tolist() == [w.size] * 2
        w.bind(InParts(b=torch.zeros(1003)), lr=0.1)  # the sequence of parts is still the same
        x = vector(0, 1003, torch.float64)
        assert torch.equal(await w.mean_gradient(x, w.sample()), x)

    run(w, body)
