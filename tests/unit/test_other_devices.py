"""No algorithm mixes a device's vectors with the host's, on a device that is not there.

Every algorithm of the contract's table runs on the virtual clock with its vectors on a pretended
device (:mod:`tests.pretend_device`): where an operation would fail on a GPU it fails here, and what
comes out has the bits of the CPU's run.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime.constant import Constant
from mpimomentum.runtime.link_probe import Alone, LinkProbe
from tests.contract.test_algorithms import TABLE, Layered, graph_of, scattered
from tests.pretend_device import DEVICE, DeviceTensor, WrongDevice, on_device, on_host, pretended

SIZE, STEPS = 4, 7
WAITS = {"ad-psgd auto", "async-server auto", "async-server auto 2 shards", "signum", "signsgd"}
"""Rows that ask for numbers of a vector, through ``Worker.numbers`` and nothing else."""


class Elsewhere(Layered):
    """An objective that computes on the CPU, of which all that is seen is on the device."""

    def __init__(self, inner: mm.Quadratic) -> None:
        self.inner = inner
        self.dim = inner.dim

    samples = 8

    def initial(self) -> torch.Tensor:
        return on_device(self.inner.initial())

    def sample(self, rng: np.random.Generator, indices: Sequence[int] | None = None) -> Any:
        return self.inner.sample(rng, indices)

    def gradient(self, x: torch.Tensor, batch: Any) -> torch.Tensor:
        assert isinstance(x, DeviceTensor), "a gradient asked for at a host vector"
        return on_device(self.inner.gradient(on_host(x), batch))

    def full_gradient(self, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(x, DeviceTensor)
        return on_device(self.inner.full_gradient(on_host(x)))


def run(algorithm: Any, objective: Any) -> mm.Run:
    clock = mm.Clock(jitter=0.2, latency_s=0.01)
    graph = graph_of(algorithm, SIZE)
    return mm.simulate(algorithm, objective, SIZE, steps=STEPS, topology=graph, clock=clock)


@pytest.mark.parametrize("name", TABLE)
def test_vectors_stay_where_they_are_with_the_same_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm, expected = TABLE[name], run(TABLE[name], scattered)
    asked: list[int] = []

    async def numbers(self: Any, v: torch.Tensor) -> list[float]:
        asked.append(v.numel())
        return on_host(v).tolist()

    monkeypatch.setattr(mm.simulator.worker.VirtualWorker, "numbers", numbers)
    with pretended() as device:
        during: list[str] = []
        found = run(algorithm, lambda r, n: Elsewhere(scattered(r, n)))
        during = list(device.looks)
    assert isinstance(found.x, DeviceTensor)
    assert torch.equal(on_host(found.x), expected.x)
    assert [r.get("tau") for r in found.records] == [r.get("tau") for r in expected.records]
    # the end of a run looks at one number, the consensus distance: a step at none
    assert len(during) == 1, during
    assert bool(asked) == (name in WAITS)
    assert max(asked, default=0) <= 2


def test_what_calibrates_a_machine_sends_vectors_of_the_device() -> None:
    used = set()

    class Watched(LinkProbe):
        def _operation(self, name: str, w: Any, s: Any, v: torch.Tensor) -> Any:
            used.update({type(v), type(s.x), *(type(i.read()) for i in s.windows.values())})
            return super()._operation(name, w, s, v)

    for algorithm in (Watched([0, 0, 1, 1], 4096, repeats=2), Alone()):
        with pretended():
            run(algorithm, lambda r, n: Constant(8, DEVICE))
    assert used == {DeviceTensor}


def test_every_algorithm_was_run_there() -> None:
    assert {a.name for a in TABLE.values()} == set(ALGORITHMS)
    assert set(TABLE) >= WAITS


@pytest.mark.parametrize(
    "mixing",
    [
        lambda x, h: x + h,
        lambda x, h: h.add_(x),
        lambda x, h: torch.cat((x, h)),
        lambda x, h: torch.where(x > 0, x, h),
        lambda x, h: mm.mix.heavy_ball(x, x.clone(), h, 0.1, 0.5),
        lambda x, h: mm.sign.apply(x, torch.zeros(1, dtype=torch.uint8), 0.1),
        lambda x, h: x @ h,
    ],
)
def test_the_pretended_device_tells_a_mixture(mixing: Any) -> None:
    with pretended(), pytest.raises(WrongDevice):
        mixing(on_device(torch.ones(3)), torch.ones(3))


def test_the_pretended_device_computes_copies_and_counts_looks() -> None:
    with pretended() as device:
        x = on_device(torch.arange(4.0))
        y = torch.zeros_like(x).add_(x, alpha=2.0)
        y[1:3] = torch.full((2,), 9.0)
        z = torch.zeros(2, device=DEVICE)
        assert all(isinstance(t, DeviceTensor) for t in (x[1:], x.new_ones(1), z, x.double()))
        assert y.device == DEVICE
        assert type(y.to("cpu")) is torch.Tensor
        assert type(torch.zeros(2)) is torch.Tensor
        assert (x * torch.tensor(2.0)).device == DEVICE  # a single number goes anywhere
        assert device.transfers == 2
        assert not device.looks
        assert float(y.sum()) == 24.0
        assert len(device.looks) == 1
    assert on_host(y).tolist() == [0.0, 9.0, 9.0, 6.0]


PACKAGE = Path(mm.__file__).parent
ON_EVERY_STEP = (
    "algorithms/*.py",
    "transport/*.py",
    "codecs/*.py",
    "runtime/objective.py",
    "runtime/objectives/[bfs]*.py",
    "runtime/guarded.py",
    "runtime/loop.py",
    "runtime/monitor.py",
    "runtime/probe.py",
    "runtime/own_loop.py",
    "runtime/host_copies.py",
    "base_worker.py",
    "non_finite.py",
)
WAITING = {"synchronize", "item", "cpu", "wait_stream"}
ALLOWED = {
    ("transport/cuda_probe.py", "synchronize"),  # a process of its own
    ("runtime/objectives/flat.py", "cpu"),  # running statistics, at the end of a run
}


def test_nothing_waits_for_a_device_on_any_step() -> None:
    """No call that blocks until a GPU has got somewhere; what is known later is polled."""
    found = set()
    files = {path for pattern in ON_EVERY_STEP for path in PACKAGE.glob(pattern)}
    assert len(files) > 80
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in WAITING:
                found.add((str(path.relative_to(PACKAGE)), called.attr))
    assert found == ALLOWED
