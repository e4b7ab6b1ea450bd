"""A synchronous training job in which rank 1 goes wrong inside a collective step.

usage: mpirun -n N python failing_sums.py HOW

HOW is one of

backward   its backward raises after the first parts of the gradient have left
lengths    its model is longer than that of the others
late       it never asks for its part of the last sum
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mpimomentum as mm
from mpimomentum.runtime.objectives.buckets import Buckets


class Broken(torch.autograd.Function):
    """Raises in its third backward."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor) -> torch.Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        Broken.calls += 1
        if Broken.calls == 3:
            Path(os.environ["FAILED_AT"]).touch()
            raise ArithmeticError("the backward of this rank is broken")
        return g


class Net(nn.Module):
    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 30), nn.Linear(30, 2)
        self.broken = broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(Broken.apply(h) if self.broken else h)


def net(rank: int, size: int) -> mm.TorchObjective:
    torch.manual_seed(0)
    x, y = torch.randn(8, 4), torch.randn(8, 2)
    f = mm.TorchObjective(Net(broken=rank == 1), nn.functional.mse_loss, x, y, batch_size=4)
    f._buckets = Buckets(f.parameters, bucket_bytes=100)
    return f


class Late(mm.AllReduceSGD):
    """Rank 1 waits at step 5 for a message that never comes."""

    async def step(self, w: Any, s: Any) -> None:
        if w.step == 5 and w.rank == 1:
            await self.box.recv()
        await super().step(w, s)

    def init(self, w: Any, x0: Any) -> Any:
        object.__setattr__(self, "box", w.mailbox("nothing"))
        return super().init(w, x0)


def main(how: str) -> None:
    w = mm.init()

    def quadratic(rank: int, size: int) -> mm.Quadratic:
        return mm.Quadratic(b=torch.ones(50 if how == "lengths" and rank == 1 else 40))

    algorithm = (Late if how == "late" else mm.AllReduceSGD)(lr=0.1)
    mm.run(algorithm, net if how == "backward" else quadratic, steps=20, worker=w)


if __name__ == "__main__":
    main(sys.argv[1])
