"""A device that is not there: its tensors hold numbers, but do not go together with the host's.

A :class:`DeviceTensor` says that it is on :data:`DEVICE` and computes on the CPU. Inside
:func:`pretended` an operation that mixes it with a host tensor raises :class:`WrongDevice`, as on a
GPU, where the same line would; copies from one to the other are allowed. So is looking at a number
of it, ``float(v)``, for which a GPU would be waited for: each is counted (:attr:`Pretended.looks`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_map_only

from mpimomentum.codecs import mix, sign, wire
from mpimomentum.codecs.extension import kernels

DEVICE = torch.device("meta")  # a kind that torch has no memory for
_COPIES = {"aten::copy_", "aten::_to_copy"}
_LOOKS = {"aten::_local_scalar_dense"}


class WrongDevice(RuntimeError):
    """A device's and the host's tensors met in one operation."""


class DeviceTensor(torch.Tensor):
    """Host memory that says that it is elsewhere."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls: type[DeviceTensor], inner: torch.Tensor) -> DeviceTensor:
        """Wrap `inner`, whose memory it shares."""
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("a device's tensor was used outside of pretended()")

    def tolist(self) -> Any:
        """Take all numbers to the host; what torch refuses of a subclass."""
        if isinstance(mode := _get_current_dispatch_mode(), Pretended):
            mode.looks.append("tolist")
        return self.inner.tolist()

    def __repr__(self) -> str:
        return f"DeviceTensor({self.inner})"


class Pretended(TorchDispatchMode):
    """Computes for the device.

    Attributes
    ----------
    looks : list of str
        Operations that took a number of the device's to the host.
    transfers : int
        Copies between device and host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[str] = []
        self.transfers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name
        target = kwargs.get("device")
        there = target is not None and torch.device(target).type == DEVICE.type
        on_device = _any_device((args, kwargs))
        if there:
            kwargs["device"] = torch.device("cpu")
            kwargs.pop("pin_memory", None)
        if name in _COPIES:
            to_device = (
                isinstance(args[0], DeviceTensor)
                if name == "aten::copy_"
                else (there or (target is None and on_device))
            )
            self.transfers += to_device != all(
                isinstance(t, DeviceTensor) for t in args if isinstance(t, torch.Tensor)
            )
        else:
            if on_device and _any_host((args, kwargs)):
                raise WrongDevice(f"{name} of tensors of the device and of the host")
            to_device = on_device or there
        if name in _LOOKS and on_device:
            self.looks.append(name)
        result = func(*_inner(args), **_inner(kwargs))
        if name == "aten::copy_" or (isinstance(result, torch.Tensor) and _written(func)):
            return args[0]
        if kwargs.get("out") is not None:
            return kwargs["out"]
        return tree_map_only(torch.Tensor, DeviceTensor, result) if to_device else result


def _written(func: Any) -> bool:
    """Whether it returns its first argument, changed."""
    first = func._schema.arguments[0] if func._schema.arguments else None
    returned = func._schema.returns[0] if func._schema.returns else None
    alias = first.alias_info if first is not None else None
    returns = returned.alias_info if returned is not None else None
    return bool(alias and alias.is_write and returns and returns.is_write)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    for t in torch.utils._pytree.tree_leaves(tree):
        if isinstance(t, torch.Tensor):
            yield t


def _any_device(tree: Any) -> bool:
    return any(isinstance(t, DeviceTensor) for t in _tensors(tree))


def _any_host(tree: Any) -> bool:
    """Whether a host tensor is among them that is no single number, which may mix."""
    return any(not isinstance(t, DeviceTensor) and t.dim() > 0 for t in _tensors(tree))


def _inner(tree: Any) -> Any:
    return tree_map_only(DeviceTensor, lambda t: t.inner, tree)


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel of the extension for either place's arrays, and not for both."""

    def call(*args: Any) -> Any:
        tensors = list(_tensors(args))
        if any(isinstance(t, DeviceTensor) for t in tensors) and _any_host(args):
            raise WrongDevice(f"{function.__name__} of arrays of the device and of the host")
        return function(*_inner(args))

    return call


class _Kernels:
    def __getattr__(self, name: str) -> Any:
        return _kernel(getattr(kernels, name))


@contextlib.contextmanager
def pretended() -> Iterator[Pretended]:
    """Have a device beside the host."""
    mode = Pretended()
    ours = _Kernels()
    with contextlib.ExitStack() as stack:
        for face in (mix, sign, wire):
            stack.enter_context(mock.patch.object(face, "kernels", ours))
        stack.enter_context(mode)
        yield mode


def on_device(v: torch.Tensor) -> DeviceTensor:
    """Return a copy of a host vector on the device."""
    return DeviceTensor(v.clone())


def on_host(v: torch.Tensor) -> torch.Tensor:
    """Return the host memory of a device's tensor; for tests to look at."""
    return v.inner if isinstance(v, DeviceTensor) else v
