"""The samples of one rank: how a batch of indices becomes what the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1024  # samples per forward pass where all the data are gone through


class AugmentedBatch(NamedTuple):
    """A mini-batch with the seed of its augmentation: taking it again gives the same images."""

    indices: Tensor
    seed: int


class Samples:
    """Inputs and targets of one rank, on the model's device.

    Parameters
    ----------
    x, y : torch.Tensor
        Inputs, shape (n, …), and targets, shape (n, …). Not copied if they are on `device`
        already, and never written.
    device : torch.device
    prepare : callable, optional
        Stored inputs -> what the model takes.
    augment : callable, optional
        (stored inputs, generator) -> changed inputs, before `prepare`.
    part : torch.Tensor, optional
        Indices of this rank's samples, int64; by default all.

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
    ) -> None:
        if len(x) != len(y):
            raise ValueError(f"{len(x)} inputs (train_x) but {len(y)} targets (train_y)")
        if part is not None and device.type != "cpu":  # nobody shares that memory: the part only
            x, y, part = x[part], y[part], None
        self._x, self._y = x.to(device), y.to(device)
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
        x = self._x[where]
        if isinstance(batch, AugmentedBatch) and self._augment is not None:
            x = self._augment(x, self._generator.manual_seed(batch.seed))
        return self.prepared(x), self._y[where]

    def prepared(self, x: Tensor) -> Tensor:
        """Return what the model takes for stored inputs."""
        return x if self._prepare is None else self._prepare(x)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through all samples as they are, without augmentation."""
        return map(self.take, torch.split(torch.arange(len(self)), CHUNK))
