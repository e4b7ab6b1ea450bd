"""What bench_kernels.py compares the kernels with: the same results, written plainly.

Signs are packed in numpy's and torch's own ways and in those of two known code bases; votes are
counted in bytes. DeepSpeed-style: ``packbits`` of the signs as booleans. bit2byte-style: 32 signs
are shifted into an integer word, row after row. Not the projects' own code, nor their CUDA.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def pack_numpy(x: Floats) -> Bytes:
    return np.packbits(x < 0, bitorder="little")


def pack_torch(x: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((x < 0).view(-1, 8).to(torch.uint8) << shifts).sum(1, dtype=torch.uint8)


def pack_deepspeed(x: Tensor) -> Bytes:
    return np.packbits(x.sign().add_(1).bool().numpy())


def pack_bit2byte(x: Tensor) -> Tensor:
    rows = (x < 0).to(torch.int32).view(32, -1)
    words = torch.zeros_like(rows[0])
    for row in rows:
        words = (words << 1) | row
    return words


def bytes_of_signs(x: Tensor) -> Tensor:
    """One byte a sign, eight times what is sent: nothing is packed."""
    return (x < 0).view(torch.uint8)


def unpack_numpy(bits: Bytes, n: int) -> Floats:
    return 1 - 2 * np.unpackbits(bits, count=n, bitorder="little").astype(np.float32)


def vote_byte_counters(rows: Bytes) -> Bytes:
    counts = np.zeros(8 * rows.shape[1], np.uint8)
    for row in rows:
        counts += np.unpackbits(row, bitorder="little")
    return np.packbits(counts > len(rows) // 2, bitorder="little")


def vote_bytes_of_signs(rows: Tensor) -> Tensor:
    """Majority of one byte a sign, shape (k, n): nothing is unpacked, eight times is read."""
    counts = rows[0].clone()
    for row in rows[1:]:
        counts += row
    return counts > len(rows) // 2


def count_numpy(rows: Bytes) -> NDArray[np.uint16]:
    counts = np.zeros(8 * rows.shape[1], np.uint16)
    for row in rows:
        counts += np.unpackbits(row, bitorder="little")
    return counts


def signum(m: Tensor, g: Tensor, beta: float) -> Bytes:
    m.mul_(beta).add_(g, alpha=1 - beta)
    return pack_numpy(m.numpy())


def apply(x: Tensor, bits: Bytes, lr: float, weight_decay: float = 0.0) -> None:
    update = torch.from_numpy(unpack_numpy(bits, len(x)))
    x.sub_(update.add_(x, alpha=weight_decay) if weight_decay else update, alpha=lr)


def error_feedback(e: Tensor, g: Tensor, lr: float) -> tuple[Bytes, Tensor]:
    """Return what is sent; e becomes the new error."""
    e.add_(g, alpha=lr)
    scale = e.abs().mean()
    bits = pack_numpy(e.numpy())
    e.sub_(e.sign().mul_(scale))
    return bits, scale


def decode(rows: Bytes, scales: Floats, out: Tensor) -> None:
    out.zero_()
    for row, scale in zip(rows, scales, strict=True):
        out.add_(torch.from_numpy(unpack_numpy(row, len(out))), alpha=float(scale))


def average(x: Tensor, y: Tensor, out: Tensor) -> None:
    torch.add(x, y, out=out).mul_(0.5)


def exchange(x: Tensor, y: Tensor, delta: Tensor) -> None:
    torch.sub(x, y, out=delta)
    x.sub_(delta, alpha=0.5)


def mix(rows: list[Tensor], weights: list[float], out: Tensor) -> None:
    torch.mul(rows[0], weights[0], out=out)
    for x, weight in zip(rows[1:], weights[1:], strict=True):
        out.add_(x, alpha=weight)


def heavy_ball(x: Tensor, m: Tensor, g: Tensor, lr: float, mu: float) -> None:
    m.mul_(mu).add_(g)
    x.sub_(m, alpha=lr)


def server_step(x: Tensor, v: Tensor, u: Tensor, mu: float) -> None:
    v.mul_(mu).sub_(u)
    x.add_(v)
