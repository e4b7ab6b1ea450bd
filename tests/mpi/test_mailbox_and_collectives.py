"""Mailboxes, collectives and counters on 4 ranks."""

from __future__ import annotations

import pytest
import torch

from mpimomentum.transport.collectives import Collectives

pytestmark = pytest.mark.mpi


def test_messages_keep_source_version_order_and_content(make_worker):
    w = make_worker()

    async def body():
        box, other = w.mailbox("a"), w.mailbox("b")
        await w.start()
        count = 5
        for k in range(count):
            for target in range(w.size):
                v = torch.full((1000 * k,), float(w.rank), dtype=torch.float64)
                await box.send(target, v, version=10 * k)
        await other.send(w.rank, torch.tensor([7], dtype=torch.uint8))
        next_version = dict.fromkeys(range(w.size), 0)
        for _ in range(count * w.size):
            source, version, v = await box.recv()
            assert version == next_version[source]
            next_version[source] += 10
            assert v.shape == (100 * version,)
            assert v.dtype == torch.float64
            assert (v == source).all()
        source, _, v = await other.recv()
        assert (source, v.tolist()) == (w.rank, [7])
        await w.quiesce()
        await w.release()

    w.run(body())


def test_quiesce_waits_for_messages_that_are_answered_with_messages(make_worker):
    w = make_worker()

    async def body():
        box = w.mailbox("hops")
        hops = []

        async def serve():
            while True:
                _, version, v = await box.recv()
                hops.append(version)
                if version:
                    await box.send((w.rank + 1) % w.size, v, version - 1)

        await w.start()
        service = w.spawn(serve(), "serving")
        if w.rank == 0:
            await box.send(0, torch.zeros(1), version=3 * w.size)
        await w.quiesce()
        w.cancel(service)
        total = await w.allreduce(torch.tensor([len(hops)]))
        assert int(total) == 3 * w.size + 1
        await w.release()

    w.run(body())


def test_counter_hands_out_every_ticket_once(make_worker, nodes):
    w = make_worker()

    async def body():
        counter = w.counter("tickets", home=w.size - 1)
        await w.start()
        mine = [await counter.fetch_add() for _ in range(200)]
        assert mine == sorted(mine)
        tickets = (await w.allgather(torch.tensor(mine))).flatten()
        assert tickets.sort().values.tolist() == list(range(200 * w.size))
        await w.quiesce()
        await w.release()

    w.run(body())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("max_count", [1 << 30, 7])
def test_collectives_also_in_slices(make_worker, dtype, max_count):
    """Counts above what MPI can take go in slices; 7 elements stand for 2^31."""
    w = make_worker()

    async def body():
        c = Collectives(w.env, w._engine, max_count=max_count)
        n = w.size
        v = torch.arange(20, dtype=dtype) + 100 * w.rank
        total = await c.allreduce(v)
        assert torch.equal(total, n * torch.arange(20, dtype=dtype) + 100 * (n * (n - 1) // 2))
        rows = await c.allgather(v)
        assert torch.equal(
            rows, torch.stack([torch.arange(20, dtype=dtype) + 100 * r for r in range(n)])
        )
        table = torch.arange(n * 6, dtype=dtype).reshape(n, 6) + 1000 * w.rank
        got = await c.alltoall(table)
        expected = [torch.arange(6, dtype=dtype) + 6 * w.rank + 1000 * r for r in range(n)]
        assert torch.equal(got, torch.stack(expected))
        models = await c.neighbor_allgather(v, w.mixing(0), 0)
        assert list(models) == sorted({w.rank, *w.neighbors})
        assert all(
            torch.equal(m, torch.arange(20, dtype=dtype) + 100 * j) for j, m in models.items()
        )
        parts = await c.gather(v[: w.rank + 3])
        if w.rank == 0:
            assert [len(p) for p in parts] == [r + 3 for r in range(n)]
            assert all(p[0] == 100 * r for r, p in enumerate(parts))
        else:
            assert parts is None
        await c.barrier()
        c.close()

    w.run(body())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(make_worker, dtype):
    w = make_worker()

    async def body():
        v = torch.full((64,), 1 / 3, dtype=dtype)
        total = await w.allreduce(v)
        assert total.dtype == dtype
        assert torch.equal(total, (v.float() * w.size).to(dtype))

    w.run(body())


def test_what_mpi_would_get_wrong_is_refused(make_worker):
    w = make_worker()

    async def body():
        with pytest.raises(ValueError, match="cannot sum"):
            w.allreduce(torch.zeros(3, dtype=torch.uint8))
        with pytest.raises(ValueError, match="contiguous"):
            w.allreduce(torch.zeros(4, 4)[:, 0])
        with pytest.raises(ValueError, match="one row a rank"):
            w.alltoall(torch.zeros(w.size + 1, 2))
        with pytest.raises(ValueError, match="no rank 99"):
            w.mailbox("x").send(99, torch.zeros(1))
        await w.quiesce()
        await w.release()

    w.run(body())


def test_allreduce_counts_its_bytes(make_worker):
    w = make_worker()

    async def body():
        before = w.traffic.nbytes
        await w.allreduce(torch.zeros(1000))
        assert w.traffic.nbytes - before == 2 * (w.size - 1) * 4000 // w.size

    w.run(body())
