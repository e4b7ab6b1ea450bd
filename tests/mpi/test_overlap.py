"""Training a torch model with its gradients averaged in parts: the bits of the plain way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import mpimomentum as mm
from mpimomentum.runtime.objectives.buckets import Buckets
from mpimomentum.runtime.pace import paced

pytestmark = pytest.mark.mpi

STEPS = 6


class Net(nn.Module):
    """Rank 1 leaves out a branch in every batch, the others use it."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.first = nn.Linear(12, 40)
        self.branch = nn.Linear(40, 40)
        self.last = nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        if self.rank != 1:
            h = h + torch.tanh(self.branch(h))
        return self.last(h)


class Small(mm.TorchObjective):
    """A bucket a layer."""

    def __init__(self, *args: Any, bucket_bytes: int = 200, **options: Any) -> None:
        super().__init__(*args, **options)
        self._buckets = Buckets(self.parameters, bucket_bytes)
        self.emitted: list[int] = []

    def gradient_in_parts(self, x: Any, batch: Any, emit: Any) -> Any:
        def noted(part: torch.Tensor) -> None:
            self.emitted.append(part.numel())
            emit(part)

        return super().gradient_in_parts(x, batch, noted)


class Plain:
    """The same objective, without parts."""

    def __init__(self, objective: Any) -> None:
        self._objective = objective
        for name in ("dim", "samples", "initial", "sample", "gradient", "loss"):
            setattr(self, name, getattr(objective, name))


def make(kind: str, made: list[Any]) -> Any:
    def f(rank: int, size: int) -> Any:
        torch.manual_seed(0)
        model = Net(rank)
        generator = torch.Generator().manual_seed(rank + 1)
        x, y = torch.randn(30, 12, generator=generator), torch.randn(30, 3, generator=generator)
        small = Small(model, mse_loss, x, y, batch_size=5)
        made.append(small)
        if kind == "paced":
            return paced(small, rank, compute_s=0.002, slow={0: 3.0}, seed=rank)
        return Plain(small) if kind == "plain" else small

    return f


def weights(w: Any, kind: str, made: list[Any]) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    mm.run(
        mm.AllReduceSGD(lr=0.05, mu=0.9),
        make(kind, made),
        steps=STEPS,
        worker=w,
        observe=lambda _, s: seen.append(s.x.clone()),
    )
    return seen


def test_weights_are_those_without_parts_bit_by_bit(make_worker, nodes):
    w = make_worker(seed=3)
    made: list[Any] = []
    plain = weights(w, "plain", made)
    parts = weights(w, "parts", made)
    held_back = weights(w, "paced", made)
    places = [place.stop - place.start for place in made[1]._buckets.places]
    assert places == [123, 1640, 520]  # a layer each, the last first
    assert made[0].emitted == []
    assert made[1].emitted == made[2].emitted == places * STEPS
    assert not torch.equal(plain[0], plain[-1])
    for a, b, c in zip(plain, parts, held_back, strict=True):
        if nodes == "one node" or w.size == 2:
            assert torch.equal(a, b)
            assert torch.equal(a, c)
        else:  # MPI may add another length in another order
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
            torch.testing.assert_close(a, c, rtol=0, atol=1e-5)


def test_ranks_and_simulator_train_a_net_to_the_same_bits(make_worker):
    w = make_worker(seed=3)
    real = weights(w, "parts", [])
    virtual: list[torch.Tensor] = []
    mm.simulate(
        mm.AllReduceSGD(lr=0.05, mu=0.9),
        make("plain", []),
        w.size,
        steps=STEPS,
        seed=3,
        observe=lambda v, s: virtual.append(s.x.clone()) if v.rank == w.rank else None,
    )
    assert all(torch.equal(a, b) for a, b in zip(real, virtual, strict=True))


def test_all_ranks_hold_the_same_weights(make_worker, nodes):
    w = make_worker(seed=3)
    last = weights(w, "parts", [])[-1]

    async def body() -> None:
        rows = await w.allgather(last)
        assert all(torch.equal(row, last) for row in rows)

    w.run(body())
