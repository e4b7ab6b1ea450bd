"""A device's vectors in host memory, for what the CPU does with them; without waiting for a GPU."""

from __future__ import annotations

from typing import Any

import torch

from mpimomentum.worker import Vector

CPU = torch.device("cpu")


async def on_host(w: Any, v: Vector) -> Vector:
    """Return `v`, or a copy in host memory if it is elsewhere; for coroutines of a run."""
    if not (hasattr(w, "lane") and w.lane.holds(v)):  # a simulator's, or the host's
        return v
    flat = v.reshape(-1)
    copy: Vector = w.lane.staging(flat.numel(), flat.dtype)
    w.lane.begin(lambda: copy.copy_(flat, non_blocking=True))
    await w.lane.done("a copy in host memory", hold=(copy, flat))
    return copy.view(v.shape)


def own_copy(v: torch.Tensor) -> torch.Tensor:
    """Return a copy in host memory that nobody else writes; waits, so not for every step."""
    return v.detach().to(CPU, copy=True)
