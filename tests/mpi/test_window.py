"""Windows: contract on 4 ranks, on one node and across, with both drivers."""

from __future__ import annotations

import pytest
import torch

from mpimomentum.transport.progress import NextPoll

pytestmark = pytest.mark.mpi


def test_add_lands_where_it_should_and_counts(make_worker, nodes):
    w = make_worker()

    async def body():
        window = w.window("x", torch.zeros(5))
        await w.start()
        for target in range(w.size):
            await window.add(target, torch.full((5,), float(w.rank + 1)))
        await w.quiesce()
        assert window.read().tolist() == [sum(range(1, w.size + 1))] * 5
        assert window.version == w.size
        assert window.mixes == 0
        await w.release()

    w.run(body())


def test_adds_of_one_rank_are_applied_in_order_even_unawaited(make_worker, nodes):
    w = make_worker()

    async def body():
        window = w.window("x", torch.zeros(3, dtype=torch.float64))
        await w.start()
        pending = []
        if w.rank == 1:
            pending = [
                window.add(0, torch.full((3,), 10.0**k, dtype=torch.float64)) for k in range(6)
            ]
        seen = [float(window.read()[0])]
        while w.rank == 0 and seen[-1] < 111111:
            value, version = await window.get(0)
            if float(value[0]) != seen[-1]:
                seen.append(float(value[0]))
                assert version == len(str(int(value[0])))
            await NextPoll()
        await w.quiesce()
        assert all(h.test() for h in pending)
        if w.rank == 0:  # every value seen is a run of ones: never 100 before 10
            assert all(set(str(int(v))) <= {"1", "0"} and "01" not in str(int(v)) for v in seen)
        await w.release()

    if w.size > 1:
        w.run(body())


def test_get_is_whole_and_has_the_version_it_was_read_at(make_worker, nodes):
    w = make_worker()
    dim = 700_001  # three chunks, the last one odd
    steps = 60

    async def body():
        window = w.window("x", torch.zeros(dim))
        done = w.counter("done")
        await w.start()
        if w.rank == 0:
            one = torch.ones(dim)
            for _ in range(steps):
                await window.add(0, one)
                await NextPoll()
            await done.fetch_add(1)
        versions = []
        while w.rank and not await done.fetch_add(0):
            x, version = await window.get(0)
            assert x.min() == x.max() == version
            versions.append(version)
        assert versions == sorted(versions)
        await w.quiesce()
        final, version = await window.get(0)
        assert version == steps
        assert final.min() == final.max() == steps
        await w.release()

    w.run(body())


def test_a_written_vector_is_seen_whole_and_counts_as_one_add(make_worker, nodes):
    w = make_worker()
    dim = 700_001  # three chunks, the last one odd
    steps = 40

    async def body():
        window = w.window("x", torch.zeros(dim))
        done = w.counter("done")
        await w.start()
        if w.rank == 0:
            for step in range(steps):
                covered = torch.zeros(dim)
                for x, now in window.writing():
                    x += 1
                    covered[now] += 1
                assert covered.min() == covered.max() == 1
                assert window.version == step + 1
                await NextPoll()
            await done.fetch_add(1)
        while w.rank and not await done.fetch_add(0):
            x, version = await window.get(0)
            assert x.min() == x.max() == version
        await w.quiesce()
        assert torch.equal((await window.get(0))[0], torch.full((dim,), float(steps)))
        await w.release()

    w.run(body())


def test_an_average_makes_both_ends_equal_and_moves_its_bytes(make_worker, nodes):
    w = make_worker()

    async def body():
        window = w.window("x", torch.full((300_000,), float(w.rank)))
        await w.start()
        if w.rank == 0:
            while not await window.average(1):
                await NextPoll()
            assert w.traffic.nbytes >= 2 * 1_200_000
        await w.quiesce()
        assert window.read()[0] == window.read()[-1] == (0.5 if w.rank < 2 else w.rank)
        assert window.mixes == (1 if w.rank < 2 else 0)
        await w.release()

    w.run(body())


def test_a_busy_inbox_is_passed_over(make_worker, nodes):
    w = make_worker()

    async def body():
        window = w.window("x", torch.zeros(4))
        await w.start()
        if w.rank == 0:  # claim rank 1's word as a slow rank would, and try again beside it
            claim = window._claim_both(1)
            assert claim is not None
            assert not await window.average(1)
            assert w.busy_rate == 1.0
            window._memory.compare_and_swap(0, claim, 0)
            window._memory.compare_and_swap(1, claim, 0)
            assert await window.average(1)
        await w.quiesce()
        await w.release()

    w.run(body())


def test_windows_may_differ_in_length_but_then_not_average(make_worker, nodes):
    w = make_worker()

    async def body():
        window = w.window("x", torch.full((w.rank + 1,), float(w.rank), dtype=torch.float64))
        await w.start()
        last, version = await window.get(w.size - 1)
        assert last.tolist() == [w.size - 1] * w.size
        assert version == 0
        with pytest.raises(ValueError, match="cannot average"):
            await window.average((w.rank + 1) % w.size)
        await w.quiesce()
        await w.release()

    w.run(body())


@pytest.mark.parametrize(
    "wrong", [torch.zeros(4), torch.zeros(3, dtype=torch.float64), torch.zeros(3, 1)]
)
def test_what_does_not_fit_is_refused(make_worker, wrong):
    w = make_worker()

    async def body():
        window = w.window("x", torch.zeros(3))
        with pytest.raises(ValueError, match=r"window 'x' holds \(3,\) torch.float32"):
            window.add(w.rank, wrong)
        await w.quiesce()
        await w.release()

    w.run(body())
