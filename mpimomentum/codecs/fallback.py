"""What computes where the extension has not been built: the reference, with arguments checked.

The same functions as the extension's. Each argument is named with what it must be; ``n`` is the
size of the first vector of the call, ``segments`` that of ``ends``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpimomentum.codecs import reference, wire_reference
from mpimomentum.codecs.arrays import Array, as_tensor

_FLOATS = (torch.float32, torch.float64)
_ANY_FLOATS = (*_FLOATS, torch.float16, torch.bfloat16)


def pack(x: Array, bits: Array) -> None:
    v = _tensor("x", x, _ANY_FLOATS)
    reference.pack(v, _bits("bits", bits, v.numel(), written=True))


def unpack(bits: Array, out: Array) -> None:
    signs = _tensor("out", out, _FLOATS, written=True)
    reference.unpack(_bits("bits", bits, signs.numel()), signs)


def vote(rows: Array, out: Array) -> None:
    votes = _rows(rows)
    reference.vote(votes, _tensor("out", out, (torch.uint8,), votes.shape[1], written=True))


def count(rows: Array, out: Array) -> None:
    counts = _tensor("out", out, (torch.uint16,), written=True)
    reference.count(_rows(rows, counts.numel()), counts)


def signum(m: Array, g: Array, beta: float, bits: Array) -> None:
    v = _tensor("m", m, _FLOATS, written=True)
    reference.signum(v, _like("g", g, v), beta, _bits("bits", bits, v.numel(), written=True))


def apply(x: Array, bits: Array, step: Any, shrink: Any) -> None:
    v = _tensor("x", x, _FLOATS, written=True)
    signs = _bits("bits", bits, v.numel())
    reference.apply(v, signs, _factor("step", step, v), _factor("shrink", shrink, v))


def apply_segments(x: Array, bits: Array, scale: Array, ends: Array, shrink: Any) -> None:
    v = _tensor("x", x, _FLOATS, written=True)
    where = _ends(ends, v.numel())
    scales = _like("scale", scale, v, where.numel())
    signs = _bits("bits", bits, v.numel())
    reference.apply_segments(v, signs, scales, where, _factor("shrink", shrink, v))


def ef(p: Array, g: Array, lr: Any, scale: Array, ends: Array, bits: Array, l1: Array) -> None:
    v = _tensor("p", p, _FLOATS, written=True)
    where = _ends(ends, v.numel())
    reference.ef(
        v,
        _like("g", g, v),
        _factor("lr", lr, v),
        _like("scale", scale, v, where.numel()),
        where,
        _bits("bits", bits, v.numel(), written=True),
        _tensor("l1", l1, (torch.float64,), where.numel(), written=True),
    )


def decode(rows: Array, scales: Array, ends: Array, first: int, out: Array) -> None:
    v = _tensor("out", out, _FLOATS, written=True)
    votes = _rows(rows, v.numel())
    where = _ends(ends, None)
    if first < 0 or (where.numel() and first + v.numel() > int(where[-1])):
        raise ValueError(
            f"first={first} and {v.numel()} coordinates: the segments end at {int(where[-1])}"
        )
    factors = _like("scales", scales, v, len(votes) * where.numel()).view(len(votes), -1)
    reference.decode(votes, factors, where, first, v)


def average(x: Array, y: Array, out: Array) -> None:
    v = _tensor("x", x, _FLOATS)
    reference.average(v, _like("y", y, v), _like("out", out, v, written=True))


def exchange(x: Array, y: Array, delta: Array) -> None:
    v = _tensor("x", x, _FLOATS, written=True)
    reference.exchange(v, _like("y", y, v), _like("delta", delta, v, written=True))


def exchange_finite(x: Array, y: Array, delta: Array) -> int:
    v = _tensor("x", x, _FLOATS, written=True)
    if v.is_cuda:
        raise ValueError("x is on a CUDA device, where nothing waits for what is found")
    return reference.exchange_finite(v, _like("y", y, v), _like("delta", delta, v, written=True))


def exchange_where_finite(x: Array, y: Array, delta: Array, found: Array) -> None:
    v = _tensor("x", x, _FLOATS, written=True)
    difference = _like("delta", delta, v, written=True)
    flag = _tensor("found", found, (torch.uint8,), written=True)
    reference.exchange_where_finite(v, _like("y", y, v), difference, flag)


def mix(rows: Sequence[Array], weights: Sequence[float], out: Array) -> None:
    total = _tensor("out", out, _FLOATS, written=True)
    if not len(rows) or len(rows) != len(weights):
        raise ValueError(f"as many weights as rows are needed, got {len(weights)} and {len(rows)}")
    reference.mix([_like("rows", x, total) for x in rows], [float(w) for w in weights], total)


def heavy_ball(x: Array, m: Array, g: Array, lr: Any, mu: float) -> None:
    v = _tensor("x", x, _FLOATS, written=True)
    momentum = _like("m", m, v, written=True)
    reference.heavy_ball(v, momentum, _like("g", g, v), _factor("lr", lr, v), mu)


def server_step(x: Array, v: Array, u: Array, mu: float) -> None:
    iterate = _tensor("x", x, _FLOATS, written=True)
    reference.server_step(iterate, _like("v", v, iterate, written=True), _like("u", u, iterate), mu)


def wire_encode(format: str, x: Array, memory: Array | None, differs: bool, out: Array) -> None:
    v = _tensor("x", x, _FLOATS)
    name = "replica" if differs else "error"
    kept = None if memory is None else _like(name, memory, v, written=True)
    wire_reference.encode(format, v, kept, differs, _wire("out", format, out, v, written=True))


def wire_decode(format: str, wire: Array, factor: float | None, out: Array) -> None:
    v = _tensor("out", out, _FLOATS, written=True)
    wire_reference.decode(format, _wire("wire", format, wire, v), factor, v)


def _tensor(
    name: str,
    x: Array,
    dtypes: Sequence[torch.dtype],
    n: int | None = None,
    *,
    written: bool = False,
) -> Tensor:
    """Return `x` as a flat torch tensor of the same memory, or refuse it."""
    if isinstance(x, np.ndarray):
        if written and not x.flags.writeable:
            raise ValueError(f"{name} is read-only, and is to be written: give a copy")
        if not x.flags.c_contiguous:
            raise ValueError(f"{name} is not contiguous (strides {x.strides}): give a copy")
        if not x.dtype.isnative:
            raise TypeError(f"{name} must be in this machine's byte order, got {x.dtype.str}")
        # a copy, since torch warns of memory that it could write to but may not
        tensor = torch.from_numpy(x if x.flags.writeable else x.copy())
    elif isinstance(x, torch.Tensor):
        tensor = x
        if x.is_meta:
            raise ValueError(f"{name} is on the meta device, and has no values")
        if x.requires_grad:
            raise ValueError(f"{name} requires grad, and nothing here does: give {name}.detach()")
        if not x.is_contiguous():
            raise ValueError(f"{name} is not contiguous (strides {x.stride()}): give a copy")
    elif hasattr(x, "__cuda_array_interface__") or hasattr(x, "__dlpack__"):
        tensor = as_tensor(x)
    else:
        raise TypeError(f"{name} must be a numpy, torch or cupy array, got {type(x).__name__}")
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be {wanted}, got {str(tensor.dtype).removeprefix('torch.')}")
    if n is not None and tensor.numel() != n:
        raise ValueError(f"{name} must have {n} elements, got {tensor.numel()}")
    return tensor.view(-1)


def _like(
    name: str, x: Array, other: Tensor, n: int | None = None, written: bool = False
) -> Tensor:
    return _tensor(name, x, (other.dtype,), other.numel() if n is None else n, written=written)


def _bits(name: str, bits: Array, n: int, *, written: bool = False) -> Tensor:
    return _tensor(name, bits, (torch.uint8,), -(-n // 8), written=written)


def _wire(name: str, format: str, wire: Array, like: Tensor, *, written: bool = False) -> Tensor:
    n, chunks = like.numel(), -(-like.numel() // wire_reference.CHUNK)
    sizes = {"bf16": 2 * n, "int8": 4 * chunks + n, "sign": 4 * chunks - (-n // 8)}
    if format not in sizes:
        raise ValueError(f"format must be 'bf16', 'int8' or 'sign', got {format!r}")
    found = _tensor(name, wire, (torch.uint8,), sizes[format], written=written)
    address = wire.ctypes.data if isinstance(wire, np.ndarray) else found.data_ptr()
    if found.numel() and address % 4:
        raise ValueError(f"{name} must begin at a multiple of 4 bytes: give a copy")
    return found


def _rows(given: Array, n: int | None = None) -> Tensor:
    rows = (
        torch.from_numpy(given.copy()) if isinstance(given, np.ndarray) else torch.as_tensor(given)
    )
    if len(rows.shape) != 2 or not 1 <= rows.shape[0] <= 65535:
        raise ValueError(f"rows must be (k, m) with 1 <= k <= 65535, got {tuple(rows.shape)}")
    if n is not None and rows.shape[1] != -(-n // 8):
        raise ValueError(f"rows must have {-(-n // 8)} bytes for {n} bits, got {rows.shape[1]}")
    if rows.dtype != torch.uint8:
        raise TypeError(f"rows must be uint8, got {rows.dtype}")
    if rows.shape[1] > 1 and rows.stride(1) != 1:
        raise ValueError(f"rows must have contiguous rows, got strides {rows.stride()}")
    return rows


def _ends(ends: Array, n: int | None) -> Tensor:
    where = _tensor("ends", ends, (torch.int64,))
    last = int(where[-1]) if where.numel() else 0
    ascends = bool((where.diff(prepend=where.new_zeros(1)) >= 0).all())
    if not where.numel() or (n is not None and last != n) or not ascends:
        raise ValueError(
            f"ends must ascend to {n}, the number of coordinates, got {where.tolist()}"
        )
    return where


def _factor(name: str, factor: Any, like: Tensor) -> Any:
    if factor is None or isinstance(factor, float | int):
        return factor
    if getattr(factor, "shape", None) == ():  # a number as an array
        return _tensor(name, factor, (like.dtype,)).view(())
    return _like(name, factor, like)
