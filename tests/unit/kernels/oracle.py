"""What the kernels must compute, in numpy, written from csrc/kernels.h and from nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def negative(x: Array) -> Array:
    """x < 0 by the definition of IEEE 754, in integers: no flag of the processor matters."""
    unsigned = UNSIGNED[x.dtype.itemsize]
    bits = x.view(unsigned)
    sign = unsigned(1) << unsigned(8 * x.dtype.itemsize - 1)
    infinity = np.array(np.inf, x.dtype).view(unsigned)
    magnitude = bits & ~sign
    return (bits & sign != 0) & (magnitude != 0) & (magnitude <= infinity)


def pack(x: Array) -> Array:
    return np.packbits(negative(x), bitorder="little")


def bits_of(packed: Array, n: int) -> Array:
    return np.unpackbits(packed, axis=-1, bitorder="little")[..., :n]


def signs(packed: Array, n: int, dtype: Any) -> Array:
    return np.where(bits_of(packed, n), dtype.type(-1), dtype.type(1))


def votes(rows: Array) -> Array:
    """The number of rows in which each bit is set."""
    return bits_of(rows, 8 * rows.shape[1]).sum(0, dtype=np.int64)


def vote(rows: Array) -> Array:
    return np.packbits(2 * votes(rows) > len(rows), bitorder="little")


def signum(m: Array, g: Array, beta: float) -> Array:
    kind = m.dtype.type
    return kind(beta) * m + kind(1 - beta) * g


def apply(x: Array, packed: Array, step: Any, shrink: Any = None) -> Array:
    update = _cast(step, x) * signs(packed, len(x), x.dtype)
    return x - (update if shrink is None else update + _cast(shrink, x) * x)


def spread(scale: Array, ends: Array) -> Array:
    return np.repeat(scale, np.diff(ends, prepend=0))


def ef(p: Array, g: Array, lr: Any, scale: Array, ends: Array) -> tuple[Array, Array]:
    sign = np.where(negative(p), p.dtype.type(-1), p.dtype.type(1))
    new = _cast(lr, p) * g + (p - spread(scale, ends) * sign)
    starts = [0, *ends[:-1]]
    return new, np.array([l1(new, a, b) for a, b in zip(starts, ends, strict=True)])


def l1(p: Array, begin: int, end: int) -> float:
    blocks = -(-len(p) // 512)
    a = np.zeros(512 * blocks, p.dtype)
    a[begin:end] = np.abs(p[begin:end])
    total = 0.0
    for superblock in range(0, blocks, 1024):
        lanes = a[512 * superblock : 512 * (superblock + 1024)].reshape(-1, 8, 64)
        sums = lanes[:, 0].copy()
        for i in range(1, 8):
            sums += lanes[:, i]
        tree = sums.astype(np.float64)
        for half in (32, 16, 8, 4, 2, 1):
            tree = tree[:, :half] + tree[:, half:]
        subtotal = 0.0
        for value in tree[:, 0]:
            subtotal += value
        total += subtotal
    return total


def decode(rows: Array, scales: Array, ends: Array, first: int, n: int) -> Array:
    out = None
    for row, scale in zip(rows, scales, strict=True):
        term = spread(scale, ends)[first : first + n] * signs(row, n, scales.dtype)
        out = term if out is None else out + term
    assert out is not None
    return out


def mix(rows: list[Array], weights: list[float]) -> Array:
    kind = rows[0].dtype.type
    total = kind(weights[0]) * rows[0]
    for x, w in zip(rows[1:], weights[1:], strict=True):
        total = total + kind(w) * x
    return total


def heavy_ball(x: Array, m: Array, g: Array, lr: Any, mu: float) -> tuple[Array, Array]:
    new = x.dtype.type(mu) * m + g
    return x - _cast(lr, x) * new, new


def server_step(x: Array, v: Array, u: Array, mu: float) -> tuple[Array, Array]:
    new = x.dtype.type(mu) * v - u
    return x + new, new


def _cast(factor: Any, x: Array) -> Any:
    return x.dtype.type(factor) if isinstance(factor, float) else factor


def assert_same(got: Array, wanted: Array) -> None:
    """The same bits, except that any NaN is as good as another."""
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, wanted)
        return
    unsigned = UNSIGNED[got.dtype.itemsize]
    same = (got.view(unsigned) == wanted.view(unsigned)) | (np.isnan(got) & np.isnan(wanted))
    where = np.flatnonzero(~same)
    assert same.all(), f"element {where[0]}: {got[where[0]]!r}, not {wanted[where[0]]!r}"


CHUNK = 2048


def wire_scale(wire: str, chunk: Array) -> np.float32:
    """The scale of a chunk of int8 or signs; NaN where it cannot be written."""
    if not np.isfinite(chunk).all():
        return np.float32(np.nan)
    kind = chunk.dtype.type
    if wire == "int8":
        most = np.abs(chunk).max()
        scale = np.float32(0) if most < 2.0**-100 else np.float32(most / kind(127))
    else:
        lanes = [kind(0)] * 64
        for i, p in enumerate(chunk):
            lanes[i % 64] = lanes[i % 64] + abs(p)
        tree = [float(lane) for lane in lanes]
        while len(tree) > 1:
            half = len(tree) // 2
            tree = [a + b for a, b in zip(tree[:half], tree[half:], strict=True)]
        scale = np.float32(tree[0] / len(chunk))
    return scale if np.isfinite(scale) else np.float32(np.nan)


def wire(format: str, p: Array) -> tuple[Array, Array]:
    """The bytes of `p` and what they decode to."""
    kind = p.dtype.type
    if format == "bf16":
        u = p.astype(np.float32).view(np.uint32).astype(np.uint64)
        bits = (u + 0x7FFF + (u >> 16 & 1)) >> 16
        bits[np.isnan(p)] = 0x7FC0
        halves = bits.astype("<u2")
        y = (halves.astype(np.uint32) << 16).view(np.float32).astype(kind)
        return halves.view(np.uint8), y
    scales, payloads, decoded = [], [], []
    for begin in range(0, len(p), CHUNK):
        chunk = p[begin : begin + CHUNK]
        scale = wire_scale(format, chunk)
        scales.append(scale)
        lost = np.isnan(scale)
        if format == "sign":
            bits = pack(np.zeros_like(chunk) if lost else chunk)
            payloads.append(bits)
            decoded.append(signs(bits, len(chunk), p.dtype) * kind(scale))
        else:
            inverse = kind(0) if lost or scale == 0 else kind(1) / kind(scale)
            q = np.zeros_like(chunk) if lost else np.rint(chunk * inverse) + kind(0)
            payloads.append(q.astype(np.int8).view(np.uint8))
            decoded.append(q * kind(scale))
    head = np.array(scales, "<f4").view(np.uint8)
    empty = np.zeros(0, p.dtype)
    return np.concatenate([head, *payloads]), np.concatenate([empty, *decoded])
