"""One rank's model for all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.errors import BadInput

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker


def broadcast_parameters(
    model: nn.Module | Mapping[str, Tensor], worker: MPIWorker, root: int = 0
) -> None:
    """Overwrite the parameters and buffers of every rank with those of `root`. Collective.

    Parameters
    ----------
    model : nn.Module or mapping of str to torch.Tensor
        A model, or a ``state_dict``; written in place, any types, on any device.
    worker : MPIWorker
    root : int
        The rank whose values all get.

    Raises
    ------
    BadInput
        On all ranks, if names, shapes or types differ between ranks, or there is no such rank.
    """
    if not 0 <= root < worker.size:
        raise BadInput(f"root={root}: the ranks are 0 to {worker.size - 1}")
    named = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = [t.detach() for t in named.values() if isinstance(t, Tensor)]
    layout = [(k, tuple(t.shape), str(t.dtype)) for k, t in named.items() if isinstance(t, Tensor)]
    digest = hashlib.sha256(repr(layout).encode()).hexdigest()[:12]
    said = told(worker, f"{len(tensors)} tensors ({digest})")
    for rank, theirs in enumerate(said):
        if theirs != said[root]:
            raise BadInput(
                f"rank {root} has {said[root]}, rank {rank} {theirs}: names, shapes and types must "
                f"be the same on every rank"
            )
    if not tensors:
        return
    data = torch.cat([t.cpu().contiguous().reshape(-1).view(torch.uint8) for t in tensors])

    async def broadcast() -> None:
        await worker.broadcast(data, root)

    worker.run(broadcast(), f"the parameters of rank {root}")
    start = 0
    with torch.no_grad():
        for t in tensors:
            n = t.numel() * t.element_size()
            if n and worker.rank != root:
                # a copy: a view of another type would need an aligned start
                values = data[start : start + n].clone().view(t.dtype)
                t.copy_(values.reshape(t.shape))
            start += n
