"""What is minimised: a torch model on this rank's data, as a function of one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mpimomentum.runtime.host_copies import own_copy
from mpimomentum.runtime.objectives.buckets import Buckets
from mpimomentum.runtime.objectives.finite_sums import (
    LeastSquares,
    NonconvexQuadratics,
    SoftmaxRegression,
)
from mpimomentum.runtime.objectives.flat import FlatModel
from mpimomentum.runtime.objectives.quadratic import Quadratic
from mpimomentum.runtime.objectives.samples import CHUNK, AugmentedBatch, Samples, room
from mpimomentum.runtime.objectives.streaming_pca import StreamingPCA
from mpimomentum.worker import Objective, Vector

__all__ = [
    "FlatModel",
    "LeastSquares",
    "NonconvexQuadratics",
    "Quadratic",
    "SoftmaxRegression",
    "StreamingPCA",
    "TorchObjective",
]


class TorchObjective(Objective):
    """Mean loss of a torch model over this rank's data.

    Gradients are taken in the mode (``train()`` or ``eval()``) in which the model is, losses and
    accuracies in evaluation mode. Every method that takes an `x` leaves it in the model.

    Parameters
    ----------
    model : nn.Module
        The model, on its device; from now on its parameters are views of `flat`, its gradients
        of `grad`. Not to be shared with another objective.
    loss : callable
        ``loss(outputs, targets)``, a scalar: the *mean* over the samples given.
    train_x, train_y : torch.Tensor
        This rank's inputs, shape (n, …), and targets, shape (n, …). Never written. Where the model
        is on a GPU they are moved there if they take at most a quarter of its free memory; else
        each batch is.
    batch_size : int
        Samples per mini-batch, 1 to n.
    weight_decay : float
        λ of L2 regularisation: gradients, not losses, are those of loss + λ/2 ‖x‖², as with
        ``torch.optim.SGD(weight_decay=λ)``.
    prepare : callable, optional
        ``prepare(x)`` makes of stored inputs what the model takes: for each batch of training and
        evaluation. By default inputs are stored as the model takes them.
    augment : callable, optional
        ``augment(x, generator)`` changes the stored inputs of a training batch at random, before
        `prepare`; `generator` is a torch.Generator on the CPU. What :meth:`full_gradient` and
        :meth:`loss` go through, and batches of given indices, are left as they are.
    part : torch.Tensor, optional
        Indices of this rank's samples in `train_x`, int64, shape (n,), where that holds the data
        of several ranks; by default all.
    amp : bool
        Whether gradients are computed under ``torch.autocast`` in bfloat16. Parameters, gradients
        and losses stay float32; :meth:`loss` and :meth:`accuracy` are computed in float32.

    Attributes
    ----------
    flat, grad : torch.Tensor
        The model's parameters and gradients, float32, shape (dim,).
    dim, samples : int
        Number of trainable parameters; n.

    Raises
    ------
    ValueError
        If the lengths disagree, `batch_size` or `weight_decay` is not possible, or
        :class:`FlatModel` refuses.
    """

    resizing: ClassVar[dict[str, str]] = {"order": "fresh", "position": "fresh", "buffers": "mean"}

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        train_x: Tensor,
        train_y: Tensor,
        batch_size: int,
        *,
        weight_decay: float = 0.0,
        prepare: Callable[[Tensor], Tensor] | None = None,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        part: Tensor | None = None,
        amp: bool = False,
    ) -> None:
        device = next(model.parameters(), torch.empty(0)).device  # none: FlatModel refuses
        self._data = Samples(train_x, train_y, device, prepare, augment, part, room(device))
        self._amp = amp
        self.samples = len(self._data)
        if not 1 <= batch_size <= self.samples:
            raise ValueError(
                f"batch_size {batch_size} is not possible with this rank's {self.samples} samples: "
                f"use a smaller one, or fewer ranks"
            )
        if not 0 <= weight_decay < float("inf"):
            raise ValueError(f"weight_decay={weight_decay} must be finite and not negative")
        self.model = model
        self.parameters = FlatModel(model)
        self.flat, self.grad = self.parameters.flat, self.parameters.grad
        self.dim = self.parameters.dim
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self._criterion = loss
        self._initial = self.flat.clone()
        self._order = torch.empty(0, dtype=torch.int64)  # this epoch's; none is begun
        self._position = 0
        self._last_loss = torch.tensor(float("nan"))  # in host memory
        self._buckets: Buckets | None = None  # made when first asked for

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Sizes of the trainable parameters, in the order of `flat`."""
        return self.parameters.layer_sizes

    def initial(self) -> Vector:
        """Return a copy of the parameters that the model came with, shape (dim,)."""
        return self._initial.clone()

    def sample(
        self, rng: np.random.Generator, indices: Sequence[int] | None = None
    ) -> Tensor | AugmentedBatch:
        """Draw a mini-batch without replacement, or take the one given.

        Every epoch goes through the data once, in a new order drawn from `rng`. All batches have
        `batch_size` samples: where an epoch ends within one, the next epoch's begin fills it.

        Parameters
        ----------
        rng : numpy.random.Generator
            The data's stream; drawn from once an epoch, and once a batch if there is augmentation;
            not at all if `indices` are given.
        indices : sequence of int, optional
            Samples of the batch, any number of them; the epoch is not advanced.

        Returns
        -------
        torch.Tensor or AugmentedBatch
            Indices of the samples, int64, shape (batch,), on the CPU; with augmentation, and no
            `indices` given, also the seed of this batch's.

        Raises
        ------
        ValueError
            If `indices` is empty or not within 0 … samples − 1.
        """
        if indices is not None:
            batch = torch.as_tensor(indices, dtype=torch.int64)
            if batch.numel() == 0 or batch.min() < 0 or batch.max() >= self.samples:
                raise ValueError(f"expected one or more of samples 0 to {self.samples - 1}")
            return batch
        batch = self._order[self._position : self._position + self.batch_size]
        self._position += len(batch)
        missing = self.batch_size - len(batch)
        if missing:
            self._order = torch.from_numpy(rng.permutation(self.samples))
            self._position = missing
            batch = torch.cat([batch, self._order[:missing]])
        if self._data.augmented:
            return AugmentedBatch(batch, int(rng.integers(2**63)))
        return batch

    def gradient(self, x: Vector, batch: Tensor | AugmentedBatch) -> Vector:
        """Return the gradient of the mean loss over `batch` at `x`, weight decay included.

        Parameters
        ----------
        x : torch.Tensor
            Point, shape (dim,); copied, and may be changed once this returns.
        batch : torch.Tensor or AugmentedBatch
            What :meth:`sample` returned.

        Returns
        -------
        torch.Tensor
            The buffer `grad`, shape (dim,): the next gradient overwrites it.
        """
        self._batch_gradient(x, batch)
        self._decay(self.grad)
        return self.grad

    def gradient_in_parts(
        self, x: Vector, batch: Tensor | AugmentedBatch, emit: Callable[[Vector], None]
    ) -> Vector:
        """Return :meth:`gradient`, having called `emit` with each part of it once it was final.

        Parameters
        ----------
        x, batch
            As for :meth:`gradient`.
        emit : callable
            Called from inside backward with slices of `grad`, the last layers' first; those may be
            overwritten from then on.
        """
        if self._buckets is None:
            self._buckets = Buckets(self.parameters)

        def complete(part: Vector) -> None:
            self._decay(part)
            emit(part)

        self._buckets.arm(complete)
        try:
            self._batch_gradient(x, batch)
            self._buckets.flush()
        finally:
            self._buckets.disarm()
        return self.grad

    def full_gradient(self, x: Vector) -> Vector:
        """Return the gradient over all of this rank's data at `x`, weight decay included.

        Returns
        -------
        torch.Tensor
            A copy of the gradient, shape (dim,): the caller's own.
        """
        self.parameters.load(x)
        self.parameters.zero_grad()
        loss = torch.zeros((), device=self.parameters.device)
        for inputs, targets in self._data.chunks():
            weight = len(inputs) / self.samples
            loss += weight * self._backward(inputs, targets, weight)
        self._note(loss)
        self.parameters.collect()
        self._decay(self.grad)
        return self.grad.clone()

    @property
    def last_loss(self) -> float:
        """Loss of the last gradient, of its samples; NaN before.

        Reading it never waits: it is there once the gradient is.
        """
        return float(self._last_loss)

    def loss(self, x: Vector) -> float:
        """Return f_i(x): the mean loss over all of this rank's data."""
        self.parameters.load(x)
        total = torch.zeros((), dtype=torch.float64, device=self.parameters.device)
        with self.parameters.evaluating():
            for inputs, targets in self._data.chunks():
                total += self._criterion(self.model(inputs), targets) * len(inputs)
        return float(total) / self.samples

    def accuracy(self, x: Vector, test_x: Tensor, test_y: Tensor) -> float:
        """Return the fraction of samples whose largest output is that of their class.

        Parameters
        ----------
        x : torch.Tensor
            Point, shape (dim,).
        test_x, test_y : torch.Tensor
            Inputs, stored as `train_x`, shape (n, …), and classes, int64, shape (n,), on any
            device.
        """
        self.parameters.load(x)
        device = self.parameters.device
        correct = torch.zeros((), dtype=torch.int64, device=device)
        with self.parameters.evaluating():
            chunks = (torch.split(v, CHUNK) for v in (test_x, test_y))
            for inputs, targets in zip(*chunks, strict=True):
                outputs = self.model(self._data.prepared(inputs.to(device)))
                correct += (outputs.argmax(dim=1) == targets.to(device)).sum()
        return int(correct) / len(test_x)

    def statistics(self) -> Vector:
        """Return the model's floating-point buffers (BatchNorm's), float64, shape (s,)."""
        return self.parameters.statistics()

    def load_statistics(self, v: Vector) -> None:
        """Set the model's floating-point buffers to `v`, shape (s,)."""
        self.parameters.load_statistics(v)

    def state_dict(self) -> dict[str, Any]:
        """Return for a checkpoint: the epoch's order, the place in it, and the model's buffers."""
        buffers = {name: own_copy(b) for name, b in self.model.named_buffers()}
        return {"order": self._order.clone(), "position": self._position, "buffers": buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken.

        Raises
        ------
        ValueError
            If it was taken with another number of samples, or of a model with other buffers.
        """
        # without an order it was taken by another number of ranks: a new pass over the data begins
        order = state.get("order", torch.empty(0, dtype=torch.int64))
        saved = state.get("buffers", {})
        if len(order) not in (0, self.samples):
            raise ValueError(
                f"the checkpoint's data cursor is for {len(order)} samples, this rank has "
                f"{self.samples}: resume with the same data and number of ranks"
            )
        buffers = dict(self.model.named_buffers())
        if buffers.keys() != saved.keys():
            raise ValueError(
                f"the checkpoint is of a model with buffers {sorted(saved)}, this one "
                f"has {sorted(buffers)}: resume with the same model"
            )
        for name, value in saved.items():
            buffers[name].detach().copy_(value)
        self._order, self._position = order.clone(), int(state.get("position", 0))

    def _batch_gradient(self, x: Vector, batch: Tensor | AugmentedBatch) -> None:
        """Fill `grad`, all but the weight decay."""
        self.parameters.load(x)
        self.parameters.zero_grad()
        self._note(self._backward(*self._data.take(batch)))
        self.parameters.collect()

    def _backward(self, inputs: Tensor, targets: Tensor, weight: float = 1.0) -> Tensor:
        """Add `weight` times the gradient of the mean loss to `grad`; return the loss."""
        kind = self.parameters.device.type
        with torch.enable_grad():
            with torch.autocast(kind, torch.bfloat16, enabled=self._amp):
                loss = self._criterion(self.model(inputs), targets)
            (loss if weight == 1.0 else loss * weight).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _note(self, loss: Tensor) -> None:
        """Have :attr:`last_loss` be `loss`; from a GPU by a copy that the CPU does not wait for."""
        if loss.device.type != "cuda":
            self._last_loss = loss
            return
        if not self._last_loss.is_pinned():
            self._last_loss = torch.empty((), dtype=loss.dtype, pin_memory=True).fill_(torch.nan)
        self._last_loss.copy_(loss, non_blocking=True)

    def _decay(self, part: Vector) -> None:
        """Add the weight decay to `part`, a slice of `grad` or all of it."""
        if self.weight_decay:  # at 0 the bits stay as they are
            start = part.storage_offset() - self.grad.storage_offset()
            part.add_(self.flat[start : start + len(part)], alpha=self.weight_decay)
