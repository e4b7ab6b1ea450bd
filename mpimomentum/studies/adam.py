"""Adam, to compare with: what most people would use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpimomentum.worker import Requires, Vector, Worker


@dataclass
class AdamState:
    """What a rank keeps."""

    x: Vector
    m: Vector
    v: Vector


@dataclass(frozen=True)
class Adam:
    """Adam on the mean gradient, as everybody has it."""

    lr: float
    beta: float = 0.9
    beta2: float = 0.999

    name: ClassVar[str] = "adam"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "none"

    def init(self, w: Worker, x0: Vector) -> AdamState:
        """Start at x0 with moments of zero."""
        return AdamState(x0.clone(), torch.zeros_like(x0), torch.zeros_like(x0))

    async def step(self, w: Worker, s: AdamState) -> None:
        """Take a step."""
        g = await w.gradient(s.x, w.sample())
        g = (await w.allreduce(g)) / w.size
        s.m.lerp_(g, 1 - self.beta)
        s.v.lerp_(g * g, 1 - self.beta2)
        t = w.step + 1
        scale = (s.v / (1 - self.beta2**t)).sqrt_().add_(1e-8)
        s.x.addcdiv_(s.m, scale, value=-self.lr / (1 - self.beta**t))
