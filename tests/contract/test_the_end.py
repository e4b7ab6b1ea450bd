"""The orderly end: a run ends when nothing is in flight, what services have begun included."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.topology import build

PUSHES = 5


@pytest.fixture
def driver() -> str:
    return "thread"


def begin(w: Any) -> tuple[Any, Any]:
    w.bind(mm.Quadratic(b=torch.zeros(1)), lr=0.0)
    return w.window("sum", torch.zeros(3)), w.mailbox("pushes")


async def slow_service(w: Any, window: Any, box: Any, adds: list[Any]) -> None:
    """What it does with a message takes a while, and it does not wait for its adds."""
    while True:
        _, _, v = await box.recv()
        await w.gradient(torch.zeros(1), w.sample())
        adds.append(window.add((w.rank + 1) % w.size, v))


async def body(w: Any, results: dict[int, Any]) -> None:
    window, box = begin(w)
    adds: list[Any] = []
    await w.start()
    service = w.spawn(slow_service(w, window, box, adds), "serving")
    for _ in range(PUSHES):
        await box.send((w.rank + 1) % w.size, torch.ones(3), version=7)
    await w.quiesce()
    w.cancel(service)
    results[w.rank] = window.read().tolist()
    # a cancelled service takes no message away from whoever receives next
    await box.send(w.rank, torch.full((1,), 2.0))
    _, _, v = await box.recv()
    assert v.tolist() == [2.0]
    await w.quiesce()


def test_services_finish_what_they_began_on_the_virtual_clock() -> None:
    from mpimomentum.simulator import Simulation

    results: dict[int, Any] = {}
    simulation = Simulation(build("ring", 4), mm.Clock(latency_s=0.3), seed=0)
    simulation.run(lambda w: body(w, results))
    assert results == {r: [PUSHES] * 3 for r in range(4)}


@pytest.mark.mpi
def test_services_finish_what_they_began_on_mpi(make_worker: Any, nodes: str) -> None:
    w = make_worker()
    results: dict[int, Any] = {}

    async def whole() -> None:
        await body(w, results)
        await w.release()

    w.run(whole())
    assert results == {w.rank: [PUSHES] * 3}


@pytest.mark.mpi
def test_a_run_that_cannot_end_says_why(make_worker: Any) -> None:
    w = make_worker(timeout_s=1.0)

    async def whole() -> None:
        _, box = begin(w)
        await w.start()
        if w.rank == 0:
            await box.send(1, torch.ones(1))
        await w.quiesce()

    with pytest.raises(RuntimeError, match=r"does not end.*1 messages were sent, 0 received"):
        w.run(whole())


@pytest.mark.mpi
def test_thousands_of_adds_may_be_under_way(make_worker: Any, nodes: str) -> None:
    w = make_worker()

    async def whole() -> None:
        window, _ = begin(w)
        await w.start()
        for _ in range(1500 if w.rank == 0 else 0):
            window.add(1, torch.ones(3))
        await w.quiesce()
        assert window.read().tolist() == ([1500.0] * 3 if w.rank == 1 else [0.0] * 3)
        await w.release()

    w.run(whole())


@pytest.mark.mpi
def test_one_dtype_on_all_ranks_or_none(make_worker: Any) -> None:
    w = make_worker()

    async def whole() -> None:
        w.window("x", torch.zeros(3, dtype=torch.float64 if w.rank == 1 else torch.float32))

    with pytest.raises(ValueError, match=r"torch.float64 on rank 1"):
        w.run(whole())
