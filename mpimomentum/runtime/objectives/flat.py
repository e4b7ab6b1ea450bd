"""The parameters and gradients of a module as two flat tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mpimomentum.worker import Vector


class FlatModel:
    """A module whose trainable parameters and gradients are views of two flat tensors.

    Writing to `flat` changes the parameters, ``backward()`` adds to `grad`. Both tensors are
    private to this process: nobody else may write to them while a forward or backward pass runs.
    A parameter that occurs twice (tied weights) is laid out once; frozen ones
    (``requires_grad=False``) are left out.

    Parameters
    ----------
    module : nn.Module
        The model, on its device already; its parameters are laid out in their order, and keep
        their values.

    Attributes
    ----------
    flat, grad : torch.Tensor
        Parameters and gradients, float32, shape (dim,), on the module's device.

    Raises
    ------
    ValueError
        If a trainable parameter is not float32, if they are on several devices, or there are none.
    """

    def __init__(self, module: nn.Module) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no trainable parameter (requires_grad=True)")
        for name, p in named:
            if p.dtype != torch.float32:
                raise ValueError(
                    f"parameter {name!r} is {p.dtype}; only torch.float32 can be trained: "
                    f"call model.float(), or freeze it with requires_grad_(False)"
                )
        devices = {p.device for _, p in named}
        if len(devices) > 1:
            raise ValueError(
                f"the parameters are on several devices ({', '.join(sorted(map(str, devices)))}): "
                f"move the model to one"
            )
        self.module = module
        self.dim = sum(p.numel() for _, p in named)
        self.device = devices.pop()
        self.flat = torch.empty(self.dim, device=self.device)
        self.grad = torch.zeros(self.dim, device=self.device)
        self._frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
        self._views: list[tuple[str, nn.Parameter, Tensor, Tensor]] = []
        offset = 0
        for name, p in named:
            part = slice(offset, offset + p.numel())
            view, grad_view = self.flat[part].view(p.shape), self.grad[part].view(p.shape)
            view.copy_(p.detach())
            p.data = view
            p.grad = grad_view
            self._views.append((name, p, view, grad_view))
            offset += p.numel()

    def load(self, x: Vector) -> None:
        """Set the parameters to a copy of `x`, shape (dim,), on any device.

        Raises
        ------
        ValueError
            If `x` has another shape.
        """
        if x.shape != self.flat.shape:
            raise ValueError(f"expected x of shape ({self.dim},), got {tuple(x.shape)}")
        self.flat.copy_(x)

    def zero_grad(self) -> None:
        """Set the gradients to zero, as views of `grad` even if someone replaced them.

        Raises
        ------
        RuntimeError
            If a parameter was unfrozen or given other memory since: it would not be trained.
        """
        self.check()
        self.grad.zero_()
        for _, p, _, grad_view in self._views:
            p.grad = grad_view  # optimizers' zero_grad() sets None, and backward a fresh tensor

    def check(self) -> None:
        """Check that the parameters still are those that were laid out.

        Raises
        ------
        RuntimeError
            If a parameter was unfrozen or given other memory since: it would not be trained.
        """
        for name, p in self._frozen:
            if p.requires_grad:
                raise RuntimeError(
                    f"parameter {name!r} was unfrozen after the model was laid out and would not "
                    f"be trained: unfreeze it before"
                )
        for name, p, view, _ in self._views:
            if p.data_ptr() != view.data_ptr():
                raise RuntimeError(
                    f"parameter {name!r} was given other memory (by model.to(), say) after the "
                    f"model was laid out and would not be trained: move the model before"
                )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Use evaluation mode and no gradients; each submodule's own mode returns afterwards."""
        modes = [(module, module.training) for module in self.module.modules()]
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training
