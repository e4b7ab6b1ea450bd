"""Vectors longer than what MPI takes at once: 1000 stands for 2^31, and no call gets more."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from mpimomentum.transport import mailbox, memory
from mpimomentum.transport.collectives import Collectives
from mpimomentum.transport.mailbox import PointToPoint
from mpimomentum.transport.mpi import MPI
from mpimomentum.transport.window import InboxWindow

pytestmark = pytest.mark.mpi

LIMIT = 1000
LONG = 3 * LIMIT + 7
calls: dict[str, int] = {}


def counted(name: str, *buffers: Any) -> None:
    """Note that MPI was called, and check what it was given."""
    calls[name] = calls.get(name, 0) + 1
    for buffer in buffers:
        if isinstance(buffer, np.ndarray):
            assert buffer.size <= LIMIT, f"{name} of {buffer.size}"
        elif isinstance(buffer, MPI.buffer):
            assert buffer.nbytes <= LIMIT, f"{name} of {buffer.nbytes} bytes"


class Communicator(MPI.Intracomm):
    """One that looks at what it is given; its duplicates are such, too."""


class Window(MPI.Win):
    """One whose transfers are looked at."""


def _looked_at(cls: type, base: type, name: str) -> None:
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        counted(name, *arguments)
        return getattr(base, name)(self, *arguments, **options)

    setattr(cls, name, call)


for _name in ("Isend", "Irecv", "Ibcast", "Iallgather", "Ialltoall", "Iallreduce"):
    _looked_at(Communicator, MPI.Intracomm, _name)
for _name in ("Put", "Rget"):
    _looked_at(Window, MPI.Win, _name)


class Shim:
    """The module MPI, with windows that are looked at."""

    Win = Window

    def __getattr__(self, name: str) -> Any:
        return getattr(MPI, name)


@pytest.fixture
def driver() -> str:
    return "inline"


@pytest.fixture
def worker(make_worker: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One whose limits are low; on nodes of their own, where memory is reached by Put and Get."""
    monkeypatch.setenv("MPIMOMENTUM_FAKE_NODES", str(MPI.COMM_WORLD.size))
    w = make_worker()
    monkeypatch.setattr(mailbox, "_SLICE", LIMIT)
    monkeypatch.setattr(memory, "_MAX_RMA_BYTES", LIMIT)
    monkeypatch.setattr(memory, "MPI", Shim())
    calls.clear()
    return w


def looked_at(w: Any) -> Any:
    return dataclasses.replace(w.env, comm=Communicator(w.env.comm))


def test_collectives(worker: Any) -> None:
    w = worker

    async def body() -> None:
        c = Collectives(looked_at(w), w._engine, max_count=LIMIT)
        base = torch.arange(LONG, dtype=torch.float32)
        v = base + 10_000 * w.rank
        ranks = torch.arange(w.size)
        assert torch.equal(await c.allreduce(v), w.size * base + 10_000 * int(ranks.sum()))
        everyones = base + 10_000 * ranks[:, None]
        assert torch.equal(await c.allgather(v), everyones)
        rows = everyones.flip(0).contiguous() + w.rank
        got = await c.alltoall(rows)
        assert torch.equal(got, rows[w.rank] - w.rank + ranks[:, None])
        assert torch.equal(await c.broadcast(v.clone(), 2), everyones[2])
        models = await c.neighbor_allgather(v, w.mixing(0), 0)
        assert all(torch.equal(m, everyones[j]) for j, m in models.items())
        parts = await c.gather(v[: LONG - w.rank])
        if w.rank == 0:
            assert all(torch.equal(p, everyones[r][: LONG - r]) for r, p in enumerate(parts))
        c.close()

    w.run(body())
    several = {"Ibcast", "Iallgather", "Ialltoall", "Iallreduce", "Isend"}
    assert all(calls[name] > 3 for name in several)


def test_messages(worker: Any) -> None:
    w = worker

    async def body() -> None:
        box = PointToPoint(looked_at(w), w._engine, "long", w.lane)
        sent = torch.arange(LONG, dtype=torch.int64) + w.rank
        await box.send((w.rank + 1) % w.size, sent, version=7)
        source, version, got = await box.recv()
        assert (source, version) == ((w.rank - 1) % w.size, 7)
        assert torch.equal(got, sent - w.rank + source)
        await w.collectives.barrier()
        box.close()

    w.run(body())
    assert calls["Isend"] == calls["Irecv"] + 1 == 1 + -(-8 * LONG // LIMIT)  # and its head


def test_windows(worker: Any) -> None:
    w = worker

    async def body() -> None:
        x0 = torch.arange(LONG, dtype=torch.float32) + 100 * w.rank
        window = InboxWindow(w.env, w._engine, "long", x0)
        await w.collectives.barrier()
        following = (w.rank + 1) % w.size
        got, _ = await window.get(following)
        assert torch.equal(got, x0 - 100 * w.rank + 100 * following)
        await w.collectives.barrier()
        if w.rank == 0:
            await window.add(2, torch.ones(LONG))
            assert await window.average(1)
        await w.collectives.barrier()
        window.drain()
        shift = {0: 50.0, 1: -50.0, 2: 1.0}.get(w.rank, 0.0)
        assert torch.equal(window.read(), x0 + shift)
        await w.collectives.barrier()
        window.close()

    w.run(body())
    pieces = -(-4 * LONG // LIMIT)
    assert calls["Rget"] >= pieces  # and what makes a read whole
    assert calls.get("Put", 0) == (2 * pieces if w.rank == 0 else 0)
