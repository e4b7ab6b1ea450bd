"""Hand-offs and collectives on a GPU: in order, with the CPU's results, and nothing waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.transport.staging import untried
from tests.mpi.test_staged_collectives import alike, everything, same, vector

from .on_gpu import missing

if reason := missing():
    pytest.skip(f"streams were not tried on a GPU: {reason}", allow_module_level=True)

pytestmark = pytest.mark.mpi

LATE = 20_000_000  # clock cycles: about 10 ms
LENGTH = 3 * (4 << 20) // 4 + 5  # of several pieces


def on_gpu(make_worker: Any, staging: str = "pinned") -> Any:
    return make_worker("ring", device=torch.device("cuda", 0), staging=staging, probe=untried)


@pytest.fixture
def strict() -> Any:
    """Have torch raise where it would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def results(w: Any, make: Any) -> list[Any]:
    found: list[Any] = []

    async def body() -> None:
        for item in await everything(w, make):
            found.extend(item.values() if isinstance(item, dict) else (item,))
        await w.release()

    w.run(body())
    return found


def test_collectives_give_what_they_give_on_the_cpu(make_worker, nodes, strict) -> None:
    expected = results(make_worker("ring"), lambda v: v.clone())
    w = on_gpu(make_worker)
    found = results(w, lambda v: v.pin_memory().to(w.device, non_blocking=True))
    torch.cuda.set_sync_debug_mode("default")
    in_order = nodes == "one node"
    assert (same if in_order else alike)([v.cpu() for v in found], expected)


def test_a_long_sum_has_the_bits_of_the_cpu(make_worker, strict) -> None:
    w = on_gpu(make_worker)
    found: list[Any] = []

    async def body() -> None:
        v = vector(w.rank, LENGTH).pin_memory().to(w.device, non_blocking=True)
        torch.cuda._sleep(LATE)
        v += 1  # late: the copy down must come after it
        found.append(await w.allreduce(v))
        await w.release()

    w.run(body())
    torch.cuda.set_sync_debug_mode("default")
    expected = vector(0, LENGTH) + 1
    for rank in range(1, w.size):
        expected = expected + (vector(rank, LENGTH) + 1)
    assert torch.equal(found[0].cpu(), expected)


def test_gradients_are_of_the_x_asked_for_and_used_once_computed(make_worker, strict) -> None:
    w = on_gpu(make_worker)
    g = torch.zeros(1000, device=w.device)  # the program's, written again and again
    x = torch.zeros(1000, device=w.device)

    def gradient(x_hat: Any) -> Any:
        torch.cuda._sleep(LATE)
        return g.copy_(x_hat).sub_(4)

    async def body() -> Any:
        for _ in range(5):
            torch.cuda._sleep(LATE)
            x_hat = x.clone()
            x.sub_(await w.compute(lambda x_hat=x_hat: gradient(x_hat), "a gradient"), alpha=0.5)
            junk = torch.full_like(x, float("nan"))  # in what memory was given back
            del x_hat, junk
        return x

    x.fill_(36)  # before the coroutine begins, on this thread's stream
    total = w.run(body())
    torch.cuda.set_sync_debug_mode("default")
    assert total.tolist() == [5.0] * 1000


def test_messages_and_sums_of_a_device(make_worker, strict) -> None:
    w = on_gpu(make_worker)
    said: list[Any] = []

    async def body() -> None:
        box, target = w.mailbox("m"), (w.rank + 1) % w.size
        sums = w.sums("s", torch.zeros(LENGTH), 1)  # made of what the host has: no wait
        await w.start()
        v = torch.full((LENGTH,), float(w.rank + 1), device=w.device)
        await box.send(target, v, version=3)
        await sums.add(v, {0: 2.0})
        source, version, u = await box.recv()
        await w.collectives.barrier()
        rows = await sums.read([0])
        said.append((source, version, u, rows))
        await w.quiesce()
        await w.release()

    w.run(body())
    torch.cuda.set_sync_debug_mode("default")
    ((source, version, u, rows),) = said
    assert (source, version, u.is_cuda) == ((w.rank - 1) % w.size, 3, True)
    assert bool((u == source + 1).all())
    assert bool((rows == w.size * (w.size + 1)).all())


SIGNS = [
    mm.Signum(lr=0.01, beta=0.0),
    mm.Signum(lr=0.01, weight_decay=0.1),
    mm.Signum(lr=0.1, error_feedback=True),
]


@pytest.mark.parametrize("algorithm", SIGNS, ids=repr)
def test_a_run_of_signum_has_the_bits_of_the_cpu(make_worker, algorithm) -> None:
    def run(w: Any) -> Any:
        def objective(rank: int, size: int) -> mm.Quadratic:
            generator = torch.Generator().manual_seed(rank)
            b, h = (torch.randn(100_003, generator=generator).to(w.device) for _ in range(2))
            return mm.Quadratic(b, h.abs(), dtype=torch.float32)

        return mm.run(algorithm, objective, steps=20, worker=w)

    expected, found = run(make_worker("ring")), run(on_gpu(make_worker))
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.x, expected.x)
    assert found.bytes_sent == expected.bytes_sent
