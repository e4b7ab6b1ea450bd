"""The formats of slow links in plain torch, as ``reference.py`` has the other kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from mpimomentum.codecs import reference

CHUNK, LEAST = 2048, 2.0**-100
"""Coordinates with one scale; the least max |p| that int8 does not write as zeros."""

_MAGIC = {torch.float32: 1.5 * 2.0**23, torch.float64: 1.5 * 2.0**52}
"""v + magic - magic is v rounded to nearest even, and +0 where that is 0."""


def encode(format: str, x: Tensor, memory: Tensor | None, differs: bool, out: Tensor) -> None:
    """Write x, x + memory or, where it differs from a replica, x - memory; csrc/kernels.h."""
    if not x.numel():  # an empty array of numpy's cannot be viewed as another dtype
        return
    p = x if memory is None else x - memory if differs else x + memory
    wire, y = _bf16(p) if format == "bf16" else _chunked(format, p)
    out.copy_(wire)
    if memory is not None:
        memory.copy_(memory + y if differs else p - y)


def decode(format: str, wire: Tensor, factor: float | None, out: Tensor) -> None:
    """Set out = y, or out + (factor y)."""
    n = out.numel()
    if not n:
        return
    if format == "bf16":
        y = wire.clone().view(torch.int16).to(torch.int32).bitwise_left_shift(16)
        y = y.view(torch.float32).to(out.dtype)
    else:
        end = 4 * -(-n // CHUNK)
        scales = wire[:end].clone().view(torch.float32).to(out.dtype)
        scale = scales.repeat_interleave(CHUNK)[:n]
        if format == "int8":
            y = wire[end:].view(torch.int8).to(out.dtype) * scale
        else:
            signs = torch.empty_like(out)
            reference.unpack(wire[end:], signs)
            y = signs * scale
    out.copy_(y if factor is None else out + y * factor)


def _bf16(p: Tensor) -> tuple[Tensor, Tensor]:
    narrow = p.to(torch.float32)
    u = narrow.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
    rounded[narrow.isnan()] = 0x7FC0
    halves = torch.where(rounded > 0x7FFF, rounded - 0x10000, rounded).to(torch.int16)
    y = (halves.to(torch.int32) << 16).view(torch.float32).to(p.dtype)
    return halves.view(torch.uint8), y


def _chunked(format: str, p: Tensor) -> tuple[Tensor, Tensor]:
    n, chunks = p.numel(), -(-p.numel() // CHUNK)
    rows = p.new_zeros(chunks * CHUNK)
    rows[:n] = p
    rows = rows.view(chunks, CHUNK)
    scales = _means(rows, n) if format == "sign" else _largest(rows)
    scales[~scales.isfinite()] = torch.nan
    lost = scales.isnan()[:, None]
    step = scales.to(p.dtype)[:, None]
    if format == "sign":
        negative = reference.negative(rows) & ~lost
        y = torch.where(negative, -step, step)
        payload = p.new_zeros(chunks * CHUNK // 8, dtype=torch.uint8)
        reference._pack(negative.view(-1)[:n], payload)
        payload = payload[: -(-n // 8)]
    else:
        inverse = torch.where(step > 0, 1 / step, torch.zeros_like(step))
        magic = _MAGIC[p.dtype]
        q = torch.where(lost, torch.zeros_like(rows), rows * inverse + magic - magic)
        y = q * step
        payload = q.to(torch.int8).view(torch.uint8).view(-1)[:n]
    return torch.cat((scales.view(torch.uint8), payload)), y.view(-1)[:n]


def _largest(rows: Tensor) -> Tensor:
    """Return max |p| / 127 of each row, as float32; NaN or infinite where p is."""
    most = rows.abs().amax(1)
    return torch.where(most < LEAST, torch.zeros_like(most), most / 127).to(torch.float32)


def _means(rows: Tensor, n: int) -> Tensor:
    """Return mean |p| of each row, of n elements in all, added in the order of csrc/kernels.h."""
    rounds = rows.abs().view(len(rows), CHUNK // reference.LANES, reference.LANES)
    lanes = torch.zeros_like(rounds[:, 0])
    for i in range(rounds.shape[1]):
        lanes += rounds[:, i]
    tree = lanes.double()
    while tree.shape[1] > 1:
        half = tree.shape[1] // 2
        tree = tree[:, :half] + tree[:, half:]
    counts = tree.new_full((len(rows),), CHUNK)
    counts[-1:] = n - (len(rows) - 1) * CHUNK
    return (tree[:, 0] / counts).to(torch.float32)
