"""A mean gradient is the mean of the gradients, on the virtual clock as on ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.simulator import Simulation
from mpimomentum.topology import build

DIM = 301


def part(rank: int, scale: float = 1.0) -> mm.Quadratic:
    draw = torch.Generator().manual_seed(rank)
    b, h = torch.randn((2, DIM), generator=draw, dtype=torch.float64)
    return mm.Quadratic(b=b, h=scale * (h.abs() + 0.1), noise=0.2)


X = torch.linspace(-2, 2, DIM, dtype=torch.float64)


class Refusing(mm.Quadratic):
    def gradient(self, x: Any, batch: Any) -> Any:
        raise ArithmeticError("not this x")


async def body(w: Any) -> None:
    w.bind(part(w.rank), lr=0.1)
    await w.start()
    for _ in range(3):
        x = X * (w.step + 1)
        batch = w.sample()
        g = await w.gradient(x, batch)
        expected = (await w.allreduce(g)) / w.size
        mean = await w.mean_gradient(x, batch)
        assert torch.equal(mean, expected)
        before = mean.clone()  # holds until the next gradient, whatever else happens
        await w.allreduce(torch.ones(DIM, dtype=torch.float64))
        assert torch.equal(mean, before)
        w.step += 1
    batch = torch.zeros(DIM, dtype=torch.float64)
    one = (await w.mean_gradient(X, batch)).clone()
    w.bind(part(w.rank, scale=2.0), lr=0.1)
    assert torch.equal(await w.mean_gradient(X, batch), 2 * one)  # linear in f
    w.bind(Refusing(b=torch.zeros(1)), lr=0.1)
    with pytest.raises(ArithmeticError, match="not this x"):
        await w.mean_gradient(X, w.sample())


def test_on_the_virtual_clock() -> None:
    Simulation(build("ring", 4), mm.Clock(jitter=0.4, latency_s=0.1), seed=0).run(body)


@pytest.mark.mpi
def test_on_mpi(make_worker: Any) -> None:
    w = make_worker()

    async def whole() -> None:
        await body(w)
        await w.release()

    w.run(whole())


def test_the_virtual_clock_charges_the_gradient_and_then_the_allreduce() -> None:
    ended: dict[str, float] = {}

    def takes(name: str) -> Any:
        async def rank(w: Any) -> None:
            w.bind(part(w.rank), lr=0.1)
            if name == "mean":
                await w.mean_gradient(X, w.sample())
            else:
                await w.allreduce(await w.gradient(X, w.sample()))
            ended[name] = w.now_s()

        return rank

    clock = mm.Clock(slow={2: 3.0}, latency_s=0.1, bandwidth_Bps=1e4)
    for name in ("mean", "both"):
        Simulation(build("ring", 4), clock, seed=0).run(takes(name))
    assert ended["mean"] == ended["both"]
    assert ended["mean"] > 3.0 + 2 * 3 / 4 * 8 * DIM / 1e4
