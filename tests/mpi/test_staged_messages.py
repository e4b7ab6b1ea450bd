"""Mailboxes and sums of vectors on a device that is not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.transport.line import Line
from mpimomentum.transport.progress import NextPoll
from tests.mpi.test_staged_collectives import made, on_device, vector
from tests.pretend_lane import PretendLane

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("staging", ["pinned", "direct"])
def test_messages_arrive_whole_in_the_order_of_sends(make_worker, staging) -> None:
    w = on_device(make_worker, seed=w_seed(staging), staging=staging)

    async def body() -> None:
        box = w.mailbox("a")
        await w.start()
        lengths = (0, 1, 3000, 5)
        for k, length in enumerate(lengths):
            for target in range(w.size):
                v = made(w, vector(w.rank, length, seed=k))
                sending = box.send(target, v, version=k)
                if k % 2:
                    await sending
                    v.fill_(-1)  # may be changed now
        following = dict.fromkeys(range(w.size), 0)
        for _ in range(len(lengths) * w.size):
            source, version, v = await box.recv()
            assert version == following[source]
            following[source] += 1
            assert torch.equal(v, vector(source, lengths[version], seed=version))
        await w.quiesce()
        await w.release()

    w.run(body())


def w_seed(staging: str) -> int:
    return len(staging)


class TwoPlaces(PretendLane):
    """Only float64 lives on the device."""

    def holds(self, v: Any) -> bool:
        return v.dtype == torch.float64


def test_what_left_the_host_arrives_on_the_host_in_its_turn(make_worker, monkeypatch) -> None:
    w = make_worker("ring", make_lane=lambda device: TwoPlaces(3), staging="pinned")
    went_up: list[torch.dtype] = []
    up = Line.up

    def noted(line: Line, host: Any, out: Any = None) -> Any:
        went_up.append(host.dtype)
        return up(line, host, out)

    monkeypatch.setattr(Line, "up", noted)

    async def body() -> None:
        box, target = w.mailbox("a"), (w.rank + 1) % w.size
        await w.start()
        for k in range(6):
            dtype = (torch.float64, torch.float32)[k % 2]
            values = vector(w.rank, 400, dtype, seed=k)
            box.send(target, made(w, values) if k % 2 == 0 else values, version=k)
        for k in range(6):
            source, version, v = await box.recv()
            assert version == k
            dtype = (torch.float64, torch.float32)[k % 2]
            assert torch.equal(v, vector(source, 400, dtype, seed=k))
        await w.quiesce()
        await w.release()

    w.run(body())
    assert went_up == [torch.float64] * 3


def test_what_is_not_finite_is_not_sent(make_worker) -> None:
    for staging in ("pinned", "direct"):
        w = on_device(make_worker, seed=7, staging=staging)

        async def body(w=w) -> None:
            w.bind(mm.Quadratic(b=torch.zeros(4)), lr=0.1)
            w.guard = mm.non_finite.Guard(w, "abort")
            box, sums = w.mailbox("m"), w.sums("s", torch.zeros(700), 1)
            bad = torch.ones(700)
            bad[600] = torch.nan
            with pytest.raises(mm.non_finite.NonFinite, match=r"a message to mailbox 'm' of rank"):
                await box.send((w.rank + 1) % w.size, made(w, bad))
            with pytest.raises(mm.non_finite.NonFinite, match="what is added to sums 's' is not"):
                await sums.add(made(w, bad), {0: 1.0})
            await w.collectives.barrier()

        w.run(body())


@pytest.mark.parametrize("staging", ["pinned", "direct"])
def test_what_is_not_finite_is_heard_of_though_nobody_awaits_it(make_worker, staging) -> None:
    w = on_device(make_worker, seed=7, staging=staging)

    async def body() -> None:
        w.bind(mm.Quadratic(b=torch.zeros(4)), lr=0.1)
        w.guard = mm.non_finite.Guard(w, "abort")
        w.mailbox("m").send((w.rank + 1) % w.size, made(w, torch.full((7,), torch.nan)))
        await w.collectives.barrier()
        for _ in range(1000):
            await NextPoll()

    with pytest.raises(mm.non_finite.NonFinite, match=r"a message to mailbox 'm' of rank"):
        w.run(body())


def test_sums_add_what_the_device_has_computed(make_worker, nodes) -> None:
    w = on_device(make_worker, seed=9)
    length = 1003

    async def body() -> None:
        x0 = vector(0, length, torch.float64, seed=50)
        sums = w.sums("s", made(w, x0), 2)
        await w.start()
        for k in range(3):
            v = made(w, vector(w.rank, length, torch.float64, seed=k))
            adding = sums.add(v, {0: 0.5, 1: -1.0})
            await adding
            v.fill_(-1)  # may be changed now
        await w.collectives.barrier()
        added = sum(
            vector(r, length, torch.float64, seed=k) for r in range(w.size) for k in (0, 1, 2)
        )
        found = await sums.read([1, 0])
        torch.testing.assert_close(found[0], -added, rtol=0, atol=1e-9)
        torch.testing.assert_close(found[1], x0 + 0.5 * added, rtol=0, atol=1e-9)
        await w.collectives.barrier()
        own = sums.own()
        sums.restore(made(w, own + 1))
        await w.collectives.barrier()
        torch.testing.assert_close((await sums.read([1]))[0], 1 - added, rtol=0, atol=1e-9)
        await w.quiesce()
        await w.release()

    w.run(body())
