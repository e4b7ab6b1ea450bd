"""Arrays of numpy, torch and cupy, for the faces of the kernels."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

Array: TypeAlias = Any
"""A numpy or cupy array or torch tensor; all arrays of one call lie on the same device.

C-contiguous; its shape does not matter where one dimension is spoken of, only its size.
"""

A = TypeVar("A")
"""The kind of array that was given, which is the kind that is returned."""


def size(x: Array) -> int:
    """Return how many elements `x` has."""
    if isinstance(x, torch.Tensor):
        return x.numel()
    return int(x.size if isinstance(x, np.ndarray) else _cupy_array(x).size)


def empty_like(x: Array, shape: int | tuple[int, ...], dtype: str | None = None) -> Array:
    """Return a new array of the library and on the device of `x`; of its dtype by default."""
    if isinstance(x, torch.Tensor):
        kind = x.dtype if dtype is None else getattr(torch, dtype)
        return torch.empty(shape, dtype=kind, device=x.device)
    if isinstance(x, np.ndarray):
        return np.empty(shape, dtype or x.dtype)
    wanted = dtype or _cupy_array(x).dtype
    import cupy  # optional; it is here, or x would not be

    return cupy.empty(shape, wanted)


def _cupy_array(x: Array) -> Array:
    if not hasattr(x, "__cuda_array_interface__"):
        raise TypeError(f"a numpy, torch or cupy array is wanted, got {type(x).__name__}")
    return x
