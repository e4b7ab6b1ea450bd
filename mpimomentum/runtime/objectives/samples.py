"""The samples of one rank: how a batch of indices becomes what the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SHARE = 4  # of a GPU's free memory the data of a rank may take one part in so many
CHUNK = 1024  # samples per forward pass where all the data are gone through


class AugmentedBatch(NamedTuple):
    """A mini-batch with the seed of its augmentation: taking it again gives the same images."""

    indices: Tensor
    seed: int


def room(device: torch.device) -> int | None:
    """Return how many bytes of a rank's data a device takes; None: there is no limit.

    A quarter of what is free when the objective is made: before the model has any activations, and
    before other ranks on the same GPU have come to theirs.
    """
    return torch.cuda.mem_get_info(device)[0] // SHARE if device.type == "cuda" else None


class Samples:
    """Inputs and targets of one rank: on the model's device, if they fit.

    Else they stay where they are, in host memory, and each batch is gathered into pinned memory and
    copied from there while the CPU goes on.

    Parameters
    ----------
    x, y : torch.Tensor
        Inputs, shape (n, …), and targets, shape (n, …). Not copied if they are on `device`
        already, and never written.
    device : torch.device
        What :meth:`take` returns is there.
    prepare : callable, optional
        Stored inputs -> what the model takes.
    augment : callable, optional
        (stored inputs, generator) -> changed inputs, before `prepare`.
    part : torch.Tensor, optional
        Indices of this rank's samples, int64; by default all.
    limit_bytes : int, optional
        Most that the data may take on `device`.

    Raises
    ------
    ValueError
        If there are not as many targets as inputs.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        device: torch.device,
        prepare: Callable[[Tensor], Tensor] | None,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None,
        part: Tensor | None,
        limit_bytes: int | None = None,
    ) -> None:
        if len(x) != len(y):
            raise ValueError(f"{len(x)} inputs (train_x) but {len(y)} targets (train_y)")
        self._device = device
        elements = (t[:1].numel() * t.element_size() for t in (x, y))
        nbytes = sum(elements) * len(x if part is None else part)
        if limit_bytes is None or nbytes <= limit_bytes:
            if part is not None and device.type != "cpu":  # nobody shares that memory
                x, y, part = x[part], y[part], None
            x, y = x.to(device), y.to(device)
        self._x, self._y = x, y
        self._part = torch.arange(len(x)) if part is None else part
        self._prepare = prepare
        self._augment = augment
        self._generator = torch.Generator()

    def __len__(self) -> int:
        """Return the number of this rank's samples."""
        return len(self._part)

    @property
    def augmented(self) -> bool:
        """Whether training batches are changed at random."""
        return self._augment is not None

    def take(self, batch: Tensor | AugmentedBatch) -> tuple[Tensor, Tensor]:
        """Return what the model takes for `batch`, and the targets."""
        indices = batch.indices if isinstance(batch, AugmentedBatch) else batch
        where = self._part[indices]
        x, y = (_rows(t, where, self._device) for t in (self._x, self._y))
        if isinstance(batch, AugmentedBatch) and self._augment is not None:
            x = self._augment(x, self._generator.manual_seed(batch.seed))
        return self.prepared(x), y

    def prepared(self, x: Tensor) -> Tensor:
        """Return what the model takes for stored inputs."""
        return x if self._prepare is None else self._prepare(x)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through all samples as they are, without augmentation."""
        return map(self.take, torch.split(torch.arange(len(self)), CHUNK))


def _rows(t: Tensor, where: Tensor, device: torch.device) -> Tensor:
    """Return rows of `t`, on `device`; with a GPU, without waiting for it."""
    if device.type != "cuda":
        return t[where].to(device)
    if t.device == device:
        return t[where.pin_memory().to(device, non_blocking=True)]
    rows = torch.empty((len(where), *t.shape[1:]), dtype=t.dtype, pin_memory=True)
    torch.index_select(t, 0, where, out=rows)
    return rows.to(device, non_blocking=True)
