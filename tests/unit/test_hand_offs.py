"""What one thread hands to the other comes in order, though neither waits: on pretend streams."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch

from mpimomentum.transport.driver import InlineDriver, ThreadDriver
from mpimomentum.transport.hand_offs import HandOffs
from mpimomentum.transport.lane import CudaProgram
from mpimomentum.transport.mean_gradient import MeanOfParts
from mpimomentum.transport.progress import Backoff, Engine, NextPoll
from mpimomentum.worker import Handle
from tests.pretend_lane import PretendLane, PretendProgram

SEEDS = range(12)


def nothing(*args: object) -> None:
    pass


def make(kind: str, lane: PretendLane) -> InlineDriver | ThreadDriver:
    if kind == "inline":
        return InlineDriver(Engine(), lane, nothing, nothing, Backoff())
    return ThreadDriver(Engine(), lambda: lane, nothing, nothing, Backoff())


class Loop:
    """x ← x − g(x)/2, each piece of it begun on the stream of the thread that it belongs to."""

    def __init__(self, kind: str, seed: int) -> None:
        self.lane = PretendLane(seed)
        self.driver = make(kind, self.lane)
        self.g = torch.zeros(3)  # the program's, written again and again
        self.x = torch.full((3,), float("nan"))

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        side = self.lane.side
        for i in range(3):
            side.begin(lambda i=i: self.g[i].copy_(x[i] - i))
        return self.g

    def ask(self, x: torch.Tensor, by: str) -> Handle[torch.Tensor]:
        if by == "compute":
            return self.driver.compute(lambda: self.gradient(x), "a gradient")
        return self.driver.ask(lambda h: self.driver.answer(h, self.gradient(x)), "step()")

    async def train(self, by: str, steps: int = 4) -> torch.Tensor:
        for _ in range(steps):
            x_hat = torch.full((3,), float("nan"))
            self.lane.begin(lambda x_hat=x_hat: x_hat.copy_(self.x))
            g = await self.ask(x_hat, by)
            self.lane.begin(lambda g=g: self.x.sub_(g, alpha=0.5))
        return self.x

    def run(self, by: str = "compute") -> torch.Tensor:
        self.lane.side.begin(lambda: self.x.fill_(16.0))  # before the coroutine begins
        x = self.driver.run(self.train(by), "training")
        out = torch.empty(3)
        self.lane.side.begin(lambda: out.copy_(x))  # after it has ended
        self.lane.side.settle()
        self.driver.close()
        return out


EXPECTED = torch.tensor([1.0, 1 + 15 / 16, 2 + 14 / 16])


@pytest.mark.parametrize("by", ["compute", "ask"])
@pytest.mark.parametrize("kind", ["thread", "inline"])
def test_gradients_are_of_the_x_asked_for_and_used_once_computed(kind, by) -> None:
    for seed in SEEDS:
        assert torch.equal(Loop(kind, seed).run(by), EXPECTED), seed


def ignore_marks(monkeypatch) -> None:
    monkeypatch.setattr(PretendProgram, "after", lambda self, event: None)


def resolve_at_once(monkeypatch) -> None:
    monkeypatch.setattr(HandOffs, "taken", lambda self, event, value: True)


def begin_at_once(monkeypatch) -> None:
    monkeypatch.setattr(HandOffs, "enter", lambda self, coroutine: coroutine)


@pytest.mark.parametrize("broken", [ignore_marks, resolve_at_once, begin_at_once])
def test_without_a_hand_off_the_result_is_another(monkeypatch, broken) -> None:
    broken(monkeypatch)
    assert any(not torch.equal(Loop("inline", seed).run(), EXPECTED) for seed in SEEDS)


@pytest.mark.parametrize("kind", ["thread", "inline"])
def test_a_gradient_counts_as_returned_when_the_device_has_computed_it(kind) -> None:
    loop = Loop(kind, seed=3)
    engine, side = loop.driver.engine, loop.lane.side
    computed = []

    def gradient() -> None:
        side.begin(lambda: computed.append(engine.gradients_returned))

    async def body() -> None:
        handle = loop.driver.compute(gradient, "a gradient")
        while not engine.gradients_returned:  # nobody awaits it: it is counted all the same
            assert not handle.done
            await NextPoll("the device")
        assert handle.done

    loop.driver.run(body(), "body")
    assert computed == [0]
    loop.driver.close()


def test_what_was_asked_lives_until_the_device_has_read_it() -> None:
    loop = Loop("inline", seed=1)
    read = []

    class X:
        pass

    def at(x: X) -> None:
        seen = weakref.ref(x)
        loop.lane.side.begin(lambda: read.append(seen() is not None))

    async def body() -> None:
        x = X()
        handle = loop.driver.compute(lambda x=x: at(x), "a gradient")
        del x
        gc.collect()
        await handle

    loop.driver.run(body(), "body")
    assert read == [True]


def test_a_failed_gradient_is_raised_after_what_was_begun() -> None:
    loop = Loop("inline", seed=2)
    done = []

    def gradient() -> None:
        loop.lane.side.begin(lambda: done.append(True))
        raise ArithmeticError("not this x")

    async def body() -> None:
        with pytest.raises(ArithmeticError, match="not this x"):
            await loop.driver.compute(gradient, "a gradient")
        assert done

    loop.driver.run(body(), "body")


class Doubling:
    """In place of collectives: a mean that doubles, on the lane."""

    size = 2

    def __init__(self, lane: PretendLane) -> None:
        self.lane = lane

    def mean_of_gradients(self, v: torch.Tensor, out: torch.Tensor) -> Handle[torch.Tensor]:
        self.lane.begin(lambda: out.copy_(2 * v))
        return Handle.completed(out)


@pytest.mark.parametrize("kind", ["thread", "inline"])
def test_parts_are_averaged_once_computed_and_seen_once_averaged(kind) -> None:
    for seed in SEEDS:
        loop = Loop(kind, seed)
        collectives = Doubling(loop.lane)
        g, seen = torch.zeros(3), []

        def gradient(parts: MeanOfParts, g=g, seen=seen, loop=loop) -> torch.Tensor:
            for i in range(3):
                loop.lane.side.begin(lambda i=i: g[i].fill_(i + 1))
                parts.hand_over(g[i : i + 1])
            seen.append(parts)
            return g

        async def body(loop=loop, collectives=collectives, gradient=gradient) -> None:
            mean = MeanOfParts(
                loop.driver,
                collectives,  # type: ignore[arg-type]
                lambda parts: loop.driver.compute(lambda: gradient(parts), "a gradient"),
            )
            total = await mean
            assert mean.settled
            assert total.tolist() == [2, 4, 6]  # what any thread may read

        loop.driver.run(body(), "body")
        loop.driver.close()


class OnGpu(torch.Tensor):
    """Host memory that says to be a GPU's, and by which streams it was used."""

    is_cuda = True
    used_by: list[str]

    def record_stream(self, stream: str) -> None:
        self.used_by = [*getattr(self, "used_by", []), stream]


@dataclasses.dataclass
class State:
    x: torch.Tensor
    nested: Any


def test_whatever_holds_vectors_of_the_lane_they_are_adopted(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the program's")
    a, b, c, d, e = (torch.zeros(2).as_subclass(OnGpu) for _ in range(5))
    value = {"model": a, "state": State(b, [c, (d,), torch.ones(1), 3, None]), "class": State}
    value["itself"] = value
    for handed_over in (value, e):
        CudaProgram(torch.device("cuda", 0)).adopt(handed_over)
    assert [v.used_by for v in (a, b, c, d, e)] == [["the program's"]] * 5
