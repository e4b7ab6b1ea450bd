"""The parameters and gradients of a module as two flat tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from mpimomentum.worker import Vector

LOW = (torch.float16, torch.bfloat16)
"""Parameters of these types are trained through float32 masters, which `flat` holds."""

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}

REMEDY = "construct it anew, or call publish() on the optimizer of your own loop"


@dataclass
class Part:
    """One parameter's place in the flat tensors."""

    name: str
    parameter: nn.Parameter
    start: int
    stop: int
    x: Tensor  # view of `flat`, shaped and strided like the parameter
    g: Tensor  # view of `grad`, likewise
    dtype: torch.dtype
    version: int = 0  # of the parameter, after our own last write


class FlatModel:
    """A module whose trainable parameters and gradients are views of two flat tensors.

    Writing to `flat` changes the parameters, ``backward()`` adds to `grad`. Both tensors are
    private to this process: nobody else may write to them while a forward or backward pass runs.
    A parameter that occurs twice (tied weights) is laid out once; frozen ones
    (``requires_grad=False``) are left out. Strides stay as they are (channels_last).

    float16 and bfloat16 parameters keep their own memory: `flat` holds float32 masters of them, to
    be copied by :meth:`load`, and their gradients reach `grad` with :meth:`collect`.

    Parameters
    ----------
    module : nn.Module
        The model, on its device already; its parameters keep their values.
    groups : sequence of sequences of nn.Parameter, optional
        Parameters to lay out, a contiguous slice a group; by default all, in the model's order.

    Attributes
    ----------
    flat, grad : torch.Tensor
        Parameters and gradients, shape (dim,), on the module's device; float32, or float64 if all
        parameters are.
    parts : list of Part
        In order of their places.
    group_slices : list of slice
        Where each group lies.

    Raises
    ------
    ValueError
        If a trainable parameter is of no floating-point type, or not yet initialised, if types do
        not go together, if they are on several devices, or there are none.
    """

    def __init__(
        self, module: nn.Module, groups: Sequence[Sequence[nn.Parameter]] | None = None
    ) -> None:
        names = {id(p): name for name, p in module.named_parameters()}
        grouped = groups if groups is not None else [list(module.parameters())]
        ordered = [[(names.get(id(p), "?"), p) for p in group] for group in grouped]
        named = [(name, p) for group in ordered for name, p in group if p.requires_grad]
        self.module = module
        self.dtype, self.device = _common(named)
        self.dim = sum(p.numel() for _, p in named)
        self.flat = torch.empty(self.dim, device=self.device, dtype=self.dtype)
        self.grad = torch.zeros(self.dim, device=self.device, dtype=self.dtype)
        self.parts: list[Part] = []
        self.group_slices: list[slice] = []
        self._frozen = [(name, p) for group in ordered for name, p in group if not p.requires_grad]
        self._others = {id(p) for p in module.parameters()} - {id(p) for _, p in named}
        offset = 0
        for group in ordered:
            begin = offset
            for name, p in group:
                if p.requires_grad:
                    self.parts.append(self._lay_out(name, p, offset))
                    offset += p.numel()
            self.group_slices.append(slice(begin, offset))

    def _lay_out(self, name: str, p: nn.Parameter, start: int) -> Part:
        strides = torch.empty_like(p, device="meta").stride()  # p's, where its memory is dense
        place = (p.shape, strides, start)
        part = Part(
            name,
            p,
            start,
            start + p.numel(),
            self.flat.as_strided(*place),
            self.grad.as_strided(*place),
            p.dtype,
        )
        part.x.copy_(p.detach())
        if p.dtype == self.dtype:
            p.data = part.x
            p.grad = part.g
        else:
            p.grad = None
        part.version = p._version
        return part

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Sizes of the parameters, in order of their places; their sum is `dim`."""
        return tuple(part.stop - part.start for part in self.parts)

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
        for part in self.parts:
            if part.parameter.dtype != self.dtype:
                part.parameter.data.copy_(part.x)
            # autograd, too, must see that a graph made before is of other values
            increment_version(part.parameter)
            part.version = part.parameter._version

    def zero_grad(self) -> None:
        """Set the gradients to zero, as views of `grad` even if someone replaced them.

        Raises
        ------
        RuntimeError
            If a parameter was unfrozen or given other memory since: it would not be trained.
        """
        self.check()
        self.grad.zero_()
        for part in self.parts:
            p = part.parameter
            # optimizers' zero_grad() sets None, and backward a fresh tensor
            p.grad = part.g if p.dtype == self.dtype else None

    def collect(self) -> None:
        """Bring into `grad` the gradients that are not views of it; zero where there is none."""
        for part in self.parts:
            self.collect_part(part)

    def collect_part(self, part: Part) -> None:
        """Bring one parameter's gradient into `grad`."""
        g = part.parameter.grad
        if g is None:
            part.g.zero_()
        elif g is not part.g:
            part.g.copy_(g.detach().to_dense() if g.is_sparse else g.detach())
            if g.dtype == self.dtype:
                part.parameter.grad = part.g

    def per_group(self, values: Sequence[float]) -> float | Vector:
        """Return one value a group as a number if all are the same, else one a coordinate."""
        laid_out = [
            (value, part)
            for value, part in zip(values, self.group_slices, strict=True)
            if part.stop > part.start
        ]
        if len({value for value, _ in laid_out}) == 1:
            return laid_out[0][0]
        vector = torch.empty(self.dim, device=self.device, dtype=self.dtype)
        for value, part in laid_out:
            vector[part] = value
        return vector

    def add_decay(self, factors: Sequence[float]) -> None:
        """Add to `grad` each group's factor times its parameters."""
        for factor, part in zip(factors, self.group_slices, strict=True):
            if factor:
                self.grad[part].add_(self.flat[part], alpha=factor)

    def hand_back(self) -> None:
        """Make `grad` the parameters' gradients, so that what was done to it is seen there."""
        for part in self.parts:
            p = part.parameter
            p.grad = part.g if p.dtype == self.dtype else part.g.to(p.dtype)

    def check(self) -> None:
        """Check that the parameters still are those that were laid out.

        Raises
        ------
        RuntimeError
            If a parameter was frozen, unfrozen or given other memory since: it would not be
            trained.
        """
        for name, p in self._frozen:
            if p.requires_grad:
                raise RuntimeError(
                    f"parameter {name!r} was unfrozen after the model was laid out and would not "
                    f"be trained: {REMEDY}"
                )
        for part in self.parts:
            p = part.parameter
            if not p.requires_grad:
                raise RuntimeError(
                    f"parameter {part.name!r} was frozen after the model was laid out, and "
                    f"momentum would go on moving it: {REMEDY}"
                )
            elsewhere = p.dtype == self.dtype and p.data_ptr() != part.x.data_ptr()
            if elsewhere or p.dtype != part.dtype:
                raise RuntimeError(
                    f"parameter {part.name!r} was given other memory (by model.to(), say) after "
                    f"the model was laid out and would not be trained: {REMEDY}"
                )

    def check_module(self) -> None:
        """Check also that the module has no trainable parameter that was not there before.

        Takes some microseconds a submodule: for now and then, not for every step.

        Raises
        ------
        RuntimeError
            Naming the parameter.
        """
        self.check()
        known = {id(part.parameter) for part in self.parts} | self._others
        for name, p in self.module.named_parameters():
            if p.requires_grad and id(p) not in known:
                raise RuntimeError(
                    f"parameter {name!r} was put into the model after it was laid out (a new "
                    f"layer, or load_state_dict(assign=True)) and would not be trained: {REMEDY}"
                )

    def changed(self) -> str | None:
        """Return the name of a parameter that somebody else has written to since :meth:`load`.

        Seen are in-place operations that autograd sees: ``load_state_dict``, ``nn.init``, another
        optimizer; not what is written through ``.data``.
        """
        for part in self.parts:
            if part.parameter._version != part.version:
                return part.name
        return None

    def fingerprint(self) -> int:
        """Return a number that changes when somebody writes to a parameter, ``.data`` included.

        The sum of the parameters' bits: one pass over them.
        """
        low = [part.parameter.detach() for part in self.parts if part.parameter.dtype != self.dtype]
        return sum(int(t.view(_BITS[t.dtype]).sum()) for t in (self.flat, *low))

    def take_over(self) -> None:
        """Take the parameters as they are now for `flat`: after ``load_state_dict``, say."""
        for part in self.parts:
            if part.parameter.dtype != self.dtype:
                part.x.copy_(part.parameter.detach())
            part.version = part.parameter._version

    def statistics(self) -> Vector:
        """Return all floating-point buffers of the module, such as BatchNorm's running statistics.

        Returns
        -------
        torch.Tensor
            float64, shape (buffers' elements,), on the CPU: a copy, in the module's order. In
            double, the mean of equal float32 values is that value.
        """
        buffers = [b.detach().reshape(-1).cpu().double() for b in self._buffers()]
        return torch.cat(buffers) if buffers else torch.empty(0, dtype=torch.float64)

    def load_statistics(self, v: Vector) -> None:
        """Set the buffers to what :meth:`statistics` returned, or to a mean of such.

        Raises
        ------
        ValueError
            If `v` has another length.
        """
        buffers = list(self._buffers())
        if v.numel() != sum(b.numel() for b in buffers):
            raise ValueError(
                f"expected {sum(b.numel() for b in buffers)} numbers for the model's buffers, got "
                f"{v.numel()}"
            )
        start = 0
        with torch.no_grad():
            for b in buffers:
                b.copy_(v[start : start + b.numel()].reshape(b.shape))
                start += b.numel()

    def _buffers(self) -> Iterator[Tensor]:
        return (b for b in self.module.buffers() if b.is_floating_point())

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


def _common(named: list[tuple[str, nn.Parameter]]) -> tuple[torch.dtype, torch.device]:
    """Return the type and device of the flat tensors, or refuse the parameters."""
    if not named:
        raise ValueError("the model has no trainable parameter (requires_grad=True)")
    for name, p in named:
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(  # noqa: TRY004  # of the right type, but not ready
                f"parameter {name!r} has no shape yet (a lazy module): run one batch through the "
                f"model first"
            )
        if p.dtype not in (torch.float32, torch.float64, *LOW):
            raise ValueError(
                f"parameter {name!r} is {p.dtype}; float32, float64, float16 and bfloat16 can be "
                f"trained: call model.float(), or freeze it with requires_grad_(False)"
            )
    devices = {p.device for _, p in named}
    if len(devices) > 1:
        raise ValueError(
            f"the parameters are on several devices ({', '.join(sorted(map(str, devices)))}): "
            f"move the model to one"
        )
    dtypes = {p.dtype for _, p in named}
    if dtypes == {torch.float64}:
        return torch.float64, devices.pop()
    if torch.float64 in dtypes:
        name = next(name for name, p in named if p.dtype == torch.float64)
        raise ValueError(
            f"parameter {name!r} is torch.float64, others are not: call model.float() or "
            f"model.double()"
        )
    return torch.float32, devices.pop()
