"""Arrays of numpy, torch and cupy, for the faces of the kernels."""

from __future__ import annotations

import math
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

Array: TypeAlias = Any
"""A numpy or cupy array or torch tensor; all arrays of one call lie on the same device.

Or what presents ``__cuda_array_interface__`` (version 3: the stream that it names is waited for,
and waits for what is done), or DLPack.

C-contiguous; its shape does not matter where one dimension is spoken of, only its size.
"""

A = TypeVar("A")
"""The kind of array that was given, which is the kind that is returned."""


def size(x: Array) -> int:
    """Return how many elements `x` has."""
    if isinstance(x, torch.Tensor):
        return x.numel()
    if isinstance(x, np.ndarray):
        return int(x.size)
    interface = _interface(x)
    return math.prod(interface["shape"]) if interface is not None else as_tensor(x).numel()


def empty_like(x: Array, shape: int | tuple[int, ...], dtype: str | None = None) -> Array:
    """Return a new array of the library and on the device of `x`; of its dtype by default.

    Of torch's where that library is not cupy or numpy.
    """
    if isinstance(x, np.ndarray):
        return np.empty(shape, dtype or x.dtype)
    if type(x).__module__.partition(".")[0] == "cupy":
        import cupy  # optional; it is here, or x would not be

        with x.device:  # cupy's current one may be another
            return cupy.empty(shape, dtype or x.dtype)
    t = as_tensor(x)
    return torch.empty(shape, dtype=getattr(torch, dtype) if dtype else t.dtype, device=t.device)


def as_tensor(x: Array) -> torch.Tensor:
    """Return a tensor over the memory of `x`; a copy is never made.

    On CUDA the current stream waits for what was queued on the stream of `x`, if that is known, so
    that `x` may be read at once. Who writes to it calls :func:`hand_back`.

    Raises
    ------
    TypeError
        If it is no array.
    ValueError
        If it cannot be read in place.
    """
    if isinstance(x, torch.Tensor):
        return x
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x)
    if hasattr(x, "__dlpack__"):  # knows the device, and makes its stream and ours meet
        return from_dlpack(x)
    interface = _interface(x)
    if interface is None:
        raise TypeError(f"a numpy, torch or cupy array is wanted, got {type(x).__name__}")
    tensor = torch.as_tensor(x, device="cuda")
    if tensor.data_ptr() != interface["data"][0]:
        raise ValueError(
            f"an array on another device than {tensor.device}, the current one: make its device "
            "the current one, or give a tensor"
        )
    producer, ours = _producer(interface, tensor.device), torch.cuda.current_stream(tensor.device)
    if producer is not None and producer != ours:
        ours.wait_event(producer.record_event())
    return tensor


def hand_back(x: Array, device: torch.device) -> None:
    """Have the stream of `x` wait for what was queued on the current one, which has written to it.

    Nothing where they are the same, on the CPU, or where `x` does not say its stream.
    """
    interface = None if isinstance(x, torch.Tensor | np.ndarray) else _interface(x)
    if interface is None:
        return
    producer, ours = _producer(interface, device), torch.cuda.current_stream(device)
    if producer is not None and producer != ours:
        producer.wait_event(ours.record_event())


def _interface(x: Array) -> dict[str, Any] | None:
    interface: dict[str, Any] | None = getattr(x, "__cuda_array_interface__", None)
    return interface


def _producer(interface: dict[str, Any], device: torch.device) -> torch.cuda.Stream | None:
    """Return the stream that an array names; None if it names none."""
    number = interface.get("stream")
    if number is None:
        return None
    if number == 0:
        raise ValueError("an array names stream 0, which may be one of two: 1 or 2 is wanted")
    if number == 1:
        return torch.cuda.default_stream(device)
    return torch.cuda.ExternalStream(number, device)  # type: ignore[no-untyped-call]
